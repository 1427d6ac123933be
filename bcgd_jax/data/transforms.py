"""Augmentation of single uint8 images: functions of the image and a random generator."""

import dataclasses
from typing import Any

import numpy as np


def pad_crop(image: np.ndarray, rng: np.random.Generator, *, pad: int) -> np.ndarray:
  """Pads with zeros on all four sides and crops the original size at a random place.

  out[y, x] = image[y + dy, x + dx] inside the image, else 0; dy and dx are uniform on
  {-pad, ..., pad}, independent. Draws two doubles from `rng`. Zero is raw black, not the mean:
  the padding comes before normalisation.

  Args:
    image: [H, W, C], any dtype (uint8 in the pipeline).
    rng: advanced by two draws.
    pad: >= 0, in pixels; may exceed the image's side.
  Returns:
    A new array of image's shape and dtype.
  Raises:
    ValueError: if pad is negative.
  Source: authors' code (torchvision's RandomCrop(size, padding=4) on the raw image).
  """
  if pad < 0:
    raise ValueError(f"pad must be at least 0, got {pad}")
  # Scaling one double is several times cheaper than Generator.integers for a scalar; its bias, at
  # most 2**-53 an outcome, is beyond notice.
  num_shifts = 2 * pad + 1
  dy = int(rng.random() * num_shifts) - pad
  dx = int(rng.random() * num_shifts) - pad
  y_out, y_in = _overlap(image.shape[0], dy)
  x_out, x_in = _overlap(image.shape[1], dx)
  out = np.zeros_like(image)
  out[y_out, x_out] = image[y_in, x_in]
  return out


def flip_left_right(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Mirrors the width axis with probability 1/2.

  Args:
    image: [H, W, C], any dtype.
    rng: advanced by one draw.
  Returns:
    `image` itself or a mirrored view of it.
  Source: authors' code (torchvision's RandomHorizontalFlip()).
  """
  return image[:, ::-1] if rng.random() < 0.5 else image


@dataclasses.dataclass(frozen=True, slots=True)
class Augment:
  """Pad-crop, then flip, of an example's "image"; other entries pass unchanged."""

  pad: int
  flip: bool

  def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    image = example["image"]
    if self.pad:
      image = pad_crop(image, rng, pad=self.pad)
    if self.flip:
      image = flip_left_right(image, rng)
    return {**example, "image": image}


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
  """Slices of the output and of the input, where output position i shows input i + shift."""
  start = max(shift, 0)
  stop = max(start, min(size, size + shift))
  return slice(start - shift, stop - shift), slice(start, stop)
