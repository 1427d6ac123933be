"""Decoding and cropping: pixels equal to the reference's, odd files, damaged ones."""

import io
import math
import random
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bcgd_jax.benchmarks.jpeg_folder import load_photographs
from bcgd_jax.data.crops import center_crop, draw_crop, resize_crop
from bcgd_jax.data.decoding import BadImageError, decode_crop, decode_rgb


@pytest.fixture(scope="module")
def photograph():
  return Image.fromarray(load_photographs()["coffee"])  # 600 x 400


def encode(image, kind, **options):
  target = io.BytesIO()
  image.save(target, format=kind, **options)
  return target.getvalue()


def torchvision_evaluation(image, resize, size):
  """Resize(resize) and CenterCrop(size) on a PIL image, by torchvision's documentation."""
  w, h = image.size
  target = (resize, int(resize * h / w)) if w <= h else (int(resize * w / h), resize)
  if min(w, h) != resize:
    image = image.resize(target, Image.Resampling.BILINEAR)
  w, h = image.size
  if w < size or h < size:
    x, y = max(size - w, 0), max(size - h, 0)
    padded = Image.new("RGB", (max(w, size), max(h, size)))
    padded.paste(image, (x // 2, y // 2))
    image, (w, h) = padded, padded.size
  left, top = int(round((w - size) / 2.0)), int(round((h - size) / 2.0))  # noqa: RUF046
  return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
  ("width", "height", "resize", "size"),
  [
    (600, 400, 256, 224),
    (400, 600, 256, 224),
    (333, 500, 256, 224),
    (257, 256, 256, 224),
    (256, 256, 256, 224),
    (75, 50, 73, 64),
    (31, 20, 256, 224),
    (500, 375, 64, 96),
    (1, 1, 73, 64),
  ],
)
def test_center_crop_is_torchvisions_pixel_for_pixel(photograph, width, height, resize, size):
  image = photograph.resize((width, height))
  found = center_crop(np.asarray(image), resize=resize, size=size)
  expected = torchvision_evaluation(image, resize, size)
  np.testing.assert_array_equal(found, expected)
  assert found.shape == (size, size, 3)


def test_drawn_crops_are_inside_and_have_the_distribution_that_is_stated():
  rng = np.random.default_rng(0)
  boxes = np.array([draw_crop(rng, width=500, height=375, min_area=0.08) for _ in range(4000)])
  left, top, width, height = boxes.T
  assert min(left.min(), top.min()) == 0
  assert (left + width).max() == 500
  assert (top + height).max() == 375
  areas, ratios = width * height / (500 * 375), width / height
  assert 0.078 < areas.min() < 0.09
  assert areas.max() < 1.0
  assert 0.74 < ratios.min() < 0.77
  assert 1.3 < ratios.max() < 1.35
  # a uniform area and a log-uniform ratio, less what did not fit: larger areas fail more often
  small = areas < 0.5
  assert np.mean(areas[small]) == pytest.approx((0.08 + 0.5) / 2, abs=0.01)
  assert np.mean(np.log(ratios[small])) == pytest.approx(0.0, abs=0.02)
  assert np.std(np.log(ratios[small])) == pytest.approx(math.log(16 / 9) / math.sqrt(12), abs=0.01)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_drawn_crops_of_tiny_and_extreme_images_are_inside(width, height):
  rng = np.random.default_rng(0)
  for _ in range(50):
    left, top, w, h = draw_crop(rng, width=width, height=height, min_area=0.08)
    assert w >= 1
    assert h >= 1
    assert 0 <= left <= width - w
    assert 0 <= top <= height - h


def test_resized_crop_keeps_the_picture(photograph):
  pixels = np.asarray(photograph)
  for box in ((0, 0, 600, 400), (100, 50, 224, 224), (100, 50, 120, 90)):
    found = resize_crop(pixels, box, size=96).astype(float)
    part = photograph.crop((box[0], box[1], box[0] + box[2], box[1] + box[3]))
    expected = np.asarray(part.resize((96, 96), Image.Resampling.BILINEAR), float)
    assert np.abs(found - expected).mean() < 6  # of 255; Pillow averages at every scale below 1
  exact = resize_crop(pixels, (7, 9, 96, 96), size=96)
  np.testing.assert_array_equal(exact, pixels[9:105, 7:103])


@pytest.mark.parametrize("size", [(600, 400), (333, 251), (17, 23)])
@pytest.mark.parametrize(
  "options",
  [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}],
  ids=["444", "422", "420", "progressive"],
)
def test_jpeg_decodes_as_pillow_does(photograph, size, options):
  data = encode(photograph.resize(size), "JPEG", quality=90, **options)
  expected = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(decode_rgb(data), expected)


