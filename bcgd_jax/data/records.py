"""Labelled image files by index, encoded: an image folder, or records in TFDS's layout."""

import hashlib
import os
import resource
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds

from bcgd_jax.errors import UsageError

_SUFFIXES = (b".jpeg", b".jpg", b".png")
_MAX_LISTED = 5
_OTHER_FILES = 512  # of a training process: sockets, pipes of workers, event files


class Records(Protocol):
  """A sequence of (file, label); reading is thread-safe, pickling cheap."""

  def __len__(self) -> int: ...

  def read(self, index: int) -> tuple[bytes, int]:
    """The file and its label in [0, number of classes)."""
    ...

  def name(self, index: int) -> str:
    """What to call a file in messages."""
    ...


class FolderRecords:
  """folder/CLASS/FILE for every image file, by class and file name; labels count the classes.

  Classes and files are in torchvision's order.
  """

  def __init__(self, folder: Path) -> None:
    """
    Raises:
      UsageError: if there are no classes, or one without images.
      OSError: if something cannot be read.
    """
    self._folder = os.fsencode(folder)
    names, labels, empty = [], [], []
    content = hashlib.sha256()
    with os.scandir(self._folder) as entries:
      classes = sorted(entry.name for entry in entries if entry.is_dir())
    for label, class_name in enumerate(classes):
      with os.scandir(os.path.join(self._folder, class_name)) as entries:
        found = sorted(
          (entry.name, entry.stat().st_size)
          for entry in entries
          if entry.name.lower().endswith(_SUFFIXES) and not entry.is_dir()
        )
      names += [os.path.join(class_name, name) for name, _ in found]
      labels += [label] * len(found)
      content.update(repr((class_name, found)).encode())
      if not found:
        empty.append(os.fsdecode(class_name))
    if not classes:
      raise UsageError(f"{folder} must hold one folder a class, got none")
    if empty:
      raise UsageError(
        f"{folder} must hold images (.jpeg, .jpg, .png) in every class, got none in "
        f"{list_some(empty)}"
      )
    self.classes = [os.fsdecode(name) for name in classes]
    # one array each: a million Python strings would take a worker's memory and start
    self._names, self._labels = np.array(names), np.array(labels, np.int32)
    # Of names and sizes: it tells a folder from its copy with smaller images.
    self.digest = content.hexdigest()

  def __len__(self) -> int:
    return len(self._labels)

  def read(self, index: int) -> tuple[bytes, int]:
    with open(os.path.join(self._folder, bytes(self._names[index])), "rb") as file:
      return file.read(), int(self._labels[index])

  def name(self, index: int) -> str:
    return os.fsdecode(os.path.join(self._folder, bytes(self._names[index])))


class TfdsRecords:
  """One split of an image dataset prepared in TFDS's layout, in a random-access format."""

  def __init__(self, builder_dir: Path, split: str) -> None:
    """
    Raises:
      UsageError: if this process may not open as many files as there are.
    """
    builder = tfds.builder_from_directory(builder_dir)
    _allow_open_files(sum(info.num_shards for info in builder.info.splits.values()), builder_dir)
    self._split = f"{builder_dir.name}:{split}"
    self._features = builder.info.features
    self._records = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )

  def __len__(self) -> int:
    return len(self._records)

  def read(self, index: int) -> tuple[bytes, int]:
    example = self._example(index)
    return bytes(example["image"]), int(example["label"])

  def name(self, index: int) -> str:
    found = self._example(index).get("file_name", b"")
    return f"record {index} of {self._split} {os.fsdecode(found)}".rstrip()

  def _example(self, index: int) -> dict:
    decoders = {"image": tfds.decode.SkipDecoding()}
    example: dict = self._features.deserialize_example_np(self._records[index], decoders=decoders)
    return example


def _allow_open_files(count: int, folder: Path) -> None:
  """Raises the limit of open files of this process and those it starts, where it is too low.

  Every file of records that was read from stays open. Most systems begin with a limit of 1024,
  which the thousand files of ImageNet use up.
  """
  wanted = count + _OTHER_FILES
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY or soft >= wanted:
    return
  if hard != resource.RLIM_INFINITY and hard < wanted:
    raise UsageError(
      f"the limit of open files must be at least {wanted} to read the {count} files of {folder}, "
      f"got {hard}: raise it (ulimit -Hn, as root), or use an image folder"
    )
  resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_image_folder(manual_dir: Path) -> tuple[FolderRecords, FolderRecords]:
  """The training and the validation images of a folder with train/ and val/ (or validation/).

  Raises:
    UsageError: if a folder is missing, cannot be read or there are two for validation, or their
      classes differ.
  """
  if not manual_dir.is_dir():
    raise UsageError(f"manual_dir must be a folder with train/ and val/, got {manual_dir}")
  train = manual_dir / "train"
  found = [manual_dir / name for name in ("val", "validation") if (manual_dir / name).is_dir()]
  if not train.is_dir() or len(found) != 1:
    raise UsageError(
      f"manual_dir must hold train/ and one of val/ and validation/, got {manual_dir} with "
      f"{sorted(path.name for path in manual_dir.iterdir())[:_MAX_LISTED]}"
    )
  try:
    trained, validated = FolderRecords(train), FolderRecords(found[0])
  except OSError as error:
    raise UsageError(f"manual_dir must be a folder that can be read: {error}") from error
  for here, there, where in (
    (validated, trained, found[0]),
    (trained, validated, train),
  ):
    missing = sorted(set(there.classes) - set(here.classes))
    if missing:
      raise UsageError(
        f"{where} must have the same classes as the other split, but lacks {list_some(missing)}"
      )
  return trained, validated


def list_some(names: list[str]) -> str:
  """The first few of some names, and how many there are."""
  more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
  return f"{', '.join(names[:_MAX_LISTED])}{more}"
