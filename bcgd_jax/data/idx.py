"""Folders of MNIST-format (idx) files as TFDS datasets: MNIST, Fashion-MNIST, KMNIST..."""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bcgd_jax.data import builders
from bcgd_jax.errors import UsageError

# Magic number: 0, 0, 8 (unsigned bytes), number of dimensions.
_IMAGE_MAGIC = 0x00000803
_LABEL_MAGIC = 0x00000801
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_PREFIXES = {"train": "train", "test": "t10k"}
# The files name no classes. Training labels that are known to be a dataset's, by their sha256, have
# the names that its authors give them.
_CLASS_NAMES = {
  "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7": (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
  )
}


class Idx(builders.ArrayBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Grey images [H, W, 1] and labels of four idx files."""


def prepare_idx(root: Path, *, manual_dir: Path) -> Path:
  """Prepares the files of `manual_dir` under `root` where they are not, and returns the directory.

  The directory is named by a digest of the four files as they lie on disk: other files never reuse
  it, wherever they are.

  Args:
    root: TFDS data directory, local.
    manual_dir: holds {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, each plain
      or with .gz; where both exist the plain one is read.
  Raises:
    UsageError: as `read_idx_folder`.
  """
  files = _read_files(manual_dir)
  target = _target(root, files)
  builders.prepare(Idx, target, data_fn=lambda: _parse_files(files))
  return target


def find_idx(root: Path, *, manual_dir: Path) -> tuple[Path, builders.ArrayData]:
  """The directory that `prepare_idx` would return, and what the files hold; prepares nothing."""
  files = _read_files(manual_dir)
  return _target(root, files), _parse_files(files)


def read_class_names(manual_dir: Path) -> tuple[str, ...]:
  """The names of the classes, by label: Fashion-MNIST's, otherwise the labels as text.

  Raises:
    UsageError: as `read_idx_folder`, of the training labels alone.
  """
  path = _find_file(manual_dir, f"{_PREFIXES['train']}-{_LABELS}")
  return find_class_names(parse_idx(_read_file(path), path=path, magic=_LABEL_MAGIC))


def find_class_names(labels: np.ndarray) -> tuple[str, ...]:
  """The names that belong to training labels, uint8 [N]; see `read_class_names`."""
  numbers = tuple(map(str, range(int(labels.max()) + 1)))
  return _CLASS_NAMES.get(hashlib.sha256(labels.tobytes()).hexdigest(), numbers)


def read_idx_folder(manual_dir: Path) -> builders.ArrayData:
  """Reads and checks a folder of four idx files, named as for `prepare_idx`.

  Returns:
    "train" and "test": images [N, H, W, 1], uint8; labels [N], uint8. num_classes is one more than
    the greatest training label.
  Raises:
    UsageError: names file, rule and value; for a file that is missing, unreadable, truncated (also
      inside the gzip stream), longer than its header says, of another kind or empty; images and
      labels that differ in number, or splits in image size; training labels that leave out a
      class below the greatest; a test label that no training example has.
  """
  return _parse_files(_read_files(manual_dir))


def _read_files(manual_dir: Path) -> dict[str, tuple[Path, bytes]]:
  """Maps "train-images" and so on to the file's path and its bytes on disk."""
  if not manual_dir.is_dir():
    raise UsageError(f"manual_dir must be a folder of MNIST-format files, got {manual_dir}")
  files = {}
  for split, prefix in _PREFIXES.items():
    for name in (_IMAGES, _LABELS):
      path = _find_file(manual_dir, f"{prefix}-{name}")
      files[f"{split}-{name.partition('-')[0]}"] = (path, _read_file(path))
  return files


def _read_file(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise UsageError(f"{path} must be readable: {error.strerror}") from error


def _find_file(folder: Path, name: str) -> Path:
  for path in (folder / name, folder / f"{name}.gz"):
    if path.is_file():
      return path
  raise UsageError(f"{folder / name} is missing: manual_dir must hold it, plain or with .gz")


def _target(root: Path, files: Mapping[str, tuple[Path, bytes]]) -> Path:
  return root / Idx.name / _digest(files) / str(Idx.VERSION)


def _digest(files: Mapping[str, tuple[Path, bytes]]) -> str:
  digest = hashlib.sha256()
  for name, (_, data) in sorted(files.items()):
    digest.update(f"{name} {len(data)}\n".encode())
    digest.update(data)
  return digest.hexdigest()[:16]


def _parse_files(files: Mapping[str, tuple[Path, bytes]]) -> builders.ArrayData:
  splits = {}
  for split in _PREFIXES:
    images_path, images_data = files[f"{split}-images"]
    labels_path, labels_data = files[f"{split}-labels"]
    images = parse_idx(images_data, path=images_path, magic=_IMAGE_MAGIC)
    labels = parse_idx(labels_data, path=labels_path, magic=_LABEL_MAGIC)
    if len(images) != len(labels):
      raise UsageError(
        f"{labels_path} must hold one label for each of the {len(images)} images of"
        f" {images_path}, got {len(labels)} labels"
      )
    splits[split] = builders.LabeledImages(images[..., np.newaxis], labels)
  _check_image_sizes(splits, files)
  return builders.ArrayData(splits, num_classes=_check_labels(splits, files))


def parse_idx(data: bytes, *, path: Path, magic: int) -> np.ndarray:
  """The array of an idx file of unsigned bytes.

  Args:
    data: the file as it lies on disk.
    path: for messages; its suffix .gz says that data is compressed.
    magic: the magic number it must start with, big-endian; its low byte is the array's rank.
  Returns:
    uint8 array of the header's shape.
  Raises:
    UsageError: names file, rule and value.
  """
  if path.suffix == ".gz":
    data = _decompress(data, path)
  rank = magic & 0xFF
  header_size = 4 + 4 * rank
  if len(data) < header_size:
    raise UsageError(f"{path} is truncated: its header takes {header_size} bytes, got {len(data)}")
  found, *shape = struct.unpack(f">{1 + rank}I", data[:header_size])
  if found != magic:
    raise UsageError(f"{path} must start with the magic number {magic:#010x}, got {found:#010x}")
  if 0 in shape:
    raise UsageError(f"{path} is empty: every dimension must be at least 1, got {tuple(shape)}")
  expected_size = header_size + math.prod(shape)
  if len(data) != expected_size:
    fault = "is truncated" if len(data) < expected_size else "is too long"
    raise UsageError(
      f"{path} {fault}: its header says shape {tuple(shape)}, {expected_size} bytes in all,"
      f" got {len(data)}"
    )
  return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)


def _decompress(data: bytes, path: Path) -> bytes:
  try:
    return gzip.decompress(data)
  except EOFError as error:
    raise UsageError(f"{path} is truncated: its gzip stream of {len(data)} bytes ends early") from (
      error
    )
  except (gzip.BadGzipFile, zlib.error) as error:
    raise UsageError(f"{path} must be a valid gzip file: {error}") from error


def _check_image_sizes(
  splits: Mapping[str, builders.LabeledImages], files: Mapping[str, tuple[Path, bytes]]
) -> None:
  train_size, test_size = (splits[split].images.shape[1:3] for split in ("train", "test"))
  if train_size != test_size:
    raise UsageError(
      f"{files['test-images'][0]} must hold images of the training images' size {train_size},"
      f" got {test_size}"
    )


def _check_labels(
  splits: Mapping[str, builders.LabeledImages], files: Mapping[str, tuple[Path, bytes]]
) -> int:
  """Returns the number of classes."""
  present = np.unique(splits["train"].labels)
  num_classes = int(present[-1]) + 1
  if len(present) != num_classes:
    missing = sorted(set(range(num_classes)) - set(present.tolist()))
    raise UsageError(
      f"{files['train-labels'][0]} must hold every label from 0 to its greatest,"
      f" {num_classes - 1}; missing: {missing}"
    )
  greatest = int(splits["test"].labels.max())
  if greatest >= num_classes:
    raise UsageError(
      f"{files['test-labels'][0]} must hold labels of the training split alone, in"
      f" [0, {num_classes - 1}], got {greatest}"
    )
  return num_classes
