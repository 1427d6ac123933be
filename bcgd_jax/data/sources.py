"""Random-access sources of {"image": uint8 [H, W, C], "label": int} examples."""

import operator
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds

from bcgd_jax.data import builders

# Decoded images up to this size in all are kept in memory: CIFAR-10's take 150 MiB.
MAX_CACHED_BYTES = 512 * 2**20


class ImageSource(Protocol):
  """A sequence of examples {"image": uint8 [H, W, C], "label": int}; reading is thread-safe."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]: ...


class TfdsSource:
  """One split of a prepared TFDS dataset in a random-access format; decodes on every access."""

  def __init__(self, builder_dir: Path, split: str) -> None:
    builder = tfds.builder_from_directory(builder_dir)
    self.image_shape: tuple[int, int, int] = builder.info.features["image"].shape
    self._features = builder.info.features
    self._records = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    return self.decode(self._records[check_index(index, len(self))])

  def read_records(self) -> list[bytes]:
    """All records, undecoded; in one call a tenth of the time of reading them one by one."""
    return self._records.__getitems__(range(len(self)))

  def decode(self, record: bytes) -> dict[str, Any]:
    """The example of a record."""
    # The image is decoded with Pillow here: TFDS would choose OpenCV where that is installed.
    decoders = {"image": tfds.decode.SkipDecoding()}
    example = self._features.deserialize_example_np(record, decoders=decoders)
    image = builders.decode_image(example["image"], num_channels=self.image_shape[-1])
    return {"image": image, "label": int(example["label"])}


class CachedSource:
  """Keeps a small split in memory: its records from the first access on, decoded when first read.

  Small PNG files are read and decoded at a few thousand a second, slower than small networks train;
  from the second epoch on examples are views of one array. Measured for 60,000 images of 28x28,
  padded, cropped and flipped: 0.5 s for the first access, 6,000 images a CPU second in the first
  epoch, 25,000 later. Pickling, as for a worker process, leaves the memory behind: each worker
  fills its own.
  """

  def __init__(self, source: TfdsSource) -> None:
    self._source = source
    num_examples = len(source)
    # Pages of an uninitialised array take no memory until they are written.
    self._images = np.empty((num_examples, *source.image_shape), np.uint8)
    self._labels = np.empty(num_examples, np.int32)
    self._is_decoded = np.zeros(num_examples, np.bool_)
    self._records: list[bytes] | None = None  # b"" where decoded
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    position = check_index(index, len(self))
    if not self._is_decoded[position]:
      with self._lock:
        self._decode(position)
    image = self._images[position]
    image.flags.writeable = False  # a view: writing would change the cache
    return {"image": image, "label": int(self._labels[position])}

  def _decode(self, position: int) -> None:
    if self._is_decoded[position]:
      return  # another thread was first
    if self._records is None:
      self._records = self._source.read_records()
    example = self._source.decode(self._records[position])
    self._records[position] = b""
    self._images[position] = example["image"]
    self._labels[position] = example["label"]
    self._is_decoded[position] = True  # last: read without the lock

  def __reduce__(self) -> tuple[type["CachedSource"], tuple[TfdsSource]]:
    return CachedSource, (self._source,)


class SubsetSource:
  """Examples of another source at the given positions, in their order."""

  def __init__(self, source: ImageSource, positions: Sequence[int] | np.ndarray) -> None:
    self._source = source
    self._positions = np.asarray(positions, np.int64)

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    return self._source[int(self._positions[check_index(index, len(self))])]


def check_index(index: SupportsIndex, length: int) -> int:
  """The index as an int; raises IndexError unless it is in [0, length)."""
  position = operator.index(index)
  if not 0 <= position < length:
    raise IndexError(f"index must be in [0, {length - 1}], got {position}")
  return position
