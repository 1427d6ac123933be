import dataclasses

from absl.testing import absltest, parameterized

from bcgd_jax import data
from bcgd_jax.errors import UsageError

_VALID = {"dataset": "digits", "batch_size": 8, "eval_batch_size": 16}


class DataOptionsTest(parameterized.TestCase):
  def test_defaults_are_off(self):
    options = data.DataOptions(**_VALID)
    self.assertEqual((options.pad, options.flip, options.validation_examples), (0, False, 0))
    self.assertIsNone(options.train_examples)

  @parameterized.named_parameters(
    ("dataset", {"dataset": "cifar"}, "dataset must be one of digits, idx, cifar10, mnist,"),
    ("dataset_type", {"dataset": None}, "dataset must be one of"),
    ("data_dir", {"data_dir": None}, "data_dir must be of type str, got None"),
    ("manual_dir", {"manual_dir": 1}, "manual_dir must be of type str, got 1"),
    ("flip", {"flip": 1}, "flip must be of type bool, got 1"),
    ("batch_zero", {"batch_size": 0}, "^batch_size must be at least 1, got 0"),
    ("batch_float", {"batch_size": 8.0}, "^batch_size must be an integer, got 8.0"),
    ("batch_bool", {"batch_size": True}, "^batch_size must be an integer, got True"),
    ("eval_batch", {"eval_batch_size": -1}, "eval_batch_size must be at least 1, got -1"),
    ("pad", {"pad": -1}, "pad must be at least 0, got -1"),
    ("validation", {"validation_examples": -1}, "validation_examples must be at least 0"),
    ("train", {"train_examples": 0}, "train_examples must be at least 1, got 0"),
    ("seed_negative", {"seed": -1}, "seed must be at least 0, got -1"),
    ("seed_large", {"seed": 2**32}, r"seed must be less than 2\*\*32, got 4294967296"),
    ("workers", {"num_workers": -1}, "num_workers must be at least 0, got -1"),
    ("idx", {"dataset": "idx"}, "manual_dir must name the folder"),
  )
  def test_rejects(self, change, message):
    with self.assertRaisesRegex(UsageError, message):
      data.DataOptions(**{**_VALID, **change})

  def test_replace_checks_again(self):
    options = data.DataOptions(**_VALID)
    with self.assertRaisesRegex(UsageError, "batch_size"):
      dataclasses.replace(options, batch_size=0)


if __name__ == "__main__":
  absltest.main()
