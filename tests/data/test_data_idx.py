import gzip
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized

from bcgd_jax import data
from bcgd_jax.data import builders, idx
from bcgd_jax.errors import UsageError

_ROOT = pathlib.Path(__file__).parents[2]
_TRAIN_IMAGES = "train-images-idx3-ubyte"
_TRAIN_LABELS = "train-labels-idx1-ubyte"
_TEST_IMAGES = "t10k-images-idx3-ubyte"
_TEST_LABELS = "t10k-labels-idx1-ubyte"


def _idx_bytes(array):
  return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def _arrays(num_train=12, num_test=6, seed=0):
  rng = np.random.default_rng(seed)
  return {
    _TRAIN_IMAGES: rng.integers(0, 256, (num_train, 5, 4), np.uint8),
    _TRAIN_LABELS: (np.arange(num_train) % 3).astype(np.uint8),
    _TEST_IMAGES: rng.integers(0, 256, (num_test, 5, 4), np.uint8),
    _TEST_LABELS: (np.arange(num_test) % 3).astype(np.uint8),
  }


def _write_folder(folder, arrays, *, compress=False):
  folder.mkdir(parents=True, exist_ok=True)
  for name, array in arrays.items():
    content = _idx_bytes(array)
    path = folder / (f"{name}.gz" if compress else name)
    path.write_bytes(gzip.compress(content, mtime=0) if compress else content)
  return folder


def _truncate(path, num_bytes):
  path.write_bytes(path.read_bytes()[:-num_bytes])


class IdxTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tmp = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _options(self, folder):
    return data.DataOptions(
      dataset="idx",
      data_dir=str(self.tmp / "tfds"),
      manual_dir=str(folder),
      batch_size=4,
      eval_batch_size=4,
    )

  def _load(self, folder):
    return data.load_dataset(self._options(folder))


class ReadTest(IdxTestCase):
  @parameterized.parameters(False, True)
  def test_loads_what_the_files_hold(self, compress):
    arrays = _arrays()
    dataset = self._load(_write_folder(self.tmp / "in", arrays, compress=compress))
    self.assertEqual(dataset.info.name, "idx")
    self.assertEqual(dataset.info.image_shape, (5, 4, 1))
    self.assertEqual(dataset.info.num_classes, 3)
    self.assertLen(dataset.train, 12)
    test = [dataset.test[i] for i in range(len(dataset.test))]
    np.testing.assert_array_equal([e["image"][..., 0] for e in test], arrays[_TEST_IMAGES])
    np.testing.assert_array_equal([e["label"] for e in test], arrays[_TEST_LABELS])
    # The training split comes permuted: compare as sets of (image, label).
    train = {(e["image"].tobytes(), e["label"]) for e in map(dataset.train.__getitem__, range(12))}
    expected = zip(arrays[_TRAIN_IMAGES], arrays[_TRAIN_LABELS].tolist(), strict=True)
    self.assertEqual(train, {(image.tobytes(), label) for image, label in expected})

  def test_info_without_preparing(self):
    folder = _write_folder(self.tmp / "in", _arrays())
    info = data.dataset_info(self._options(folder))
    self.assertFalse((self.tmp / "tfds").exists())
    self.assertEqual(info, self._load(folder).info)

  def test_plain_file_wins_over_compressed(self):
    folder = _write_folder(self.tmp / "in", _arrays(seed=0))
    _write_folder(folder, _arrays(seed=1), compress=True)
    read = idx.read_idx_folder(folder)
    np.testing.assert_array_equal(
      read.splits["train"].images[..., 0], _arrays(seed=0)[_TRAIN_IMAGES]
    )

  def test_debian_fashion_mnist(self):
    folder = pathlib.Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
      self.skipTest("the package dataset-fashion-mnist is not installed")
    read = idx.read_idx_folder(folder)
    self.assertEqual(read.splits["train"].images.shape, (60000, 28, 28, 1))
    self.assertEqual(read.splits["test"].images.shape, (10000, 28, 28, 1))
    self.assertEqual(read.num_classes, 10)
    names = idx.read_class_names(folder)
    self.assertEqual((len(names), names[0], names[9]), (10, "T-shirt/top", "Ankle boot"))

  def test_classes_without_names_are_numbers(self):
    info = self._load(_write_folder(self.tmp / "in", _arrays(), compress=True)).info
    self.assertEqual(info.class_names, ("0", "1", "2"))