def upper_half(width, height):
  return 0, 0, width, max(1, height // 2)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(photograph, mode):
  small = photograph.resize((40, 30))
  if mode in ("L", "CMYK"):
    data = encode(small.convert(mode), "JPEG")
  elif mode == "I;16":
    data = encode(Image.fromarray(np.asarray(small.convert("L"), np.uint16)), "PNG")
  else:
    data = encode(small.convert(mode), "PNG")  # in disguise: the name of a file is not looked at
  pixels = decode_rgb(data)
  assert pixels.shape == (30, 40, 3)
  assert pixels.dtype == np.uint8
  if mode in ("L", "CMYK", "RGBA"):
    assert np.abs(pixels.astype(float).mean() - np.asarray(small, float).mean()) < 8
  cropped, box = decode_crop(data, upper_half, size=8)
  assert box == (0, 0, 40, 15)
  # to train on: the fast cosine transform
  assert np.abs(cropped[:15].astype(int) - pixels[:15]).max() <= 8


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_under_a_jpeg_name(photograph, kind):
  data = encode(photograph.resize((40, 30)).convert("P" if kind == "GIF" else "RGB"), kind)
  expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  np.testing.assert_array_equal(decode_rgb(data), expected)


def test_palettes_with_transparency(photograph):
  small = photograph.resize((40, 30)).convert("P")
  data = encode(small, "PNG", transparency=bytes(range(256)))
  np.testing.assert_array_equal(decode_rgb(data), np.asarray(small.convert("RGB")))


def test_orientation_in_exif_is_not_applied(photograph):
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by 90 degrees
  data = encode(photograph.resize((40, 30)), "JPEG", exif=exif)
  assert decode_rgb(data).shape == (30, 40, 3)


def test_damaged_files_are_bad(photograph):
  whole = encode(photograph, "JPEG")
  rng = random.Random(0)
  for data in (
    b"",
    b"no image",
    rng.randbytes(1000),
    whole[: len(whole) // 2],
    whole[:100],
    encode(photograph.resize((40, 30)), "PNG")[:200],
    encode(photograph.resize((40, 30)), "EPS"),  # Pillow would run a program
  ):
    with pytest.raises(BadImageError):
      decode_rgb(data)
    with pytest.raises(BadImageError):
      decode_crop(data, upper_half, size=8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_header_that_asks_for_all_the_memory_is_damage(photograph, kind):
  data = bytearray(encode(photograph.resize((40, 30)), kind))
  if kind == "JPEG":
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
  else:
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
  for decode in (decode_rgb, lambda data: decode_crop(data, upper_half, size=8)):
    with pytest.raises(BadImageError, match=r"pixels|bomb"):
      decode(bytes(data))


def test_rows_below_the_crop_are_not_needed(photograph):
  data = encode(photograph, "JPEG", quality=90)
  box = (100, 50, 300, 120)
  pixels, found = decode_crop(data, lambda width, height: box, size=64)
  assert found == box
  assert pixels.shape == (172, 600, 3)  # two more for the chroma's interpolation
  whole = simplejpeg.decode_jpeg(data, fastdct=True)
  np.testing.assert_array_equal(pixels[:170], whole[:170])
  assert np.abs(whole.astype(int) - decode_rgb(data)).mean() < 2  # "a level or two"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
  ("box", "factor"),
  [
    ((0, 0, 1201, 799), 8),
    ((101, 3, 901, 701), 8),
    ((333, 97, 301, 256), 4),
    ((1072, 671, 129, 128), 2),
    ((7, 9, 200, 127), 1),
  ],
)
def test_parts_much_larger_than_needed_are_decoded_small(photograph, mode, box, factor):
  size = 32
  data = encode(photograph.resize((1201, 799)).convert(mode), "JPEG", quality=95)
  pixels, found = decode_crop(data, lambda width, height: box, size=size)
  assert pixels.shape[1] == -(-1201 // factor)
  left, top, width, height = found
  assert (left, top) == (box[0] // factor, box[1] // factor)
  assert left + width <= pixels.shape[1]
  assert top + height <= pixels.shape[0]
  small = resize_crop(pixels, found, size=size).astype(float)
  whole = resize_crop(decode_rgb(data), box, size=size).astype(float)
  # up to a pixel of the small picture more on each side; another part differs by 14 or more
  assert np.abs(small - whole).mean() < 4


def test_one_pixel_is_never_decoded_smaller(photograph):
  for width, height in ((1, 1), (1, 50), (4, 4), (5, 9)):
    data = encode(photograph.resize((width, height)), "JPEG")
    pixels, box = decode_crop(data, lambda width, height: (0, 0, width, height), size=1)
    assert box[2] <= pixels.shape[1]
    assert box[3] <= pixels.shape[0]
    assert resize_crop(pixels, box, size=1).shape == (1, 1, 3)
