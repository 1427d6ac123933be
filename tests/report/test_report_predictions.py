"""The gallery's file, what its reader rejects, and what the figure of predictions says."""

import io
import zipfile

import fake_run
import numpy as np
import pytest
from PIL import Image

from bcgd_jax.errors import UsageError
from bcgd_jax.report import predictions
from bcgd_jax.report.gallery import GALLERY_FILE, read_gallery, write_gallery
from bcgd_jax.report.workdir import read_run_files

WRONG_INK = (0xB3, 0x47, 0x00)


def read_pixels(picture):
  return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))


def has_ink(picture):
  """Whether anything in the figure has the colour of a wrong prediction."""
  return bool(np.any(np.all(read_pixels(picture) == WRONG_INK, axis=-1)))


def write_arrays(folder, **changes):
  """The file with some of its arrays replaced, or left out where they are None."""
  write_gallery(folder, fake_run.make_gallery())
  with np.load(folder / GALLERY_FILE) as found:
    arrays = {key: found[key] for key in found.files} | changes
  np.savez(folder / GALLERY_FILE, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize("names", [(), ("a", "bé", "c$", "deer")])
@pytest.mark.parametrize("channels", [1, 3])
def test_gallery_comes_back_as_it_was_written(tmp_path, names, channels):
  written = fake_run.make_gallery(channels=channels, class_names=names)
  write_gallery(tmp_path, written)
  first = (tmp_path / GALLERY_FILE).read_bytes()
  write_gallery(tmp_path, written)
  assert (tmp_path / GALLERY_FILE).read_bytes() == first
  found = read_gallery(tmp_path)
  for key in ("images", "labels", "float_predictions", "quantized_predictions", "counts"):
    np.testing.assert_array_equal(getattr(found, key), getattr(written, key))
  assert found.images.dtype == np.uint8
  numbers = (found.num_sample, found.num_different, found.num_seen, found.split_size)
  assert numbers == (3, 3, 360, 360)
  assert (found.phases, found.class_names) == (("float", "quantized"), names)
  assert found.class_name(3) == (names[3] if names else "3")
  assert [path.name for path in tmp_path.iterdir()] == [GALLERY_FILE]


def test_run_without_a_gallery(tmp_path):
  fake_run.write_run(tmp_path)
  (tmp_path / GALLERY_FILE).unlink()
  assert read_run_files(tmp_path).gallery is None
  assert predictions.predictions_picture(None) is None


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("labels", None, '"labels" is missing; it must be a list of integers >= 0'),
    ("images", np.zeros((4, 8, 8, 1)), r"uint8 \[n, h, w, c\].*, got float64 \[4, 8, 8, 1\]"),
    ("images", np.zeros((4, 8, 8, 2), np.uint8), r"c 1 or 3, got uint8 \[4, 8, 8, 2\]"),
    ("images", np.zeros((0, 8, 8, 1), np.uint8), "n >= 1"),
    ("labels", np.array([0, 1, 2, -1]), r"integers >= 0, got int64 \[4\]: \[0, 1, 2, -1\]"),
    ("labels", np.arange(3), '"labels" must have a value for each of the 4 images, got 3'),
    ("float_predictions", np.ones(4), "list of integers >= 0, got float64"),
    ("quantized_predictions", np.ones((2, 2), int), r"got int64 \[2, 2\]"),
    ("class_names", np.array(["a", "b"]), '"labels" must be below 2, the number of "class_n'),
    ("class_names", np.arange(4), "list of strings"),
    ("phases", np.array(["float"]), "two strings"),
    ("counts", np.array([1, 2, 3]), "four integers >= 0"),
    ("counts", np.array([300, 100, 0, 0]), "sum of counts must be at most the num_seen, got 400"),
    ("num_sample", np.array(5), "num_sample must be at most the images, got 5 and 4"),
    ("num_different", np.array(1), "images that differ must be at most the num_different"),
    ("split_size", np.array(1.5), '"split_size" must be an integer >= 0, got float64'),
    ("split_size", np.array(359), "num_seen must be at most the split_size, got 360 and 359"),
  ],
)
def test_bad_field_is_named(tmp_path, key, value, message):
  write_arrays(tmp_path, **{key: value})
  with pytest.raises(UsageError, match=f"{GALLERY_FILE}: .*{message}"):
    read_gallery(tmp_path)


def zip_of(name, content):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr(name, content)
  return buffer.getvalue()


def npy_of(array):
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


PICKLE = zip_of("images.npy", npy_of(np.array([{}], object)))
FOREIGN = {"text": b"hello", "nothing": b"", "array": npy_of(np.zeros(3)), "pickle": PICKLE}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_file_is_named(tmp_path, content):
  fake_run.write_run(tmp_path)
  (tmp_path / GALLERY_FILE).write_bytes(content)
  with pytest.raises(UsageError, match=f"{GALLERY_FILE} must be a NumPy archive without pickles"):
    read_run_files(tmp_path)


