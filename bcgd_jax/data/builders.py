"""TFDS builders for images held in memory, prepared without TensorFlow."""

import contextlib
import dataclasses
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from bcgd_jax.errors import UsageError


class LabeledImages(NamedTuple):
  images: np.ndarray  # [N, H, W, C], uint8, C is 1 or 3
  labels: np.ndarray  # [N], integers


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayData:
  """The splits of a dataset; images of one shape, labels in [0, num_classes)."""

  splits: Mapping[str, LabeledImages]
  num_classes: int


class ArrayBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Writes `ArrayData` in TFDS's layout, examples in the order given, images as PNG.

  TFDS encodes arrays with TensorFlow, but takes encoded bytes as they are: the PNG files are made
  here. Subclasses are not registered with TFDS, which could not construct them without data.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, data: ArrayData, **kwargs: Any) -> None:
    self._data = data
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    image_shape = next(iter(self._data.splits.values())).images.shape[1:]
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=image_shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=self._data.num_classes),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, dict]]]:
    del dl_manager  # nothing is downloaded
    return {name: self._generate_examples(split) for name, split in self._data.splits.items()}

  def _generate_examples(self, split: LabeledImages) -> Iterator[tuple[int, dict]]:
    for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
      yield index, {"image": encode_png(image), "label": int(label)}


def encode_png(image: np.ndarray) -> bytes:
  """PNG file of a uint8 image [H, W, C] with C = 1 or 3."""
  buffer = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="png")
  return buffer.getvalue()


def decode_image(data: bytes, *, num_channels: int) -> np.ndarray:
  """Pixels [H, W, num_channels], uint8, of a PNG or JPEG file; num_channels is 1 or 3."""
  mode = "L" if num_channels == 1 else "RGB"
  # Naming the formats keeps Pillow from trying its other decoders first; convert would copy even
  # where there is nothing to convert. Both show in the time of a small image.
  with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
  return pixels[..., np.newaxis] if num_channels == 1 else pixels


def is_prepared(directory: Path) -> bool:
  return (directory / "dataset_info.json").is_file()


def prepare(
  builder_class: type[ArrayBuilder], target: Path, *, data_fn: Callable[[], ArrayData]
) -> None:
  """Makes `target` a directory that `tfds.builder_from_directory` reads, unless it is one already.

  All is written into a scratch directory with a fresh name beside it, and one rename puts it in
  place: a process killed on the way leaves at most a scratch directory (hidden, named after the
  dataset) that nothing reads, and of two processes preparing at once the later finds the work
  done. TFDS alone does nearly that, but names its scratch by the global `random`, which two
  processes may have seeded alike, and fails in the later one.

  Args:
    builder_class: called with the data and a data_dir.
    target: on a local file system; .../<name>/<anything>/<version>.
    data_fn: called only where there is work to do.
  Raises:
    UsageError: if the directory cannot be written.
  """
  if is_prepared(target):
    return
  data = data_fn()
  logging.info("Preparing %s", target)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      prefix=f".{builder_class.name}-", dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
      builder = builder_class(data, data_dir=scratch)
      _run_quietly(lambda: builder.download_and_prepare(file_format="array_record"))
      _move_into_place(Path(builder.data_dir), target)
  except OSError as error:
    raise UsageError(f"data_dir must be writable to prepare {target}: {error}") from error


def _move_into_place(source: Path, target: Path) -> None:
  try:
    os.rename(source, target)
  except OSError:
    # A rename never replaces a directory that holds files: another process was first.
    if not is_prepared(target):
      raise


def _run_quietly(action: Callable[[], None]) -> None:
  """Runs it without TFDS's progress bars and its announcement of a download."""
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    action()
