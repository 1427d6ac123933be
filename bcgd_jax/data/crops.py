"""Crops of uint8 RGB images: random ones to train on, the central one to score."""

import math

import cv2
import numpy as np
from PIL import Image

# Log-uniform ratios of width to height, and tries before the fallback: torchvision's.
_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10

# Batches are made by many threads or processes already; more of them inside a resize only contend.
cv2.setNumThreads(0)

Box = tuple[int, int, int, int]  # left, top, width, height


def draw_crop(rng: np.random.Generator, width: int, height: int, *, min_area: float) -> Box:
  """A random part of an image: Inception's crop, as torchvision's RandomResizedCrop draws it.

  Its share of the area is uniform on [min_area, 1], its ratio of width to height log-uniform on
  [3/4, 4/3], its place uniform; up to ten are drawn until one fits. Otherwise it is the largest
  central part whose ratio is in that range.

  Args:
    rng: advanced by the draws.
    width, height: of the image, in pixels.
    min_area: in (0, 1].
  Returns:
    left, top, width, height in pixels, inside the image, each side at least 1.
  Source: Szegedy et al. 2015 (arXiv 1409.4842), section 6; details of torchvision.
  """
  log_ratios = [math.log(ratio) for ratio in _RATIOS]
  for _ in range(_TRIES):
    area = width * height * (min_area + (1.0 - min_area) * rng.random())
    ratio = math.exp(log_ratios[0] + (log_ratios[1] - log_ratios[0]) * rng.random())
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      return int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1)), w, h
  low, high = _RATIOS
  w, h = width, height
  if width / height < low:
    h = max(1, round(width / low))
  elif width / height > high:
    w = max(1, round(height * high))
  return (width - w) // 2, (height - h) // 2, w, h


def resize_crop(image: np.ndarray, box: Box, *, size: int, flip: bool = False) -> np.ndarray:
  """A part of an image, resized to a square and mirrored left-right if asked to.

  Bilinear between the nearest pixels; where the part is shrunk to less than half, by averages over
  areas, so that no pixel is passed over. (torchvision averages at every scale below 1, at three
  times the cost.)

  Args:
    image: uint8 [H, W, 3].
    box: as of `draw_crop`.
    size: side of the result.
    flip: whether to mirror it.
  Returns:
    uint8 [size, size, 3].
  Source: our choice.
  """
  left, top, width, height = box
  part = image[top : top + height, left : left + width]
  shrinks = min(width, height) > 2 * size
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  resized = cv2.resize(part, (size, size), interpolation=method)
  # not by a view with a negative stride: copying that into a batch takes a fifth of a decode
  return np.asarray(cv2.flip(resized, 1) if flip else resized)


def center_crop(image: np.ndarray, *, resize: int, size: int) -> np.ndarray:
  """What torchvision's Resize(resize) and CenterCrop(size) make of a PIL image, pixel for pixel.

  The short side becomes `resize`, the long one int(resize * long / short), by Pillow's bilinear
  filter, which averages where it shrinks. The crop begins at round((side - size) / 2), half to
  even. An image that is then smaller than `size` is padded by zeros.

  Args:
    image: uint8 [H, W, 3].
    resize: of the short side, in pixels.
    size: side of the crop.
  Returns:
    uint8 [size, size, 3].
  Source: torchvision's transforms, as used to score its published weights.
  """
  height, width = image.shape[:2]
  short, long = min(width, height), max(width, height)
  if short != resize:
    other = int(resize * long / short)
    target = (resize, other) if width <= height else (other, resize)
    picture = Image.fromarray(image).resize(target, Image.Resampling.BILINEAR)
    image = np.asarray(picture)
  pads = [max(size - side, 0) for side in image.shape[:2]]
  if any(pads):
    image = np.pad(image, [*((pad // 2, (pad + 1) // 2) for pad in pads), (0, 0)])
  top, left = (round((side - size) / 2) for side in image.shape[:2])
  return np.ascontiguousarray(image[top : top + size, left : left + size])
