"""The suite command end to end, on runs of seconds: what it runs, resumes, refuses and leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from suite_helpers import FLOAT, NO_RHO, ROWS, TINY, write_suite

from bcgd_jax.report import read_json, write_json

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


def start(suite, workdir, *arguments, data_dir):
  """The command in a process of its own."""
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "bcgd_jax.reproduce"),
      *(f"--suite={suite}", f"--workdir={workdir}", *arguments),
    ],
    cwd=ROOT,
    # the runs are alike: what one has compiled, the others read
    env={
      **os.environ,
      "TFDS_DATA_DIR": str(data_dir),
      "JAX_COMPILATION_CACHE_DIR": str(data_dir / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*arguments, data_dir):
  process = start(*arguments, data_dir=data_dir)
  out, err = process.communicate(timeout=500)
  return process.returncode, out, err


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
  """A finished tiny suite, two runs at a time: (suite file, workdir, what was printed)."""
  suite = write_suite(tmp_path_factory.mktemp("suite"), *ROWS)
  workdir = tmp_path_factory.mktemp("work") / "tiny"
  status, out, err = run(suite, workdir, "--jobs=2", data_dir=data_dir)
  assert status == 0, out + err
  return suite, workdir, out


def test_every_row_has_a_record_a_table_and_figures(finished):
  _, workdir, out = finished
  results = read_json(workdir / "results.json")
  assert [(r["row"], r["seed"], r["status"]) for r in results["runs"]] == [
    ("float", 0, "done"),
    ("BCGD", 0, "done"),
    ("rho = 0", 0, "done"),
    ("float", 1, "done"),
    ("BCGD", 1, "done"),
  ]
  assert results["command"].startswith("python -m bcgd_jax.reproduce --suite=")
  assert "| BCGD | 1 / 4 |" in (workdir / "results.md").read_text()
  assert {p.name for p in workdir.glob("*.png")} == {"bars.png", "blending.png", "curves.png"}
  assert "tiny: 5 runs to train, 0 done." in out
  assert out.rstrip().endswith(f"Results: {workdir}/results.md")


def test_records_agree_with_the_runs(finished):
  _, workdir, _ = finished
  for record in read_json(workdir / "results.json")["runs"]:
    folder = workdir / "runs" / record["row"].lower().replace(" = ", "-") / f"seed{record['seed']}"
    ended = read_json(folder / "run.json")
    key = "float_test_accuracy" if record["row"] == "float" else "quantized_test_accuracy"
    assert record["test_accuracy"] == ended[key]
    assert record["quantized_bytes"] == ended["quantized_bytes"]
    assert record["environment"] == read_json(folder / "environment.json")
    assert record["seconds"]["float"] > 0
    # 64 images in batches of 16, one epoch a phase
    steps = {"float": None, "BCGD": 4 * 2.5e-4, "rho = 0": 0.0}[record["row"]]
    assert record["rho_steps"] == (None if steps is None else pytest.approx(steps))
    epochs = [point["epoch"] for point in record["validation"]]
    assert epochs == ([1.0] if record["row"] == "float" else [1.0, 2.0])


def test_the_float_phase_is_trained_once_a_seed(finished):
  _, workdir, _ = finished
  for name in ("bcgd", "rho-0"):
    folder = workdir / "runs" / name / "seed0"
    source = workdir / "runs" / "float" / "seed0"
    assert read_json(folder / "config.json")["float"]["start_from"] == str(source)
    assert (
      read_json(folder / "run.json")["float_test_accuracy"]
      == (read_json(source / "run.json")["float_test_accuracy"])
    )
    assert not (workdir / "first_phases").exists()


def test_started_again_it_trains_only_what_is_missing(finished, data_dir, tmp_path):
  suite, original, _ = finished
  workdir = tmp_path / "tiny"
  workdir.mkdir()
  shutil.copy(original / "results.json", workdir)
  status, out, err = run(suite, workdir, data_dir=data_dir)
  assert status == 0, err
  assert "tiny: 0 runs to train, 5 done." in out
  assert not (workdir / "runs").exists()
  before = read_json(original / "results.json")
  assert read_json(workdir / "results.json")["runs"] == before["runs"]
  # what is lost is missing again, and so are the float weights that the others start from
  write_json(workdir / "results.json", {**before, "runs": before["runs"][:2]})
  status, out, err = run(suite, workdir, "--plan", data_dir=data_dir)
  assert status == 0, err
  assert "tiny: 4 runs to train, 2 done." in out


def test_stopped_by_sigterm_it_stops_its_runs_and_goes_on(finished, data_dir, tmp_path):
  _, original, _ = finished
  suite, workdir = write_suite(tmp_path, FLOAT), tmp_path / "tiny"
  # two jobs as there: equal bit for bit means on as many cores
  first = start(suite, workdir, "--jobs=2", data_dir=data_dir)
  checkpoints = workdir / "runs" / "float" / "seed0" / "checkpoints"
  deadline = time.monotonic() + 300
  while not (checkpoints.exists() and any(checkpoints.iterdir())):
    assert first.poll() is None, first.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.05)
  first.send_signal(signal.SIGTERM)
  first.communicate(timeout=60)
  assert first.returncode == 143
  status, _, err = run(suite, workdir, "--jobs=2", data_dir=data_dir)
  assert status == 0, err
  resumed, straight = (read_json(w / "results.json")["runs"][0] for w in (workdir, original))
  for key in ("row", "seed", "test_accuracy", "test_loss", "train_loss", "validation"):
    assert resumed[key] == straight[key], key


def test_two_commands_do_not_share_a_folder(data_dir, tmp_path):
  suite, workdir = write_suite(tmp_path, FLOAT), tmp_path / "tiny"
  first = start(suite, workdir, data_dir=data_dir)
  deadline = time.monotonic() + 300
  while not (workdir / "results.json").exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  status, _, err = run(suite, workdir, data_dir=data_dir)
  assert status == 2
  assert "in use by another command" in err
  first.send_signal(signal.SIGKILL)
  first.wait()
  status, _, err = run(suite, workdir, "--plan", data_dir=data_dir)
  assert status == 2, "the run that was left behind still holds the folder"
  first.communicate()  # it has ended when its output is closed


def test_a_run_that_fails_leaves_the_others_and_status_1(data_dir, tmp_path):
  too_fast = {**NO_RHO, "overrides": {**TINY, "quantized.learning_rate": 1e30}}
  suite, workdir = write_suite(tmp_path, FLOAT, too_fast), tmp_path / "tiny"
  status, out, err = run(suite, workdir, "--jobs=2", data_dir=data_dir)
  assert status == 1
  assert "failed rho = 0, seed 0" in out
  assert "error: 1 of 2 runs did not finish: rho = 0 (seed 0)." in err
  records = read_json(workdir / "results.json")["runs"]
  assert [(r["row"], r["status"]) for r in records] == [("float", "done"), ("rho = 0", "failed")]
  assert "| rho = 0 | - | - | - | - | failed |" in (workdir / "results.md").read_text()
  assert "A lower learning rate" in (workdir / "runs" / "rho-0" / "seed0-log.txt").read_text()


def test_a_folder_of_another_configuration_is_refused_before_anything_is_written(
  finished, data_dir, tmp_path
):
  _, original, _ = finished
  workdir = tmp_path / "tiny"
  shutil.copytree(original, workdir)
  (workdir / "results.json").unlink()
  longer = [
    {**row, "overrides": {**row["overrides"], "float.epochs": 2.0}} for row in (FLOAT, NO_RHO)
  ]
  status, _, err = run(write_suite(tmp_path, *longer), workdir, data_dir=data_dir)
  assert status == 2
  assert "runs/float/seed0 holds another configuration than float, seed 0 has in this suite" in err
  assert not (workdir / "results.json").exists()


def test_finished_folders_are_collected_where_they_were_moved_to(finished, data_dir, tmp_path):
  suite, original, _ = finished
  workdir = tmp_path / "moved"
  shutil.copytree(original, workdir)
  (workdir / "results.json").unlink()
  status, out, err = run(suite, workdir, data_dir=data_dir)
  assert status == 0, err
  assert "examples/s" not in out  # nothing was trained
  before = read_json(original / "results.json")
  assert read_json(workdir / "results.json")["runs"] == before["runs"]


def test_data_that_is_not_there_ends_with_the_table_and_one_line(data_dir, tmp_path):
  status, _, err = run("imagenet", tmp_path / "work", "--jobs=2", data_dir=data_dir)
  assert status == 2
  assert "Traceback" not in err
  assert "refused its input; the reason is in" in err
  page = (tmp_path / "work" / "results.md").read_text()
  assert "| ResNet-18 1W4A BCGD | - | - | - | - | not run | 0 | - | - | - | 64.36 |" in page


def test_a_file_is_no_workdir(data_dir, tmp_path):
  (tmp_path / "file").write_text("mine")
  status, _, err = run("blending", tmp_path / "file", data_dir=data_dir)
  assert status == 2
  assert err.startswith(f"error: --workdir must name a folder, got {tmp_path / 'file'}: ")
  assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--suite=nothing"], "--suite must be a name or a path of a suite file, got 'nothing'"),
    ([], "--suite must name a suite"),
    (["--suite=blending"], "--workdir must name a folder"),
    (["--suite=blending", "--workdir=gs://x"], "must be a local or mounted folder, got gs://x"),
    (["--suite=blending", "--workdir=W", "--jobs=0"], "--jobs must be >= 1, got 0"),
    (["--suite=blending", "--workdir=W", "--set=float.epochs"], "--set must be KEY=VALUE"),
    (["--suite=blending", "--workdir=W", "--set=float.epoch=1"], "row 'float', float.epoch: "),
    (
      ["--suite=blending", "--workdir=W", "--set=float.epochs=x"],
      "row 'float', float.epochs: could not convert",
    ),
  ],
)
def test_bad_input_is_one_line_and_touches_nothing(tmp_path, arguments, words):
  done = subprocess.run(
    [sys.executable, "-m", "bcgd_jax.reproduce"]
    + [argument.replace("=W", f"={tmp_path / 'w'}") for argument in arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr
  assert done.stderr.startswith("error: ")
  assert words in done.stderr
  assert not (tmp_path / "w").exists()
