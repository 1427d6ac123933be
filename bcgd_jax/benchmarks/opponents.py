"""The input pipelines that ours is compared with: tf.data, and PyTorch's DataLoader with Pillow.

Both do what `bcgd_jax.data.train_batches` does with an image folder: a random part of each JPEG is
resized to a square, flipped half of the time, and put into a batch of uint8. Epochs are shuffled
and follow each other without a pause. Neither package is imported before it is used.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bcgd_jax.errors import UsageError

MIN_CROP_AREA = 0.08
ASPECT_RATIOS = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
_PREFETCHED_BATCHES = 2


def list_images(folder: Path) -> tuple[list[str], list[int]]:
  """Files and labels of folder/train/CLASS/*, classes in the order of their names.

  Raises:
    UsageError: if there is none.
  """
  classes = sorted(path for path in (folder / "train").glob("*") if path.is_dir())
  found = [
    (str(path), label) for label, name in enumerate(classes) for path in sorted(name.iterdir())
  ]
  if not found:
    raise UsageError(f"{folder} must hold train/CLASS/*.JPEG, but has no such file.")
  paths, labels = zip(*found, strict=True)
  return list(paths), list(labels)


def tf_data_batches(
  folder: Path, *, batch_size: int, image_size: int, num_workers: int
) -> Iterator[Any]:
  """Endless batches of tf.data: `tf.io.decode_and_crop_jpeg` in `num_workers` threads.

  TensorFlow's defaults: ratio=1 (no scaling in the frequency domain; the ratio is an attribute of
  the operation, so it cannot depend on the crop), fancy_upscaling=True, the fast integer DCT. The
  crop is `sample_distorted_bounding_box`'s with RandomResizedCrop's ranges. Resizing is bilinear
  without antialiasing, in float32; the result is rounded.
  """
  import tensorflow as tf  # only this benchmark needs it

  def load(path: Any, label: Any) -> tuple[Any, Any]:
    data = tf.io.read_file(path)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(data),
      tf.zeros([1, 0, 4]),
      min_object_covered=0.0,
      aspect_ratio_range=ASPECT_RATIOS,
      area_range=(MIN_CROP_AREA, 1.0),
      max_attempts=_CROP_ATTEMPTS,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], extent[:2]], axis=0)
    image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, [image_size, image_size])
    return tf.image.random_flip_left_right(tf.cast(tf.round(image), tf.uint8)), label

  paths, labels = list_images(folder)
  options = tf.data.Options()
  options.threading.private_threadpool_size = num_workers
  options.threading.max_intra_op_parallelism = 1
  dataset = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
  dataset = dataset.map(load, num_parallel_calls=num_workers)
  dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(_PREFETCHED_BATCHES)
  return dataset.with_options(options).as_numpy_iterator()


def pytorch_batches(
  folder: Path, *, batch_size: int, image_size: int, num_workers: int
) -> Iterator[Any]:
  """Endless batches of a DataLoader with `num_workers` processes, as torchvision would read them.

  `Image.open(...).convert("RGB")`, RandomResizedCrop, RandomHorizontalFlip, PILToTensor: the same
  calls of Pillow and PyTorch, without torchvision. Tensors [batch, 3, size, size], uint8.
  """
  import torch  # only this benchmark needs it

  paths, labels = list_images(folder)
  return iter(
    torch.utils.data.DataLoader(
      PillowDataset(paths, labels, image_size=image_size),
      batch_size=batch_size,
      sampler=EndlessSampler(len(paths)),
      num_workers=num_workers,
      drop_last=True,
      prefetch_factor=_PREFETCHED_BATCHES,
    )
  )


class EndlessSampler:
  """Positions of one shuffled epoch after another."""

  def __init__(self, num_images: int) -> None:
    self._num_images = num_images

  def __iter__(self) -> Iterator[int]:
    import torch

    while True:
      yield from torch.randperm(self._num_images).tolist()


class PillowDataset:
  """Images as torchvision's ImageFolder and its transforms for training would give them."""

  def __init__(self, paths: list[str], labels: list[int], *, image_size: int) -> None:
    self._paths, self._labels, self._image_size = paths, labels, image_size

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> tuple[Any, int]:
    """A uint8 tensor [3, size, size] and its label."""
    import torch

    with open(self._paths[index], "rb") as file:
      image: Image.Image = Image.open(file).convert("RGB")
    left, top, width, height = draw_crop(*image.size)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((self._image_size, self._image_size), Image.Resampling.BILINEAR)
    if torch.rand(1) < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.as_tensor(np.array(image, copy=True))
    return pixels.permute((2, 0, 1)), self._labels[index]


def draw_crop(width: int, height: int) -> tuple[int, int, int, int]:
  """(left, top, width, height) of a random part of an image.

  Area uniform in [0.08, 1] of the image's, aspect ratio log-uniform in [3/4, 4/3], the place
  uniform; after 10 crops that do not fit, the largest central one whose ratio is in that range.

  Source: torchvision's RandomResizedCrop, its draws made by torch as there.
  """
  import torch

  log_ratios = torch.log(torch.tensor(ASPECT_RATIOS))
  for _ in range(_CROP_ATTEMPTS):
    area = width * height * torch.empty(1).uniform_(MIN_CROP_AREA, 1.0).item()
    ratio = torch.exp(torch.empty(1).uniform_(log_ratios[0], log_ratios[1])).item()
    crop_width = round(math.sqrt(area * ratio))
    crop_height = round(math.sqrt(area / ratio))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      top = torch.randint(0, height - crop_height + 1, size=(1,)).item()
      left = torch.randint(0, width - crop_width + 1, size=(1,)).item()
      return int(left), int(top), crop_width, crop_height
  low, high = ASPECT_RATIOS
  crop_width, crop_height = width, height
  if width / height < low:
    crop_height = round(width / low)
  elif width / height > high:
    crop_width = round(height * high)
  return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
