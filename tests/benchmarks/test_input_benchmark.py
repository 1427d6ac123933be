"""The benchmark of input pipelines: its opponents do the work they should, its figures add up."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bcgd_jax.benchmarks import opponents
from bcgd_jax.benchmarks.input_pipeline import check_long_enough, make_table, summarize
from bcgd_jax.benchmarks.pipeline_process import Measurement, PipelineOptions, PipelineProcess
from bcgd_jax.errors import TrainingError, UsageError


def write_images(folder: Path) -> Path:
  """Three 60 x 40 JPEGs of two classes: red, green, blue, by file name."""
  for name, colour in (("a/2", (0, 0, 255)), ("b/0", (255, 0, 0)), ("a/1", (0, 255, 0))):
    path = folder / "train" / f"{name}.JPEG"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), colour).save(path, quality=95)
  return folder


def test_images_are_listed_by_class_and_name(tmp_path):
  paths, labels = opponents.list_images(write_images(tmp_path))
  assert [str(Path(p).relative_to(tmp_path / "train")) for p in paths] == [
    "a/1.JPEG",
    "a/2.JPEG",
    "b/0.JPEG",
  ]
  assert labels == [0, 0, 1]


def test_a_folder_without_images_is_refused(tmp_path):
  with pytest.raises(UsageError, match=r"must hold train/CLASS/\*\.JPEG"):
    opponents.list_images(tmp_path)


def test_crops_are_random_resized_crops():
  torch.manual_seed(0)
  width, height = 500, 375
  crops = np.array([opponents.draw_crop(width, height) for _ in range(4000)])
  left, top, w, h = crops.T
  assert min(left.min(), top.min(), w.min() - 1, h.min() - 1) >= 0
  assert np.all(left + w <= width)
  assert np.all(top + h <= height)
  area, ratio = w * h / (width * height), w / h
  # half a pixel of rounding a side, of at least 92 pixels
  assert 0.079 < area.min() < 0.1
  assert 0.95 < area.max() <= 1
  assert 0.74 < ratio.min() < 0.76
  assert 1.32 < ratio.max() < 1.35
  # symmetric in its logarithm, but that tall crops of a wide image more often do not fit
  assert 0 < np.median(np.log(ratio)) < 0.1
  np.testing.assert_allclose(np.mean(left / np.maximum(1, width - w)), 0.5, atol=0.03)


@pytest.mark.parametrize(
  ("size", "expected"),
  [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((1, 1), (0, 0, 1, 1))],
)
def test_where_no_crop_fits_the_centre_is_taken(size, expected):
  torch.manual_seed(0)
  assert opponents.draw_crop(*size) == expected


def test_pillow_dataset_gives_uint8_tensors(tmp_path):
  paths, labels = opponents.list_images(write_images(tmp_path))
  dataset = opponents.PillowDataset(paths, labels, image_size=16)
  image, label = dataset[2]
  assert (image.dtype, tuple(image.shape), label) == (torch.uint8, (3, 16, 16), 1)
  # JPEG keeps a plain colour to a level or two
  np.testing.assert_allclose(image.numpy().mean((1, 2)), [255, 0, 0], atol=2)


def test_the_sampler_shuffles_every_epoch_anew():
  torch.manual_seed(0)
  positions = iter(opponents.EndlessSampler(50))
  first, second = ([next(positions) for _ in range(50)] for _ in range(2))
  assert sorted(first) == sorted(second) == list(range(50))
  assert first != second


def test_figures_by_hand():
  measured = {
    "ours": [Measurement(1.0, 2.0), Measurement(2.0, 1.0), Measurement(0.5, 0.5)],
    "pytorch": [Measurement(1.0, 3.0), Measurement(1.0, 2.0), Measurement(1.0, 0.5)],
  }
  row = summarize("ours", measured, num_images=100)
  assert row == {
    "images_per_second": 100,
    "images_per_second_per_core": 100,
    "images_per_second_per_core_range": [50, 200],
    "cores": 1.0,
    "ratio_to_pytorch": 1.5,
    "ratio_to_tf_data": None,
  }
  assert summarize("pytorch", measured, num_images=100)["ratio_to_pytorch"] == 1
  absent = summarize("tf_data", measured, num_images=100)
  assert absent.keys() == row.keys()
  assert set(absent.values()) == {None}


def test_a_repetition_too_short_for_the_clock_is_refused():
  check_long_enough({"ours": [Measurement(0.1, 0.03)]})
  with pytest.raises(UsageError, match=r"--num_batches must be large enough .* 0\.00 s of pytorch"):
    check_long_enough(
      {"ours": [Measurement(1.0, 1.0)], "pytorch": [Measurement(0.1, 0.1), Measurement(0.1, 0.0)]}
    )


def test_what_is_not_installed_is_said():
  figures = summarize("tf_data", {}, num_images=1)
  row = {"name": "tf_data", "workers": 2, "status": "not installed", **figures}
  assert make_table([row]).rows[0][1:4] == ("2", "not installed", "-")


def test_a_pipeline_that_fails_is_named(tmp_path):
  options = PipelineOptions(
    folder=write_images(tmp_path),
    batch_size=2,
    image_size=0,  # no size an image can have
    num_workers=0,
    num_batches=1,
    num_untimed=0,
  )
  with (
    PipelineProcess("pytorch", options) as process,
    pytest.raises(TrainingError, match="the pipeline pytorch failed: ValueError"),
  ):
    process.wait_until_ready()
