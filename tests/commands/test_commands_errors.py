"""Bad input ends a command with one clear line, status 2, no traceback and an untouched workdir."""

import gzip
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_helpers import TINY, run_command


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


def write_idx(folder: Path, *, labels=(0, 1, 2, 3) * 5, truncate=0) -> Path:
  """A folder of 20 + 20 random 8x8 images in MNIST's format."""
  folder.mkdir(parents=True)
  pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8).tobytes()
  for prefix in ("train", "t10k"):
    images = struct.pack(">IIII", 2051, 20, 8, 8) + pixels
    data = images[: len(images) - truncate]
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(data))
    table = struct.pack(">II", 2049, 20) + bytes(labels)
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(table))
  return folder


def assert_refused(done, *words):
  assert done.returncode == 2, done.stdout + done.stderr
  assert "Traceback" not in done.stderr
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("error: ")
  for word in words:
    assert word in lines[0]


BAD_FLAGS = {
  "unknown_key": (["--config.quantization.wieght_bits=1"], ["wieght_bits"]),
  "wrong_type": (["--config.data.batch_size=many"], ["config.data.batch_size", "many"]),
  "bits": (["--config.quantization.weight_bits=12"], ["weight_bits", "1..8", "got 12"]),
  "unknown_model": (["--config.model.name=resnet9"], ["resnet9", "resnet8"]),
  "unknown_dataset": (["--config.data.dataset=digts"], ["digts", "digits"]),
  "missing_idx": (
    ["--config.data.dataset=idx", "--config.data.manual_dir=no/such/folder"],
    ["no/such/folder"],
  ),
  "tensorflow_absent": (["--config.data.dataset=cifar10"], ["cifar10", "TensorFlow", "bcgd_jax"]),
  "no_config_file": (["--config=configs/nothing.py"], ["configs/nothing.py"]),
  "profile_steps": (["--profile_steps=5,3"], ["--profile_steps", "FIRST <= LAST", "'5,3'"]),
  "stray_argument": (["stray"], ["stray"]),
}


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flag(data_dir, tmp_path, flags, words):
  workdir = tmp_path / "run"
  done = run_command("main", *TINY, f"--workdir={workdir}", *flags, data_dir=data_dir)
  assert_refused(done, *words)
  assert not workdir.exists()


def test_batch_that_devices_do_not_divide(data_dir, tmp_path):
  done = run_command(
    "main",
    *TINY,
    f"--workdir={tmp_path / 'run'}",
    data_dir=data_dir,
    env={"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
  )
  assert_refused(done, "config.data.batch_size", "divisible by 3", "got 16")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"truncate": 7}, ["train-images-idx3-ubyte.gz"]),
    ({"labels": (0, 1, 2, 200) * 5}, ["train-labels-idx1-ubyte.gz", "200"]),
  ],
  ids=["truncated", "label_out_of_range"],
)
def test_damaged_idx(data_dir, tmp_path, changes, words):
  folder = write_idx(tmp_path / "idx", **changes)
  flags = ["--config.data.dataset=idx", f"--config.data.manual_dir={folder}"]
  done = run_command(
    "main",
    *TINY,
    *flags,
    "--config.data.validation_examples=0",
    "--config.data.train_examples=16",
    f"--workdir={tmp_path / 'run'}",
    data_dir=data_dir,
  )
  assert_refused(done, *words)
  assert not (tmp_path / "run").exists()


def contents(folder: Path) -> dict[str, bytes]:
  """Every file of a run but TensorBoard's events, which a resumed run writes anew."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and "tensorboard" not in path.parts
  }


@pytest.fixture(scope="module")
def stopped(data_dir, tmp_path_factory):
  """A run whose loss stopped being finite, after a checkpoint: (workdir, what main printed)."""
  workdir = tmp_path_factory.mktemp("stopped") / "run"
  # the learning rate overflows float32 in the first steps of the second phase
  flags = ["--config.quantized.learning_rate=1e38", "--config.quantized.epochs=3.0"]
  done = run_command("main", *TINY, *flags, f"--workdir={workdir}", data_dir=data_dir)
  return workdir, done


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(stopped):
  workdir, done = stopped
  assert done.returncode == 1, done.stderr
  assert "Traceback" not in done.stderr
  assert re.search(r"^error: (loss|grad_norm|param_norm) is (nan|inf) at step [5-9] ", done.stderr)
  assert "checkpoint of step 4 is kept" in done.stderr
  assert (workdir / "checkpoints" / "step_00000004" / "manifest.json").exists()
  assert not (workdir / "run.json").exists()


def test_workdir_of_another_configuration_is_left_alone(stopped, data_dir):
  workdir, _ = stopped
  before = contents(workdir)
  done = run_command("main", *TINY, f"--workdir={workdir}", data_dir=data_dir)
  assert_refused(done, "config.quantized.epochs", "3.0 there", "1.0 here")
  assert contents(workdir) == before


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_checkpoint_falls_back_to_the_one_before(stopped, data_dir, tmp_path, damage):
  workdir = tmp_path / "run"
  shutil.copytree(stopped[0], workdir)
  newest = sorted((workdir / "checkpoints").iterdir())[-1]
  path = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  if damage == "flip":
    data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data if damage == "flip" else data[:-1]))
  done = run_command("evaluate", f"--workdir={workdir}", data_dir=data_dir)
  assert done.returncode == 0, done.stderr
  assert str(path.name) in done.stderr
  assert "CheckpointWarning" in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_folder_that_is_no_run_is_named(data_dir, tmp_path, command):
  done = run_command(command, f"--workdir={tmp_path}", data_dir=data_dir)
  assert_refused(done, "config.json")
  assert list(tmp_path.iterdir()) == []


def test_folder_with_other_files_is_left_alone(data_dir, tmp_path):
  (tmp_path / "thesis.tex").write_text("mine")
  done = run_command("main", *TINY, f"--workdir={tmp_path}", data_dir=data_dir)
  assert_refused(done, str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ("", "the same command goes on where this one stopped"),
    (", interrupted='nothing was written'", "nothing was written"),
  ],
)
def test_an_interrupted_command_says_what_is_left(arguments, words):
  script = f"""
from bcgd_jax.command import run_command

def main():
  raise KeyboardInterrupt

run_command(main{arguments})
"""
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
  assert done.returncode == 130
  assert done.stderr == f"error: interrupted; {words}.\n"
