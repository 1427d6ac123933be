"""Encoded images as RGB pixels."""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from bcgd_jax.data.crops import Box
from bcgd_jax.data.jpeg_header import cut_below

# Those found under the name of a JPEG or PNG file. Pillow's others stay closed: EPS runs a program.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
# Above, Pillow warns of files made to fill the memory; a damaged header looks the same. libjpeg
# would fill in 12 GB of gray for one.
_MAX_PIXELS = 89_478_485


class BadImageError(Exception):
  """Bytes that are not a whole image."""


def decode_rgb(data: bytes) -> np.ndarray:
  """The pixels of a JPEG, PNG, BMP, GIF (first picture), TIFF or WebP file, whatever its name.

  JPEG by libjpeg-turbo; where it fails, by Pillow. Gray becomes RGB, CMYK and palettes are
  converted, transparency is dropped. The orientation that a camera notes in EXIF is not applied, as
  torchvision's loader and TFDS do not apply it.

  Args:
    data: the file.
  Returns:
    uint8 [H, W, 3].
  Raises:
    BadImageError: if the file is empty, truncated, no image, or said to have more than 89 million
      pixels.
  """
  try:
    _read_jpeg_size(data)
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
    return pixels
  except ValueError:  # another format, or damaged: Pillow tells which
    return _decode_with_pillow(data)


def decode_crop(
  data: bytes, draw: Callable[[int, int], Box], *, size: int
) -> tuple[np.ndarray, Box]:
  """The pixels of an image down to the end of a part of it, and where that part lies in them.

  As `decode_rgb`, but faster: rows below the part may be missing, the inverse cosine transform is
  the fast one, TensorFlow's default (values differ by a level or two of 255), and of a part at
  least 4 times as large as needed a picture of 1/2, 1/4 or 1/8 the side is decoded, which is still
  twice as large. To train on, not to score.

  Args:
    data: the file.
    draw: (width, height) of the whole image -> the part.
    size: the side that the part will be resized to.
  Returns:
    uint8 [height, width, 3], and the part in its pixels.
  Raises:
    BadImageError: as `decode_rgb`; damage inside a file that is not cut off may stay unnoticed.
  """
  try:
    width, height = _read_jpeg_size(data)
  except ValueError:
    pixels = _decode_with_pillow(data)
    return pixels, draw(pixels.shape[1], pixels.shape[0])
  box = draw(width, height)
  cut = cut_below(data, box[1] + box[3])
  part = data if cut is None else cut
  factor = next((f for f in (8, 4, 2) if min(box[2:]) >= 2 * f * size), 1)
  scaling = {}
  if factor > 1:
    height = simplejpeg.decode_jpeg_header(part)[0]
    scaling = {
      "min_width": -(-width // factor),
      "min_height": -(-height // factor),
      "min_factor": factor,
    }
  try:
    pixels = simplejpeg.decode_jpeg(part, "RGB", fastdct=True, strict=cut is None, **scaling)
    return pixels, _shrink_box(box, factor)
  except ValueError:
    return _decode_with_pillow(data), box


def _shrink_box(box: Box, factor: int) -> Box:
  """The pixels of a picture shrunk by a factor that show something of a part of the whole one."""
  left, top = box[0] // factor, box[1] // factor
  right, bottom = -(-(box[0] + box[2]) // factor), -(-(box[1] + box[3]) // factor)
  return left, top, right - left, bottom - top


def read_plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
  """Width and height of a JPEG file in colour or gray; None for others and for CMYK."""
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return None
  return (width, height) if colours in ("YCbCr", "RGB", "Gray") else None


def _read_jpeg_size(data: bytes) -> tuple[int, int]:
  """Width and height in a JPEG file's header; raises ValueError where there is none."""
  height, width, _, _ = simplejpeg.decode_jpeg_header(data)
  _check_size(width, height)
  return width, height


def _check_size(width: int, height: int) -> None:
  if width * height > _MAX_PIXELS:
    raise BadImageError(f"{width} x {height} pixels are more than {_MAX_PIXELS}")


def _decode_with_pillow(data: bytes) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      _check_size(*image.size)
      # straight from a palette with transparency to RGB, Pillow warns; the colours are the same
      opaque = image.convert("RGBA") if image.mode == "P" else image
      return np.asarray(opaque.convert("RGB"))
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise BadImageError(str(error)) from error
