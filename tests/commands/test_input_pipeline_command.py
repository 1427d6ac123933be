"""The benchmark of input pipelines as a command, on a handful of images."""

import importlib.util
import json

import pytest
from command_helpers import run_command

FLAGS = ("--workers=1", "--batch_size=8", "--num_batches=24", "--repetitions=1", "--image_size=32")


@pytest.mark.long
def test_rows_of_all_pipelines(tmp_path):
  path = tmp_path / "rows.json"
  done = run_command(
    "benchmarks.input_pipeline", "--num_images=24", *FLAGS, f"--json={path}", data_dir=tmp_path
  )
  assert done.returncode == 0, done.stderr
  rows = {row["name"]: row for row in json.loads(path.read_text())}
  assert list(rows) == ["ours", "ours_threads", "tf_data", "pytorch"]
  assert {rows[name]["status"] for name in ("ours", "ours_threads", "pytorch")} == {"measured"}
  has_tensorflow = importlib.util.find_spec("tensorflow") is not None
  assert rows["tf_data"]["status"] == ("measured" if has_tensorflow else "not installed")
  for row in rows.values():
    assert row["num_images"] == 24
    assert row["workers"] == 1
    if row["status"] == "measured":
      assert row["images_per_second"] > 0
      assert row["ratio_to_pytorch"] > 0
    else:
      assert row["images_per_second_per_core"] is None
  assert rows["pytorch"]["ratio_to_pytorch"] == 1
  page = path.with_suffix(".md").read_text()
  assert "PyTorch DataLoader" in page
  assert "Images / s and core" in done.stdout


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--workers=0"], ["--workers", "at least 1", "0"]),
    (["--rows=ours,dali"], ["--rows", "dali"]),
    (["--repetitions=0"], ["--repetitions", "at least 1"]),
  ],
)
def test_bad_flags(tmp_path, flags, words):
  done = run_command("benchmarks.input_pipeline", *flags, data_dir=tmp_path)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("error: ")
  for word in words:
    assert word in done.stderr
