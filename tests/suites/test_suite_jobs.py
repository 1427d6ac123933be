"""How a suite's runs are started, and what becomes of those that end badly."""

import sys

import pytest

from bcgd_jax.errors import UsageError
from bcgd_jax.report import read_json
from bcgd_jax.suites import execute as execute_module
from bcgd_jax.suites import worker
from bcgd_jax.suites.execute import execute
from bcgd_jax.suites.plan import PlannedRun

VARIABLE = "XLA_PYTHON_CLIENT_PREALLOCATE"


def runs_of(script, names, monkeypatch, tmp_path):
  """Runs whose process is this shell script; $NAME is the run's folder."""
  python = tmp_path / "python"
  python.write_text(f"#!/bin/sh\ncat > /dev/null\nNAME=${{3##*/}}\n{script}\n")
  python.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(python))
  return [
    PlannedRun(
      row=None, seed=0, config={}, workdir=tmp_path / name, identity="", start=None, command=""
    )
    for name in names
  ]


def statuses(runs, tmp_path, *, jobs):
  """Executes the runs: exit status by folder name."""
  ended = {}
  with open(tmp_path / "lock", "wb") as lock:
    execute(
      runs,
      jobs=jobs,
      lock=lock.fileno(),
      on_end=lambda run, status: ended.update({run.workdir.name: status}),
    )
  return ended


@pytest.mark.parametrize(
  ("jobs", "given", "expected"), [(1, None, ""), (2, None, "false"), (2, "true", "true")]
)
def test_runs_beside_each_other_leave_room_on_a_gpu(monkeypatch, tmp_path, jobs, given, expected):
  monkeypatch.delenv(VARIABLE, raising=False)
  if given:
    monkeypatch.setenv(VARIABLE, given)
  runs = runs_of(f'printf "%s" "${VARIABLE}" > {tmp_path}/seen', ["run"], monkeypatch, tmp_path)
  assert statuses(runs, tmp_path, jobs=jobs) == {"run": 0}
  assert (tmp_path / "seen").read_text() == expected


def test_a_killed_run_leaves_the_others(monkeypatch, tmp_path, capsys):
  script = "[ $NAME = killed ] && kill -KILL $$\nexit 0"
  runs = runs_of(script, ["killed", "other"], monkeypatch, tmp_path)
  assert statuses(runs, tmp_path, jobs=1) == {"killed": -9, "other": 0}
  assert "min, killed by signal 9); the reason is above" in capsys.readouterr().out


def test_a_refused_input_stops_the_suite_after_what_ended_beside_it(monkeypatch, tmp_path):
  monkeypatch.setattr(execute_module, "_POLL_SECONDS", 2.0)  # both have ended by then
  script = "[ $NAME = refused ] && exit 2\nexit 0"
  runs = runs_of(script, ["refused", "other", "later"], monkeypatch, tmp_path)
  ended = []
  with (
    open(tmp_path / "lock", "wb") as lock,
    pytest.raises(UsageError, match="shared first phase, seed 0 refused its input; the reason is"),
  ):
    execute(
      runs, jobs=2, lock=lock.fileno(), on_end=lambda run, status: ended.append(run.workdir.name)
    )
  assert ended == ["other"]


def test_more_jobs_than_cores_have_a_core_each(monkeypatch, tmp_path):
  monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5})
  names = ["a", "b", "c"]
  runs = runs_of(f'printf "%s" "$4" > {tmp_path}/$NAME-cores', names, monkeypatch, tmp_path)
  assert statuses(runs, tmp_path, jobs=3) == {"a": 0, "b": 0, "c": 0}
  cores = [(tmp_path / f"{name}-cores").read_text() for name in names]
  assert cores == ["--cores=3", "--cores=5", "--cores=3"]


def test_where_a_run_began_is_kept_and_where_it_went_on_added(monkeypatch, tmp_path):
  places = iter(({"commit": "a"}, {"commit": "a"}, {"commit": "b"}, {"commit": "b"}))
  monkeypatch.setattr(worker, "describe_environment", lambda: next(places))

  def enter():
    worker.note_environment(tmp_path)
    return read_json(tmp_path / "environment.json")

  assert enter() == {"commit": "a"}
  assert enter() == {"commit": "a"}
  assert enter() == {"commit": "a", "resumed_in": [{"commit": "b"}]}
  assert enter() == {"commit": "a", "resumed_in": [{"commit": "b"}]}
