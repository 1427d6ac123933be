"""A file cut at a row decodes to the same pixels above it, or is left to the whole decoder."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn import datasets

from bcgd_jax.data.jpeg_header import cut_below


@pytest.fixture(scope="module")
def photograph():
  return np.ascontiguousarray(datasets.load_sample_image("flower.jpg")[:199, :301])


def encode(pixels: np.ndarray, **options) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
  return buffer.getvalue()


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_rows_above_the_cut_are_bit_equal(photograph, subsampling):
  data = simplejpeg.encode_jpeg(photograph, quality=90, colorsubsampling=subsampling)
  whole = simplejpeg.decode_jpeg(data)
  for row in (*range(1, 40), 64, 100, 150, 196):
    cut = simplejpeg.decode_jpeg(cut_below(data, row), strict=False)
    assert cut.shape == (row + 2, 301, 3)
    np.testing.assert_array_equal(cut[:row], whole[:row], err_msg=str(row))


@pytest.mark.parametrize(
  "options",
  [{"exif": b"Exif\0\0" + bytes(range(256)) * 3}, {"restart_marker_rows": 1}, {"optimize": True}],
  ids=["exif", "restart_markers", "own_tables"],
)
def test_other_baseline_files_are_cut_too(photograph, options):
  data = encode(photograph, **options)
  cut = simplejpeg.decode_jpeg(cut_below(data, 77), strict=False)
  np.testing.assert_array_equal(cut[:77], simplejpeg.decode_jpeg(data)[:77])


def test_grayscale(photograph):
  data = encode(photograph[..., 1])
  cut = simplejpeg.decode_jpeg(cut_below(data, 50), "GRAY", strict=False)
  np.testing.assert_array_equal(cut[:50], simplejpeg.decode_jpeg(data, "GRAY")[:50])


def test_what_must_be_decoded_whole(photograph):
  data = encode(photograph)
  assert cut_below(data, 196) is not None
  assert cut_below(data, 197) is None  # two rows below it are all there are
  assert cut_below(data, 10**6) is None
  assert cut_below(encode(photograph, progressive=True), 50) is None
  assert cut_below(data[:-500], 50) is None
  assert cut_below(data + b"\0", 50) is None
  png = io.BytesIO()
  Image.fromarray(photograph).save(png, "PNG")
  assert cut_below(png.getvalue(), 50) is None
  for length in range(40):
    assert cut_below(data[:length], 50) is None
    assert cut_below(data[:length] + b"\xff\xd9", 50) is None
