import collections
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import grain
import numpy as np
from absl.testing import absltest, parameterized

from bcgd_jax import data
from bcgd_jax.data import pipeline
from bcgd_jax.errors import UsageError

_ROOT = pathlib.Path(__file__).parents[2]
_NUM_EXAMPLES = 50


class NumberedSource:
  """Random images; the label of an example is its position."""

  def __init__(self, num_examples):
    rng = np.random.default_rng(0)
    self.images = rng.integers(1, 256, (num_examples, 6, 5, 1), np.uint8)
    self.num_reads = 0

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    self.num_reads += 1
    return {"image": self.images[index], "label": index}


def _dataset(num_examples=_NUM_EXAMPLES):
  info = data.DatasetInfo(
    name="digits",
    full_name="digits",
    image_shape=(6, 5, 1),
    class_names=tuple(map(str, range(num_examples))),
  )
  source = NumberedSource(num_examples)
  return data.Dataset(info=info, train=source, validation=source, test=source)


def _options(**kwargs):
  return data.DataOptions(
    **{"dataset": "digits", "batch_size": 8, "eval_batch_size": 8, "pad": 2, "flip": True, **kwargs}
  )


def _take(num_batches, *, dataset=None, start_step=0, index=0, count=1, **options):
  with data.train_batches(
    dataset or _dataset(),
    _options(**options),
    start_step=start_step,
    process_index=index,
    process_count=count,
  ) as batches:
    return [next(batches) for _ in range(num_batches)]


def _labels(batches):
  return np.concatenate([batch["label"] for batch in batches])


class PipelineTestCase(parameterized.TestCase):
  def _assert_equal(self, first, second):
    self.assertEqual(len(first), len(second))
    for a, b in zip(first, second, strict=True):
      self.assertEqual(set(a), set(b))
      for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        self.assertEqual(a[key].dtype, b[key].dtype)


