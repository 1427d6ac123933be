import importlib.util
import json
import os
import pathlib
import tempfile
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized

from bcgd_jax import data
from bcgd_jax.data import builders, sources
from bcgd_jax.errors import UsageError


def _labels(source):
  return [source[i]["label"] for i in range(len(source))]


def _images(source):
  return {source[i]["image"].tobytes() for i in range(len(source))}


class DatasetsTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _options(self, dataset, **kwargs):
    return data.DataOptions(
      **{
        "dataset": dataset,
        "data_dir": str(self.root),
        "batch_size": 8,
        "eval_batch_size": 8,
        **kwargs,
      }
    )

  def _load(self, dataset, **kwargs):
    return data.load_dataset(self._options(dataset, **kwargs))


class CutTest(DatasetsTestCase):
  """The split into training and validation examples, on digits' 1,437."""

  def test_no_validation(self):
    dataset = self._load("digits")
    self.assertLen(dataset.train, 1437)
    self.assertEmpty(dataset.validation)
    self.assertLen(dataset.test, 360)

  def test_parts_are_disjoint_and_complete(self):
    everything = sorted(_labels(self._load("digits").train))
    dataset = self._load("digits", validation_examples=137)
    self.assertLen(dataset.validation, 137)
    self.assertLen(dataset.train, 1300)
    self.assertEqual(sorted(_labels(dataset.train) + _labels(dataset.validation)), everything)
    # Digits has no two equal images within these (checked by the sizes).
    self.assertLen(_images(dataset.validation), 137)
    self.assertEmpty(_images(dataset.validation) & _images(dataset.train))

  def test_independent_of_the_seed(self):
    first = self._load("digits", validation_examples=50, seed=0)
    second = self._load("digits", validation_examples=50, seed=1)
    self.assertEqual(_images(first.validation), _images(second.validation))

  def test_fewer_training_examples_are_a_prefix_beside_the_same_validation(self):
    whole = self._load("digits", validation_examples=50)
    part = self._load("digits", validation_examples=50, train_examples=20)
    self.assertEqual(_labels(part.train), _labels(whole.train)[:20])
    self.assertEqual(_labels(part.validation), _labels(whole.validation))

  @parameterized.parameters(1437, 2000)
  def test_validation_takes_all(self, num_examples):
    with self.assertRaisesRegex(
      UsageError, f"validation_examples must be less than the 1437 .* 'digits', got {num_examples}"
    ):
      self._load("digits", validation_examples=num_examples)

  def test_train_examples_beyond_what_is_left(self):
    with self.assertRaisesRegex(UsageError, "train_examples must be at most 1400, .* got 1401"):
      self._load("digits", validation_examples=37, train_examples=1401)
    self.assertLen(self._load("digits", validation_examples=37, train_examples=1400).train, 1400)


class InfoTest(DatasetsTestCase):
  def test_without_preparing(self):
    info = data.dataset_info(self._options("digits"))
    self.assertEmpty(list(self.root.iterdir()))
    self.assertEqual(info, self._load("digits").info)

  @parameterized.parameters(
    ("cifar10", (32, 32, 3)), ("mnist", (28, 28, 1)), ("fashion_mnist", (28, 28, 1))
  )
  def test_of_tfds(self, name, image_shape):
    info = data.dataset_info(self._options(name))
    self.assertEqual((info.name, info.image_shape, info.num_classes), (name, image_shape, 10))
    self.assertEmpty(list(self.root.iterdir()))


class DataDirTest(DatasetsTestCase):
  def test_default_is_tfds_own(self):
    with mock.patch.dict(os.environ, {"TFDS_DATA_DIR": str(self.root / "env")}):
      self._load("digits", data_dir="")
    self.assertTrue((self.root / "env" / "digits" / "1.0.0" / "dataset_info.json").is_file())

  def test_large_splits_are_not_cached(self):
    self.assertIsInstance(self._load("digits").test, sources.CachedSource)
    with mock.patch.object(sources, "MAX_CACHED_BYTES", 360 * 64 - 1):
      self.assertIsInstance(self._load("digits").test, sources.TfdsSource)


