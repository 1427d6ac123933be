"""Which statuses start a run again, and when the scripts give up."""

import subprocess

import pytest
from launch_helpers import ROOT


def shell(code: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    ["bash", "-c", f"set -euo pipefail; max_restarts=4 max_stalled=2; . launch/restart.sh; {code}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=20,
  )


@pytest.mark.parametrize(
  ("status", "restarts"),
  [(0, False), (1, False), (2, False), (130, False), (139, False)]
  + [(status, True) for status in (134, 137, 142, 143, 255)],
)
def test_statuses_worth_another_start(status, restarts):
  assert (shell(f"is_restartable {status}").returncode == 0) == restarts


@pytest.mark.parametrize(
  ("statuses", "overall"),
  [("0 0", 0), ("143 143", 143), ("134 1 137", 1), ("0 134", 134), ("2 0", 2), ("255", 255)],
)
def test_a_failure_counts_before_the_peers_it_took_along(statuses, overall):
  assert shell(f"overall_status {statuses}").stdout == f"{overall}\n"


def test_the_newest_step_is_that_of_a_committed_checkpoint(tmp_path):
  for name, committed in (("step_00000008", 1), ("step_00000090-2", 1), ("step_00000100", 0)):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    if committed:
      (tmp_path / "checkpoints" / name / "manifest.json").touch()
  assert shell(f"step_of_workdir {tmp_path}").stdout == "90\n"
  assert shell(f"step_of_workdir {tmp_path}/none").stdout == "-1\n"


def test_giving_up_after_starts_without_a_new_checkpoint():
  done = shell("count_restart 5; count_restart 5; echo once; count_restart 5; echo twice")
  assert (done.returncode, done.stdout) == (1, "once\n")
  assert "2 starts in a row brought no new checkpoint (newest step: 5)" in done.stderr


def test_a_new_checkpoint_forgives_a_start_without():
  assert shell("for step in 5 5 6 6; do count_restart $step; done").returncode == 0


def test_giving_up_after_many_starts_even_with_checkpoints():
  done = shell("for step in 1 2 3 4 5 6; do count_restart $step; echo $step; done")
  assert done.stdout == "1\n2\n3\n4\n"
  assert "started again 4 times already" in done.stderr


def test_words_are_quoted_for_a_shell_only_where_they_need_it():
  code = (
    """quoted a/b=1 "it's  two" '' '$HOME'; eval "printf '<%s>' $(quoted "it's  two" '' '$a')" """
  )
  lines = shell(code).stdout.splitlines()
  assert lines[0] == """a/b=1 'it'\\''s  two' '' '$HOME'"""
  assert lines[1] == "<it's  two><><$a>"


def test_the_childs_status_survives_a_signal_to_the_shell():
  # the child takes a while to end, and ends with a status of its own
  child = """bash -c 'trap "sleep 0.2; exit 7" TERM; while :; do sleep 0.05; done'"""
  code = f"""
    {{ run_child {child}; echo "$child_status $stop_signal"; }} &
    sleep 0.3; kill -TERM $!; sleep 0.1; kill -TERM $!; wait $!"""
  assert shell(code).stdout == "7 TERM\n"