class ErrorTest(IdxTestCase):
  """Each error names the file, the rule and the value."""

  def _assert_rejected(self, folder, message):
    with self.assertRaisesRegex(UsageError, message):
      self._load(folder)
    self.assertFalse((self.tmp / "tfds").exists())  # nothing was written

  @parameterized.named_parameters(
    (
      "count",
      {_TRAIN_LABELS: np.zeros(11, np.uint8)},
      f"{_TRAIN_LABELS} must hold one label for each of the 12 images .* got 11 labels",
    ),
    (
      "gap",
      {_TRAIN_LABELS: (np.arange(12) % 3 * 2).astype(np.uint8)},
      rf"{_TRAIN_LABELS} must hold every label from 0 .* 4; missing: \[1, 3\]",
    ),
    (
      "test_label",
      {_TEST_LABELS: np.full(6, 3, np.uint8)},
      rf"{_TEST_LABELS} must hold labels .* in \[0, 2\], got 3",
    ),
    (
      "test_size",
      {_TEST_IMAGES: np.zeros((6, 4, 4), np.uint8)},
      rf"{_TEST_IMAGES} must hold images .* size \(5, 4\), got \(4, 4\)",
    ),
    (
      "empty",
      {_TEST_IMAGES: np.zeros((0, 5, 4), np.uint8), _TEST_LABELS: np.zeros(0, np.uint8)},
      rf"{_TEST_IMAGES} is empty: .* got \(0, 5, 4\)",
    ),
    (
      "magic",
      {_TRAIN_IMAGES: np.zeros((12, 5, 4, 1), np.uint8)},
      f"{_TRAIN_IMAGES} must start with the magic number 0x00000803, got 0x00000804",
    ),
  )
  def test_content(self, change, message):
    self._assert_rejected(_write_folder(self.tmp / "in", {**_arrays(), **change}), message)

  def test_missing_folder(self):
    self._assert_rejected(self.tmp / "no", "manual_dir must be a folder of MNIST-format .*/no")

  def test_missing_file(self):
    folder = _write_folder(self.tmp / "in", _arrays())
    (folder / _TEST_LABELS).unlink()
    self._assert_rejected(folder, f"{_TEST_LABELS} is missing: manual_dir must hold it")

  @parameterized.named_parameters(
    ("data", 1, r"is truncated: its header says shape \(12, 5, 4\), 256 bytes in all, got 255"),
    ("header", 241, "is truncated: its header takes 16 bytes, got 15"),
    ("all", 256, "is truncated: its header takes 16 bytes, got 0"),
  )
  def test_truncated(self, num_bytes, message):
    folder = _write_folder(self.tmp / "in", _arrays())
    _truncate(folder / _TRAIN_IMAGES, num_bytes)
    self._assert_rejected(folder, f"{_TRAIN_IMAGES} {message}")

  def test_too_long(self):
    folder = _write_folder(self.tmp / "in", _arrays())
    path = folder / _TRAIN_LABELS
    path.write_bytes(path.read_bytes() + b"\0")
    self._assert_rejected(folder, f"{_TRAIN_LABELS} is too long: .* 20 bytes in all, got 21")

  def test_truncated_gzip(self):
    folder = _write_folder(self.tmp / "in", _arrays(), compress=True)
    _truncate(folder / f"{_TRAIN_IMAGES}.gz", 20)
    self._assert_rejected(
      folder, rf"{_TRAIN_IMAGES}\.gz is truncated: its gzip stream of \d+ bytes"
    )

  def test_not_gzip(self):
    folder = _write_folder(self.tmp / "in", _arrays(), compress=True)
    (folder / f"{_TEST_LABELS}.gz").write_bytes(b"<html>not found</html>")
    self._assert_rejected(folder, rf"{_TEST_LABELS}\.gz must be a valid gzip file")

  def test_flipped_byte_in_gzip(self):
    folder = _write_folder(self.tmp / "in", _arrays(), compress=True)
    path = folder / f"{_TRAIN_IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[60] ^= 0x01
    path.write_bytes(content)
    self._assert_rejected(folder, rf"{_TRAIN_IMAGES}\.gz must be a valid gzip file")


