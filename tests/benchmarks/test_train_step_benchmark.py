"""The benchmark of training steps writes honest rows and refuses what it cannot do."""

import json
import subprocess
import sys

import pytest

from bcgd_jax.benchmarks.peaks import peak_flops
from bcgd_jax.benchmarks.rotation import paired_ratios, time_in_rotation

COMMAND = [sys.executable, "-m", "bcgd_jax.benchmarks.train_step", "--model=resnet8"]


@pytest.mark.long
def test_rows_are_written(tmp_path):
  path = tmp_path / "rows.json"
  flags = ["--devices=2", "--batch_size=8", "--image_size=16", "--rounds=3", f"--json={path}"]
  done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  rows = json.loads(path.read_text())
  assert [(r["weight_bits"], r["activation_bits"]) for r in rows] == [(32, 32), (1, 4), (4, 4)]
  for row in rows:
    assert row["model"] == "resnet8"
    assert row["devices"] == 2
    assert row["step_seconds"] > 0
    assert row["images_per_second"] == pytest.approx(8 / row["step_seconds"])
    assert row["peak_memory_bytes"] > 100_000
    assert row["mfu"] is None  # no peak is known of a processor
  assert rows[0]["ratio_to_float"] == 1.0
  assert all(row["ratio_to_float"] != 1.0 for row in rows[1:])
  page = path.with_suffix(".md").read_text()
  assert "Training steps of resnet8, 8 images of 16 x 16" in page
  assert "| 1 / 4 |" in page
  assert "1 / 4" in done.stdout


def test_a_batch_that_does_not_fit_the_devices_is_refused():
  flags = ["--devices=2", "--batch_size=9"]
  done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert "--batch_size must be divisible by 2" in done.stderr
  assert "Traceback" not in done.stderr


def test_rotation_changes_who_comes_first():
  order = []
  runs = {name: lambda name=name: order.append(name) for name in "abc"}
  seconds = time_in_rotation(runs, num_rounds=2)
  assert "".join(order) == "abcbca"
  assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratios_are_taken_within_rounds():
  assert paired_ratios([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == (2.0, 2.0, 2.5)
  assert paired_ratios([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_peaks():
  assert peak_flops("NVIDIA H200") == 989e12
  assert peak_flops("TPU v5 lite") == 197e12
  assert peak_flops("cpu") is None
