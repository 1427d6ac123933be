"""What is checked before processes train together, the watchdog, and the compilation cache."""

import threading
import time

import pytest
from program_helpers import Program

from bcgd_jax.errors import UsageError
from bcgd_jax.training.distributed import DistributedOptions
from bcgd_jax.training.watchdog import Watchdog


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"coordinator_address": "host:1"}, "must be given together, got host:1, None and None"),
    ({"num_processes": 2, "process_id": 0}, "must be given together"),
    (
      {"coordinator_address": "host", "num_processes": 2, "process_id": 0},
      "must be HOST:PORT, got 'host'",
    ),
    (
      {"coordinator_address": "host:1", "num_processes": 2, "process_id": 2},
      r"process_id must be in \[0, num_processes\), got 2 of 2",
    ),
    (
      {"coordinator_address": "h:1", "num_processes": 2, "process_id": 0, "mode": "auto"},
      "distributed must be off where coordinator_address is given",
    ),
    ({"mode": "on"}, "distributed must be off or auto, got 'on'"),
  ],
)
def test_options_that_do_not_fit_are_refused(values, message):
  with pytest.raises(UsageError, match=message):
    DistributedOptions(**values)


def test_other_devices_than_expected_end_the_start(tmp_path):
  program = Program(tmp_path, tmp_path / "run", "--expected_devices=3", devices=2)
  assert program.wait() == [2]
  assert "expected_devices must be the 2 that JAX sees" in program.text()
  program = Program(tmp_path, tmp_path / "run", "--expected_platform=tpu")
  assert program.wait() == [2]
  assert "expected_platform must be what JAX runs on, cpu, got tpu" in program.text()
  assert not (tmp_path / "run").exists()


def test_no_cluster_is_an_error(tmp_path, monkeypatch):
  for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "TPU_WORKER_HOSTNAMES"):
    monkeypatch.delenv(name, raising=False)
  program = Program(tmp_path, tmp_path / "run", "--distributed=auto")
  assert program.wait() == [2]
  assert "distributed=auto found no cluster to join" in program.text()


def test_processes_of_different_configurations_do_not_train(tmp_path):
  program = Program(
    tmp_path, tmp_path / "run", count=2, last_flags=("--config.float.momentum=0.5",)
  )
  statuses = program.wait(seconds=120)
  assert statuses[0] == 2, program.text()
  assert statuses[1] in (2, 134), program.text()  # by itself, or because the first one is gone
  assert "configuration must be the same in all processes" in program.text()
  assert "Traceback" not in program.text()


def test_a_workdir_that_is_not_shared_is_found_out(tmp_path):
  program = Program(
    tmp_path, tmp_path / "run", count=2, last_flags=(f"--workdir={tmp_path / 'other'}",)
  )
  statuses = program.wait(seconds=120)
  assert statuses[0] == 2, program.text()
  assert "workdir must be one folder shared by all processes" in program.text()
  assert not list((tmp_path / "run").glob("checkpoints/*"))


class Hangs:
  """Counts what a watchdog reports, and says when."""

  def __init__(self):
    self.event = threading.Event()

  def __call__(self):
    self.event.set()


def test_watchdog_bites_when_no_step_ends(capsys):
  hung = Hangs()
  with Watchdog(0.2, on_hang=hung) as dog:
    for _ in range(5):
      time.sleep(0.1)
      dog.beat()
    assert not hung.event.is_set()
    assert hung.event.wait(5)
  assert "no step ended for" in capsys.readouterr().err


def test_watchdog_waits_longer_inside_slow_blocks():
  hung = Hangs()
  with Watchdog(0.1, on_hang=hung, slow_seconds=60) as dog:
    with dog.slow(), dog.slow():
      time.sleep(0.5)
    dog.beat()
    assert not hung.event.is_set()
    assert hung.event.wait(5)
  hung = Hangs()
  with Watchdog(0.1, on_hang=hung, slow_seconds=0.3) as dog, dog.slow():
    assert hung.event.wait(5)


def test_watchdog_stops_with_its_block():
  hung = Hangs()
  with Watchdog(0.2, on_hang=hung):
    pass
  time.sleep(0.5)
  assert not hung.event.is_set()
  with pytest.raises(ValueError, match="limit_seconds must be > 0"):
    Watchdog(0.0)


@pytest.mark.long
def test_compiled_programs_are_kept_where_told(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  program = Program(tmp_path, tmp_path / "run", f"--compilation_cache={tmp_path / 'programs'}")
  assert program.wait() == [0], program.text()
  assert any((tmp_path / "programs").iterdir())