class TrainBatchesTest(PipelineTestCase):
  def test_shapes_and_types(self):
    (batch,) = _take(1)
    self.assertEqual(set(batch), {"image", "label"})
    self.assertEqual((batch["image"].shape, batch["image"].dtype), ((8, 6, 5, 1), np.uint8))
    self.assertEqual((batch["label"].shape, batch["label"].dtype), ((8,), np.int32))

  def test_every_example_once_an_epoch_in_new_orders(self):
    # 200 batches of 8 are 32 epochs of 50; most epochs begin within a batch.
    epochs = _labels(_take(200)).reshape(-1, _NUM_EXAMPLES)
    for epoch in epochs:
      self.assertEqual(sorted(epoch), list(range(_NUM_EXAMPLES)))
    self.assertLen({tuple(epoch) for epoch in epochs}, 32)

  def test_batch_larger_than_the_dataset(self):
    (batch,) = _take(1, dataset=_dataset(num_examples=3), batch_size=8)
    counts = collections.Counter(batch["label"].tolist())
    self.assertEqual(sorted(counts.values()), [2, 3, 3])

  def test_same_seed_same_batches(self):
    self._assert_equal(_take(10, seed=5), _take(10, seed=5))

  def test_neighbouring_seeds_share_no_epoch(self):
    # A seed simply added to the number of the epoch would make seed 1 repeat seed 0 from its
    # second epoch on.
    epochs = [
      tuple(epoch)
      for seed in range(4)
      for epoch in _labels(_take(50, seed=seed)).reshape(-1, _NUM_EXAMPLES)
    ]
    self.assertLen(set(epochs), 32)

  @parameterized.parameters(2, 4, 8)
  def test_processes_share_the_batch_of_one(self, count):
    whole = _take(20)
    parts = [_take(20, index=index, count=count) for index in range(count)]
    self.assertEqual(parts[0][0]["label"].shape, (8 // count,))
    joined = [
      {key: np.concatenate([part[t][key] for part in parts]) for key in whole[t]} for t in range(20)
    ]
    self._assert_equal(joined, whole)

  @parameterized.product(start_step=(1, 7, 19), count=(1, 2))
  def test_start_step_drops_batches(self, start_step, count):
    whole = _take(20, index=count - 1, count=count)
    rest = _take(20 - start_step, start_step=start_step, index=count - 1, count=count)
    self._assert_equal(rest, whole[start_step:])

  def test_late_start_reads_only_what_it_yields(self):
    dataset = _dataset()
    late = _take(2, dataset=dataset, start_step=10**6)
    # 2 batches taken and at most 4 more read ahead, each of 8.
    self.assertLessEqual(dataset.train.num_reads, 6 * 8)
    self._assert_equal(_take(1, start_step=10**6 + 1), late[1:])

  @parameterized.parameters(0, 1, 4)
  def test_independent_of_threads(self, num_threads):
    expected = _take(20)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    with mock.patch.object(pipeline, "_READ_OPTIONS", options):
      self._assert_equal(_take(20), expected)


class AugmentationTest(PipelineTestCase):
  def test_order_does_not_depend_on_it(self):
    np.testing.assert_array_equal(_labels(_take(20)), _labels(_take(20, pad=0, flip=False)))

  def test_off(self):
    dataset = _dataset()
    for batch in _take(10, dataset=dataset, pad=0, flip=False):
      np.testing.assert_array_equal(batch["image"], dataset.train.images[batch["label"]])

  def test_every_image_is_a_crop_and_choices_vary(self):
    dataset = _dataset()
    seen = collections.defaultdict(set)
    for batch in _take(100, dataset=dataset, pad=1):
      for image, label in zip(batch["image"], batch["label"].tolist(), strict=True):
        padded = np.pad(dataset.train.images[label], ((1, 1), (1, 1), (0, 0)))
        choices = {
          padded[y : y + 6, x : x + 5][:, ::step].tobytes(): (y, x, step)
          for y in range(3)
          for x in range(3)
          for step in (1, -1)
        }
        seen[label].add(choices[image.tobytes()])
    # 16 draws of 18 choices an example: 10.8 different ones expected.
    self.assertGreater(np.mean([len(found) for found in seen.values()]), 9)

  def test_flips_half(self):
    dataset = _dataset()
    flipped = 0
    for batch in _take(100, dataset=dataset, pad=0):
      is_same = batch["image"] == dataset.train.images[batch["label"]]
      flipped += np.sum(~is_same.all(axis=(1, 2, 3)))
    # 800 draws: 400 expected, standard deviation 14; 5 of them.
    self.assertBetween(flipped, 330, 470)


class EvalBatchesTest(PipelineTestCase):
  def _take(self, num_examples, *, batch_size, index=0, count=1):
    source = NumberedSource(num_examples)
    with data.eval_batches(
      source, batch_size=batch_size, process_index=index, process_count=count
    ) as batches:
      return source, list(batches)

  @parameterized.parameters((50, 16, 4), (48, 16, 3), (1, 16, 1), (17, 16, 2))
  def test_every_example_once_in_order(self, num_examples, batch_size, num_batches):
    source, batches = self._take(num_examples, batch_size=batch_size)
    self.assertLen(batches, num_batches)
    for batch in batches:
      self.assertEqual(batch["image"].shape, (batch_size, 6, 5, 1))
      self.assertEqual((batch["mask"].shape, batch["mask"].dtype), ((batch_size,), np.bool_))
      self.assertEqual(batch["label"].dtype, np.int32)
    mask = np.concatenate([batch["mask"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(_labels(batches)[mask], np.arange(num_examples))
    np.testing.assert_array_equal(images[mask], source.images)
    self.assertFalse(images[~mask].any())
    self.assertFalse(_labels(batches)[~mask].any())

  @parameterized.product(num_examples=(50, 48, 1), count=(2, 4))
  def test_processes_share_the_batches_of_one(self, num_examples, count):
    _, whole = self._take(num_examples, batch_size=16)
    parts = [
      self._take(num_examples, batch_size=16, index=index, count=count)[1] for index in range(count)
    ]
    self.assertEqual({len(part) for part in parts}, {len(whole)})
    joined = [
      {key: np.concatenate([part[i][key] for part in parts]) for key in batch}
      for i, batch in enumerate(whole)
    ]
    self._assert_equal(joined, whole)

  def test_first_batches_alone_are_read(self):
    _, whole = self._take(50, batch_size=16, index=1, count=2)
    source = NumberedSource(50)
    with data.eval_batches(
      source, batch_size=16, process_index=1, process_count=2, num_batches=2
    ) as batches:
      self._assert_equal(list(batches), whole[:2])
    self.assertEqual(source.num_reads, 2 * 8)

  def test_empty_source(self):
    self.assertEqual(self._take(0, batch_size=16)[1], [])


class ArgumentsTest(PipelineTestCase):
  def test_batch_size_over_processes(self):
    with self.assertRaisesRegex(
      UsageError, "^batch_size must be a multiple of the number of processes, 3, got 8"
    ):
      _take(1, count=3)
    with self.assertRaisesRegex(UsageError, "^eval_batch_size must be a multiple .* 3, got 8"):
      data.eval_batches(NumberedSource(5), batch_size=8, process_count=3)

  @parameterized.parameters(0, -4)
  def test_eval_batch_size(self, batch_size):
    with self.assertRaisesRegex(
      UsageError, f"eval_batch_size must be at least 1, got {batch_size}"
    ):
      data.eval_batches(NumberedSource(5), batch_size=batch_size)

  @parameterized.parameters((-1, 2), (2, 2), (0, 0))
  def test_process_index(self, index, count):
    with self.assertRaisesRegex(ValueError, r"process_index must be in \[0, process_count\), got"):
      _take(1, index=index, count=count)

  def test_start_step(self):
    with self.assertRaisesRegex(ValueError, "start_step must be at least 0, got -1"):
      _take(1, start_step=-1)


class CloseTest(PipelineTestCase):
  def test_is_at_its_end_once_closed(self):
    batches = data.train_batches(_dataset(), _options(), start_step=0)
    next(batches)
    batches.close()
    batches.close()
    self.assertIsNone(next(batches, None))


_WORKERS_SCRIPT = """
import dataclasses, hashlib, os, signal
from bcgd_jax import data
options = data.DataOptions(**{options!r})
dataset = data.load_dataset(options)
for num_workers in (1, 2):
  options = dataclasses.replace(options, num_workers=num_workers)
  digest = hashlib.sha256()
  batches = data.train_batches(dataset, options, start_step=3)
  for _ in range(30):
    batch = next(batches)
    digest.update(batch["image"].tobytes() + batch["label"].tobytes())
  print(digest.hexdigest(), flush=True)
  if num_workers == 1:
    batches.close()
os.kill(os.getpid(), signal.SIGKILL)
"""


class WorkersTest(PipelineTestCase):
  def test_batches_do_not_depend_on_workers_which_end_with_their_parent(self):
    options = {
      "dataset": "digits",
      "data_dir": self.enterContext(tempfile.TemporaryDirectory()),
      "batch_size": 8,
      "eval_batch_size": 8,
      "pad": 1,
      "flip": True,
    }
    parsed = data.DataOptions(**options)
    digest = hashlib.sha256()
    with data.train_batches(data.load_dataset(parsed), parsed, start_step=3) as batches:
      for _ in range(30):
        batch = next(batches)
        digest.update(batch["image"].tobytes() + batch["label"].tobytes())
    # A program that has not parsed absl's flags. Its workers inherit the pipe of its output, so
    # this returns only when they too have ended.
    run = subprocess.run(
      [sys.executable, "-W", "error", "-c", _WORKERS_SCRIPT.format(options=options)],
      env={**os.environ, "PYTHONPATH": str(_ROOT)},
      capture_output=True,
      timeout=240,
      check=False,
      text=True,
    )
    self.assertEqual(run.stdout.split(), [digest.hexdigest()] * 2, msg=run.stderr)
    self.assertEqual(run.returncode, -signal.SIGKILL)


if __name__ == "__main__":
  absltest.main()
