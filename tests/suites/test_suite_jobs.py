"""What a suite's runs are started with."""

import sys

import pytest

from bcgd_jax.suites.execute import execute
from bcgd_jax.suites.plan import PlannedRun

VARIABLE = "XLA_PYTHON_CLIENT_PREALLOCATE"


@pytest.mark.parametrize(
  ("jobs", "given", "expected"), [(1, None, ""), (2, None, "false"), (2, "true", "true")]
)
def test_runs_beside_each_other_leave_room_on_a_gpu(monkeypatch, tmp_path, jobs, given, expected):
  monkeypatch.delenv(VARIABLE, raising=False)
  if given:
    monkeypatch.setenv(VARIABLE, given)
  python = tmp_path / "python"  # stands in for the run: keeps what it was started with
  python.write_text(f'#!/bin/sh\ncat > /dev/null\nprintf "%s" "${VARIABLE}" > {tmp_path}/seen\n')
  python.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(python))
  run = PlannedRun(
    row=None, seed=0, config={}, workdir=tmp_path / "run", identity="", start=None, command=""
  )
  ended = []
  with open(tmp_path / "lock", "wb") as lock:
    execute([run], jobs=jobs, lock=lock.fileno(), on_end=lambda *end: ended.append(end))
  assert ended == [(run, 0)]
  assert (tmp_path / "seen").read_text() == expected
