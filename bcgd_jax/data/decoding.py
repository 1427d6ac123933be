"""Encoded images as RGB pixels."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image


class BadImageError(Exception):
  """Bytes that are not a whole image."""


def decode_rgb(data: bytes) -> np.ndarray:
  """The pixels of a JPEG, PNG or other file that Pillow reads.

  JPEG by libjpeg-turbo; where it fails, by Pillow. Gray becomes RGB, CMYK and palettes are
  converted, transparency is dropped. The orientation that a camera notes in EXIF is not applied, as
  torchvision's loader and TFDS do not apply it.

  Args:
    data: the file.
  Returns:
    uint8 [H, W, 3].
  Raises:
    BadImageError: if the file is empty, truncated or no image.
  """
  try:
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
    return pixels
  except ValueError:  # another format, or damaged: Pillow tells which
    return _decode_with_pillow(data)


def _decode_with_pillow(data: bytes) -> np.ndarray:
  try:
    with warnings.catch_warnings():
      # palettes with transparency, odd EXIF: told of once a file, and nothing to be done
      warnings.simplefilter("ignore")
      with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise BadImageError(str(error)) from error
