"""Folders of JPEG images made from photographs that packages ship, with ImageNet's sizes.

For tests, for the benchmark of input pipelines and for rehearsals of a run; what a network learns
on them is worth nothing.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from bcgd_jax.errors import UsageError

_COLOURED = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "retina", "rocket")
_GRAY = ("brick", "camera", "coins", "grass", "gravel", "moon")
_SAMPLES = ("china.jpg", "flower.jpg")
# Shares read off ImageNet's training files where known, otherwise ours.
_GRAY_SHARE = 0.02
_LARGE_SHARE = 0.01
_LARGE_FACTOR = 4
_NOISE = 6.0  # levels; photographs that were enlarged compress too well without


def load_photographs() -> dict[str, np.ndarray]:
  """scikit-image's and scikit-learn's photographs by name: uint8 [H, W, 3], 300 to 1411 wide."""
  import skimage.data
  from sklearn.datasets import load_sample_image

  found = {name: getattr(skimage.data, name)() for name in (*_COLOURED, *_GRAY)}
  found["motorcycle"] = skimage.data.stereo_motorcycle()[0]
  found |= {name.removesuffix(".jpg"): load_sample_image(name) for name in _SAMPLES}
  return {
    name: np.ascontiguousarray(np.broadcast_to(np.atleast_3d(x), (*x.shape[:2], 3)))
    for name, x in sorted(found.items())
  }


def write_image_folder(
  folder: Path,
  *,
  num_train: int,
  num_val: int,
  num_classes: int,
  seed: int = 0,
  size: tuple[int, int] = (500, 375),
) -> None:
  """Writes train/CLASS/*.JPEG and val/CLASS/*.JPEG; the same arguments give the same bytes.

  A class is one photograph under one rotation of its colours. An image is a random part of it,
  resized, mirrored, brightened or darkened, with noise; one in 100 is four times as large a side,
  one in 50 gray; quality is 75 to 97, chroma subsampled (4:2:0) in half of them.

  Args:
    folder: new or empty.
    num_train, num_val: images in all, spread evenly over the classes; at least one a class.
    num_classes: at least 1.
    seed: of everything random.
    size: mean (width, height); single images differ by up to a third.
  Raises:
    UsageError: if an argument breaks its rule.
  """
  for name, value in (("num_train", num_train), ("num_val", num_val)):
    if value < num_classes:
      raise UsageError(f"{name} must be at least num_classes, {num_classes}, got {value}")
  if num_classes < 1 or min(size) < 8:
    raise UsageError(f"num_classes must be >= 1, size >= 8, got {num_classes} and {size}")
  if folder.exists() and any(folder.iterdir()):
    raise UsageError(f"folder must be new or empty, got {folder}")
  photographs = load_photographs()
  makers = [_class_maker(index, photographs) for index in range(num_classes)]
  rng = np.random.default_rng(seed)
  for split, count in (("train", num_train), ("val", num_val)):
    for number in range(count):
      label = number % num_classes
      path = folder / split / f"class{label:04d}" / f"{split}_{number:06d}.JPEG"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(_encode(makers[label](rng, size), rng))


def _class_maker(
  index: int, photographs: dict[str, np.ndarray]
) -> Callable[[np.random.Generator, tuple[int, int]], Image.Image]:
  names = list(photographs)
  turns = index // len(names)
  source = np.roll(photographs[names[index % len(names)]], turns, axis=-1)
  picture = Image.fromarray(np.ascontiguousarray(255 - source if turns // 3 % 2 else source))

  def make(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    scale = rng.uniform(2 / 3, 4 / 3) * (_LARGE_FACTOR if rng.random() < _LARGE_SHARE else 1)
    width, height = (max(8, round(side * scale)) for side in size)
    share = rng.uniform(0.5, 1.0)
    part = (picture.width * share, picture.height * share)
    left, top = (rng.uniform(0, a - b) for a, b in zip(picture.size, part, strict=True))
    box = (left, top, left + part[0], top + part[1])
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)

  return make


def _encode(image: Image.Image, rng: np.random.Generator) -> bytes:
  pixels = np.asarray(image)
  if rng.random() < 0.5:
    pixels = pixels[:, ::-1]
  # one small field of noise, repeated: drawing a value a pixel would take most of the time
  field = rng.normal(0.0, _NOISE, (61, 67, 1)).astype(np.float32)
  repeats = (-(-pixels.shape[0] // 61), -(-pixels.shape[1] // 67), 1)
  noise = np.tile(field, repeats)[: pixels.shape[0], : pixels.shape[1]]
  bright = np.float32(rng.uniform(0.7, 1.2))
  image = Image.fromarray(np.clip(pixels * bright + noise, 0, 255).astype(np.uint8))
  if rng.random() < _GRAY_SHARE:
    image = image.convert("L")
  target = io.BytesIO()
  quality, subsampling = int(rng.integers(75, 98)), 2 if rng.random() < 0.5 else 0
  image.save(target, format="JPEG", quality=quality, subsampling=subsampling)
  return target.getvalue()
