"""Runs that are asked to stop, killed or stuck, as one process and as two; and how they go on."""

import os
import signal
import time

import numpy as np
import pytest
from program_helpers import Program

from bcgd_jax.report.files import read_json
from bcgd_jax.report.records import read_metrics

pytestmark = pytest.mark.long  # processes that wait for one another, by design for half a minute


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def uninterrupted(shared):
  """The run on one device that nobody disturbs."""
  workdir = shared / "uninterrupted"
  program = Program(shared, workdir)
  assert program.wait() == [0], program.text()
  return workdir


@pytest.fixture(scope="module")
def pair(shared):
  """The run of two processes with two devices each that nobody disturbs."""
  workdir = shared / "pair"
  program = Program(shared, workdir, count=2, devices=2)
  assert program.wait() == [0, 0], program.text()
  return workdir


def without_timing(workdir):
  return [{k: v for k, v in r.items() if k != "timing"} for r in read_metrics(workdir)]


def losses(workdir):
  return {r["step"]: r["loss"] for r in read_metrics(workdir) if r["kind"] == "train"}


def test_two_processes_write_everything_once(pair, uninterrupted):
  ours, theirs = read_metrics(pair), read_metrics(uninterrupted)
  place = [(r["step"], r["phase"], r["kind"]) for r in theirs]
  assert [(r["step"], r["phase"], r["kind"]) for r in ours] == place
  assert len(list((pair / "tensorboard").iterdir())) == 1
  for name in ("num_test_examples", "num_parameters", "quantized_bytes"):
    assert read_json(pair / "run.json")[name] == read_json(uninterrupted / "run.json")[name]
  # rounding may carry an activation over a threshold, so only the float steps stay close
  first = [step for step in losses(uninterrupted) if step <= 6]
  for step in first:
    assert losses(pair)[step] == pytest.approx(losses(uninterrupted)[step], abs=1e-4)


@pytest.mark.parametrize("step", [3, 17])
def test_sigterm_saves_and_the_run_ends_like_an_uninterrupted_one(
  shared, uninterrupted, tmp_path, step
):
  """The signal goes to the whole group, so the worker that reads the data gets it too."""
  workdir = tmp_path / "run"
  program = Program(shared, workdir, "--config.data.num_workers=1")
  program.wait_for_step(step)
  os.killpg(program.processes[0].pid, signal.SIGTERM)
  assert program.wait() == [143], program.text()
  assert "asked to stop; step" in program.text()
  assert "Traceback" not in program.text()
  saved = int(program.text().split("asked to stop; step ")[1].split()[0])
  assert (workdir / "checkpoints" / f"step_{saved:08d}" / "manifest.json").exists()

  assert Program(shared, workdir).wait() == [0]
  assert without_timing(workdir) == without_timing(uninterrupted)
  assert (workdir / "weights.json").read_bytes() == (uninterrupted / "weights.json").read_bytes()


def test_sigterm_to_one_of_two_stops_both_at_one_step(shared, pair, tmp_path):
  workdir = tmp_path / "run"
  program = Program(shared, workdir, count=2, devices=2)
  program.wait_for_step(3)
  program.processes[1].send_signal(signal.SIGTERM)
  assert program.wait() == [143, 143], program.text()

  again = Program(shared, workdir, count=2, devices=2)
  assert again.wait() == [0, 0], again.text()
  assert without_timing(workdir) == without_timing(pair)


def test_a_run_of_two_processes_goes_on_in_one_and_on_fewer_devices(shared, pair, tmp_path):
  workdir = tmp_path / "run"
  program = Program(shared, workdir, count=2, devices=2)
  program.wait_for_step(3)
  program.processes[0].send_signal(signal.SIGTERM)
  assert program.wait() == [143, 143], program.text()

  half = Program(shared, workdir, devices=2)
  half.wait_for_step(15)
  half.processes[0].send_signal(signal.SIGTERM)
  assert half.wait() == [143], half.text()
  assert Program(shared, workdir).wait() == [0]
  place = [(r["step"], r["phase"], r["kind"]) for r in read_metrics(pair)]
  assert [(r["step"], r["phase"], r["kind"]) for r in read_metrics(workdir)] == place
  # equal batches: a float phase of 12 steps ends close, whatever the number of devices
  assert losses(workdir)[12] == pytest.approx(losses(pair)[12], abs=5e-3)


@pytest.mark.parametrize(
  ("name", "number", "statuses"),
  [
    ("killed", signal.SIGKILL, {134}),
    ("stopped", signal.SIGSTOP, {134, 142}),
  ],
)
def test_a_lost_peer_ends_the_other_within_a_minute(shared, pair, tmp_path, name, number, statuses):
  del pair  # its programs are compiled
  workdir = tmp_path / name
  program = Program(shared, workdir, "--step_timeout=20", count=2, devices=2)
  program.wait_for_step(6)
  lost, other = program.processes[1], program.processes[0]
  lost.send_signal(number)
  began = time.monotonic()
  status = other.wait(60)
  assert time.monotonic() - began < 60
  assert (status if status >= 0 else 128 - status) in statuses, program.text()
  program.kill()

  assert Program(shared, workdir).wait() == [0]
  assert np.isfinite(losses(workdir)[24])


def test_a_peer_that_hangs_with_its_heartbeat_alive_ends_both(shared, pair, tmp_path):
  del pair
  program = Program(shared, tmp_path / "run", "--step_timeout=6", count=2, devices=2, hang_at="7")
  program.wait_for_step(6)
  began = time.monotonic()
  statuses = program.wait(seconds=60)
  assert time.monotonic() - began < 60
  assert 142 in statuses, program.text()
  assert set(statuses) <= {134, 142}, program.text()
  assert "no step ended for" in program.text()