class PrepareTest(IdxTestCase):
  def _prepared(self):
    return sorted(self.tmp.glob("tfds/idx/*/1.0.0"))

  def test_keyed_to_content_not_place(self):
    first = self._load(_write_folder(self.tmp / "a", _arrays(seed=0)))
    same = self._load(_write_folder(self.tmp / "b", _arrays(seed=0)))
    self.assertEqual(first.info, same.info)
    self.assertLen(self._prepared(), 1)
    # Other files in the first folder: its prepared copy must not be taken for them.
    changed = self._load(_write_folder(self.tmp / "a", _arrays(seed=1)))
    self.assertNotEqual(first.info.full_name, changed.info.full_name)
    self.assertLen(self._prepared(), 2)
    np.testing.assert_array_equal(
      changed.test[0]["image"][..., 0], _arrays(seed=1)[_TEST_IMAGES][0]
    )

  def test_second_load_writes_nothing(self):
    folder = _write_folder(self.tmp / "in", _arrays())
    self._load(folder)
    before = {path: path.stat().st_mtime_ns for path in (self.tmp / "tfds").rglob("*")}
    self._load(folder)
    after = {path: path.stat().st_mtime_ns for path in (self.tmp / "tfds").rglob("*")}
    self.assertEqual(before, after)

  def test_leaves_nothing_but_the_data(self):
    self._load(_write_folder(self.tmp / "in", _arrays()))
    (directory,) = self._prepared()
    self.assertEqual(list(directory.parent.iterdir()), [directory])

  def test_of_two_at_once_the_later_takes_the_work_of_the_first(self):
    read = idx.read_idx_folder(_write_folder(self.tmp / "in", _arrays()))
    target = self.tmp / "idx" / "digest" / "1.0.0"

    def lose_the_race():
      builders.prepare(idx.Idx, target, data_fn=lambda: read)
      return read

    builders.prepare(idx.Idx, target, data_fn=lose_the_race)
    self.assertLen(tfds.builder_from_directory(target).as_data_source("train"), 12)
    self.assertEqual(list(target.parent.iterdir()), [target])

  def test_directory_that_cannot_be_written(self):
    folder = _write_folder(self.tmp / "in", _arrays())
    (self.tmp / "tfds").write_text("a file where the directory should be")
    with self.assertRaisesRegex(UsageError, "data_dir must be writable to prepare .*/tfds/idx"):
      self._load(folder)

  def test_killed_on_the_way(self):
    folder = _write_folder(self.tmp / "in", _arrays())
    script = f"""
import os, pathlib, signal
from bcgd_jax.data import builders, idx
encode = builders.encode_png
calls = []
def encode_and_die(image):
  calls.append(0)
  if len(calls) == 15:  # in the test split: the training split is written
    os.kill(os.getpid(), signal.SIGKILL)
  return encode(image)
builders.encode_png = encode_and_die
idx.prepare_idx(pathlib.Path({str(self.tmp / "tfds")!r}), manual_dir=pathlib.Path({str(folder)!r}))
"""
    environ = {**os.environ, "PYTHONPATH": str(_ROOT)}
    killed = subprocess.run([sys.executable, "-c", script], env=environ, check=False)
    self.assertEqual(killed.returncode, -signal.SIGKILL)
    self.assertNotEmpty(list(self.tmp.glob("tfds/idx/*/.idx-*")))  # it had begun to write
    self.assertEmpty(self._prepared())
    self.assertLen(self._load(folder).test, 6)


if __name__ == "__main__":
  absltest.main()
