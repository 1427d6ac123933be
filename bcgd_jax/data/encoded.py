"""Sources of encoded images: decoded and cropped as they are read."""

import dataclasses
import functools
from typing import Any, SupportsIndex

import numpy as np

from bcgd_jax.data.crops import center_crop, draw_crop, resize_crop
from bcgd_jax.data.decoding import BadImageError, decode_crop, decode_rgb
from bcgd_jax.data.records import Records
from bcgd_jax.data.sources import check_index
from bcgd_jax.errors import TrainingError

NOT_BAD = -1
# Where nearly all images are bad, looking for the next good one would read them all for each.
_MAX_TRIES = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CropOptions:
  """How images of any size become squares.

  Attributes:
    image_size: their side.
    eval_resize: the short side before the central crop of evaluation.
    min_area: least share of an image that a training crop shows.
  """

  image_size: int
  eval_resize: int
  min_area: float


class EncodedSource:
  """Images of any size as squares of one: the central crop, for scoring.

  Besides "image" and "label" an example has "bad": NOT_BAD, or the record that could not be
  decoded, whose image is then zeros. Training reads `encoded` and crops at random.
  """

  def __init__(self, records: Records, crops: CropOptions, positions: np.ndarray | None) -> None:
    """
    Args:
      records: the files.
      crops: sizes.
      positions: which records, in which order; None is all.
    """
    self.records, self.crops = records, crops
    self._positions = positions
    # by record, in the order they were met in this process: warned of once, counted over epochs
    self.found_bad: dict[int, None] = {}

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return (self.crops.image_size, self.crops.image_size, 3)

  def __len__(self) -> int:
    return len(self.records) if self._positions is None else len(self._positions)

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    record = self.record(check_index(index, len(self)))
    data, label = self.records.read(record)
    try:
      image, bad = self._crop_center(decode_rgb(data)), NOT_BAD
    except BadImageError:
      image, bad = np.zeros(self.image_shape, np.uint8), record
    return {"image": image, "label": label, "bad": bad}

  def record(self, position: int) -> int:
    """The record at a position of this source."""
    return position if self._positions is None else int(self._positions[position])

  def encoded(self) -> "EncodedExamples":
    """The same examples, not decoded."""
    return EncodedExamples(self)

  def _crop_center(self, image: np.ndarray) -> np.ndarray:
    return center_crop(image, resize=self.crops.eval_resize, size=self.crops.image_size)


class EncodedExamples:
  """{"position", "image": bytes, "label"} of a source's examples."""

  def __init__(self, source: EncodedSource) -> None:
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    position = check_index(index, len(self))
    data, label = self._source.records.read(self._source.record(position))
    return {"position": position, "image": data, "label": label}


@dataclasses.dataclass(frozen=True, slots=True)
class RandomCrop:
  """Decodes an example of `EncodedExamples`, crops it at random and mirrors it.

  In place of one that cannot be decoded comes the next of the source that can, so that the batch
  stays a function of the seed and the step; "bad" names the first such record.

  Raises:
    TrainingError: when called, if 100 in a row cannot be decoded.
  """

  source: EncodedSource
  flip: bool

  def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    source, crops = self.source, self.source.crops
    position, data, label = example["position"], example["image"], example["label"]
    draw = functools.partial(draw_crop, rng, min_area=crops.min_area)
    bad = NOT_BAD
    for _ in range(min(_MAX_TRIES, len(source))):
      try:
        pixels, box = decode_crop(data, draw, size=crops.image_size)
      except BadImageError:
        bad = source.record(position) if bad == NOT_BAD else bad
        position = (position + 1) % len(source)
        data, label = source.records.read(source.record(position))
        continue
      flip = self.flip and rng.random() < 0.5
      image = resize_crop(pixels, box, size=crops.image_size, flip=flip)
      return {"image": image, "label": label, "bad": bad}
    raise TrainingError(
      "training images must be readable, but many in a row are not, the first of them "
      f"{source.records.name(bad)}"
    )
