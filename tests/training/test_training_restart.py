"""A run killed anywhere and started again ends as if nothing had happened, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_config import tiny_config

from bcgd_jax.report.records import read_metrics
from bcgd_jax.training.run import abstract_tree, load_phase, open_run
from bcgd_jax.training.settings import to_json

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """A function that starts the tiny run on a workdir in a process of its own."""
  shared = tmp_path_factory.mktemp("shared")
  config = shared / "config.json"
  config.write_text(to_json(tiny_config()))
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "TFDS_DATA_DIR": str(shared / "data"),
    # every process compiles the same programs; the first one's are read by the others
    "JAX_COMPILATION_CACHE_DIR": str(shared / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }

  def run(workdir: Path, kill: str) -> int:
    command = [sys.executable, str(HERE / "run_worker.py"), str(config), str(workdir), kill]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode

  return run


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
  assert start(workdir, "none") == 0
  return workdir


def without_timing(record):
  return {key: value for key, value in record.items() if key != "timing"}


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
  """Every array of a run's last checkpoint and of its phases, by name."""
  run = open_run(json.loads((folder / "config.json").read_text()), folder)
  phase = run.phases[-1]
  trees = {
    "last": run.store.restore(run.store.latest().step, abstract_tree(run, phase)),
    **{phase.name: load_phase(run, phase) for phase in run.phases},
  }
  leaves = jax.tree_util.tree_leaves_with_path(trees)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_end(workdir: Path, uninterrupted: Path) -> None:
  """Parameters, optimizer state, metrics and files of two finished runs, bit for bit."""
  expected, found = read_arrays(uninterrupted), read_arrays(workdir)
  assert expected.keys() == found.keys()
  different = [k for k in expected if expected[k].tobytes() != found[k].tobytes()]
  assert not different
  assert list(map(without_timing, read_metrics(workdir))) == list(
    map(without_timing, read_metrics(uninterrupted))
  )
  for name in ("weights.json", "gallery.npz", "config.json"):
    assert (workdir / name).read_bytes() == (uninterrupted / name).read_bytes()


# Each chain is one workdir killed and started again until it ends. Steps 1..12 are the float phase,
# 13..24 the quantized one; checkpoints are of steps 4, 8, 12 (the change of phase), 16, 20 and 24.
# Where it does not matter, the step is drawn: at a checkpoint, beside one, in between.
DRAW = random.Random(20181126).randint
CHAINS = {
  "float_phase": [f"step:{DRAW(1, 4)}", f"step:{DRAW(5, 7)}", "written:8", f"step:{DRAW(8, 12)}"],
  "change_of_phase": ["written:12", "committed:12", "step:13"],
  "quantized_phase": [f"step:{DRAW(14, 16)}", "written:16", f"step:{DRAW(17, 23)}", "written:24"],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_killed_run_ends_like_an_uninterrupted_one(start, uninterrupted, tmp_path, chain):
  workdir = tmp_path / "run"
  for kill in chain:
    assert start(workdir, kill) == -signal.SIGKILL, f"the run did not reach {kill}"
  assert start(workdir, "none") == 0

  assert_same_end(workdir, uninterrupted)


def test_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
  start, uninterrupted, tmp_path
):
  workdir = tmp_path / "run"
  assert start(workdir, "committed:20") == -signal.SIGKILL
  files = [p for p in (workdir / "checkpoints" / "step_00000020").rglob("*") if p.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  assert start(workdir, "none") == 0
  assert_same_end(workdir, uninterrupted)


def test_the_tiny_run_is_long_enough_to_be_cut(uninterrupted):
  """Guards the test above: two phases, validation in each, and arrays that moved."""
  records = read_metrics(uninterrupted)
  kinds = {(record["phase"], record["kind"]) for record in records}
  for phase in ("float", "quantized"):
    assert {(phase, "train"), (phase, "validation"), (phase, "test")} <= kinds
  assert {("quantized", "alpha"), ("quantized", "codes"), ("float", "dead")} <= kinds
  changed = [record["codes_changed"] for record in records if "codes_changed" in record]
  assert len(changed) == 6
  assert len(set(changed)) > 3
  losses = [record["loss"] for record in records if record["kind"] == "train"]
  assert len(losses) == len(set(losses)) == 12