def test_damaged_file_is_named(tmp_path):
  write_gallery(tmp_path, fake_run.make_gallery())
  path = tmp_path / GALLERY_FILE
  whole = path.read_bytes()
  for cut in range(0, len(whole), 50):
    path.write_bytes(whole[:cut])
    with pytest.raises(UsageError, match=f"{GALLERY_FILE} must be a NumPy archive"):
      read_gallery(tmp_path)
  flipped = bytearray(whole)
  flipped[whole.index(b"images.npy") + 60] ^= 1  # in the first part's compressed data
  path.write_bytes(bytes(flipped))
  with pytest.raises(UsageError, match=r"images\.npy|Error -3"):
    read_gallery(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_figure_tells_label_and_predictions(channels):
  picture = predictions.predictions_picture(fake_run.make_gallery(channels=channels))
  assert (picture.file_name, picture.title) == ("predictions.png", "Predictions")
  assert picture.alt == (
    "4 test images, each with its label and two predictions. Both are right on 1 of them. Label 0:"
    " float 1, quantized 1. Label 1: float 1, quantized 2. Label 2: float 0, quantized 2."
  )
  assert "after phase float) and the quantized one (after phase quantized)" in picture.caption
  assert "a cross and bold type mark what is wrong" in picture.caption
  assert has_ink(picture)
  # 5 columns in 8 inches, less two margins of 0.1: images of 1.26; a row of each group
  height = 2 * (0.38 + 1.26 + 0.46 + 0.16)
  assert read_pixels(picture).shape == (round(200 * height), 1600, 3)


def test_images_are_drawn_as_they_are():
  images = np.zeros((4, 8, 8, 3), np.uint8)
  images += np.array([1, 2, 3, 4], np.uint8)[:, None, None, None]
  images[..., 1] = 250
  pixels = read_pixels(predictions.predictions_picture(fake_run.make_gallery(images=images)))
  for value in (1, 2, 3, 4):
    found = np.argwhere(np.all(pixels == (value, 250, value), axis=-1))
    assert np.ptp(found, axis=0) == pytest.approx([252, 252], abs=2)  # 1.26 inches at 200 dpi


@pytest.mark.parametrize("wrong", [False, True])
def test_wrong_predictions_are_marked_without_colour_too(wrong):
  labels = np.arange(4)
  predicted = labels[::-1] if wrong else labels
  gallery = fake_run.make_gallery(
    labels=labels, float_predictions=predicted, quantized_predictions=predicted, num_sample=4
  )
  assert has_ink(predictions.predictions_picture(gallery)) is wrong
  text = predictions.prediction_text("quantized", "cat", wrong=wrong)
  assert text == ("✗ quantized cat" if wrong else "✓ quantized cat")


def test_long_names_get_wider_cells():
  names = ("cat", "American Staffordshire terrier", "a $x$ b", "T-shirt/top")
  picture = predictions.predictions_picture(fake_run.make_gallery(class_names=names))
  height = 2 * (0.38 + 1.65 + 0.46 + 0.16)  # 4 columns
  assert read_pixels(picture).shape == (round(200 * height), 1600, 3)
  assert "Label American Staffordshire terrier: float American" in picture.alt


@pytest.mark.parametrize(
  ("changes", "title"),
  [
    ({}, "Predictions on all 360 test images; on 3 of them the two networks disagree."),
    ({"split_size": 50000}, "on the first 360 of 50,000 test images; on 3 of them"),
    (
      {"num_seen": 361, "split_size": 361},
      "on all 361 test images, without 1 that could not be read; on 3",
    ),
  ],
)
def test_table_says_what_was_counted(changes, title):
  table = predictions.outcome_table(fake_run.make_gallery(**changes))
  assert title in table.title
  assert table.rows == (
    ("Both right", "340", "94.44 %"),
    ("Only float right", "1", "0.28 %"),
    ("Only quantized right", "2", "0.56 %"),
    ("Both wrong", "17", "4.72 %"),
  )
  assert table.totals == ("Total", "360", "")


@pytest.mark.parametrize(
  ("changes", "headings"),
  [
    ({}, ["3 test images, evenly spaced", "1 of 2 others on which the two networks disagree"]),
    (
      {"num_different": 2},
      ["3 test images, evenly spaced", "One other on which the two networks disagree"],
    ),
    (
      {"num_sample": 2, "num_different": 2},
      ["2 test images, evenly spaced", "All 2 others on which the two networks disagree"],
    ),
    ({"num_sample": 4, "num_different": 2}, ["4 test images, evenly spaced"]),
  ],
)
def test_headings_say_which_images_are_shown(changes, headings):
  groups = predictions.image_groups(fake_run.make_gallery(**changes))
  assert [group.heading for group in groups] == headings
  assert [index for group in groups for index in group.indexes] == [0, 1, 2, 3]