class TfdsTest(DatasetsTestCase):
  """Datasets that TFDS defines, from a copy of its layout made here."""

  def _write_cifar10(self):
    class Cifar10(builders.ArrayBuilder, skip_registration=True):
      VERSION = tfds.builder_cls("cifar10").VERSION

    rng = np.random.default_rng(0)
    splits = {
      name: builders.LabeledImages(
        rng.integers(0, 256, (num_examples, 32, 32, 3), np.uint8),
        np.arange(num_examples) * 10 // num_examples,  # sorted
      )
      for name, num_examples in (("train", 30), ("test", 20))
    }
    target = self.root / "cifar10" / str(Cifar10.VERSION)
    builders.prepare(Cifar10, target, data_fn=lambda: builders.ArrayData(splits, num_classes=10))
    return splits, target

  def test_reads_prepared_data(self):
    splits, target = self._write_cifar10()
    dataset = self._load("cifar10", validation_examples=5)
    self.assertEqual(dataset.info.full_name, f"cifar10/{target.name}")
    self.assertEqual(dataset.info, data.dataset_info(self._options("cifar10")))
    self.assertEqual(dataset.info.image_shape, (32, 32, 3))
    self.assertEqual(dataset.info.num_classes, 10)
    self.assertLen(dataset.train, 25)
    np.testing.assert_array_equal(
      [dataset.test[i]["image"] for i in range(20)], splits["test"].images
    )
    self.assertEqual(_labels(dataset.test), splits["test"].labels.tolist())
    with data.train_batches(dataset, self._options("cifar10", pad=4), start_step=0) as batches:
      self.assertEqual(next(batches)["image"].shape, (8, 32, 32, 3))

  def test_cut_is_not_in_the_files_order(self):
    # A sorted dataset must not lose its first classes to the validation split.
    self._write_cifar10()
    dataset = self._load("cifar10", validation_examples=15)
    self.assertGreater(len(set(_labels(dataset.validation))), 7)
    self.assertGreater(len(set(_labels(dataset.train))), 7)

  def test_prepared_for_sequential_access(self):
    _, target = self._write_cifar10()
    info = json.loads((target / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (target / "dataset_info.json").write_text(json.dumps(info))
    with self.assertRaisesRegex(
      UsageError, "cifar10.* must be prepared with file_format='array_record' .* got 'tfrecord'"
    ):
      self._load("cifar10")

  @parameterized.parameters("cifar10", "mnist", "fashion_mnist")
  def test_preparation_without_tensorflow(self, name):
    with (
      mock.patch.object(importlib.util, "find_spec", return_value=None),
      self.assertRaisesRegex(
        UsageError,
        rf"'{name}' is not prepared in .*pip install 'bcgd_jax\[tfds\]', or set data_dir",
      ),
    ):
      self._load(name)

  def _load_unprepared(self, prepare):
    """Loads cifar10 as if TensorFlow were there, with `prepare` for TFDS's preparation."""
    with (
      mock.patch.object(importlib.util, "find_spec", return_value=object()),
      mock.patch.object(tfds.builder_cls("cifar10"), "download_and_prepare", prepare),
    ):
      return self._load("cifar10")

  def test_download_fails(self):
    def prepare(builder, **kwargs):
      raise ConnectionError("no route to host")

    with self.assertRaisesRegex(
      UsageError, r"'cifar10' could not be downloaded .* \(ConnectionError: no route to host\)"
    ):
      self._load_unprepared(prepare)

  def test_prepares_in_a_random_access_format(self):
    formats = []

    def prepare(builder, **kwargs):
      formats.append(kwargs["file_format"])
      self._write_cifar10()

    self.assertLen(self._load_unprepared(prepare).train, 30)
    self.assertEqual(formats, ["array_record"])

  def test_other_process_prepared_it_meanwhile(self):
    def prepare(builder, **kwargs):
      self._write_cifar10()
      raise OSError("Directory not empty")

    self.assertLen(self._load_unprepared(prepare).train, 30)


if __name__ == "__main__":
  absltest.main()
