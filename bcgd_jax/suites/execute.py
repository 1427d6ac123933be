"""Runs what is missing of a suite, several runs at a time, each in a process of its own."""

import collections
import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bcgd_jax.errors import UsageError
from bcgd_jax.suites.plan import PlannedRun
from bcgd_jax.training.settings import config_hash, to_json
from bcgd_jax.training.workdir import CONFIG_FILE, RUN_FILE, read_config

LOCK_FILE = ".lock"
_POLL_SECONDS = 0.2
_REFUSED = 2  # the exit status of a command that refuses its input


@dataclasses.dataclass(slots=True, kw_only=True)
class _Job:
  run: PlannedRun
  process: subprocess.Popen[bytes]
  cores: tuple[int, ...]
  started: float


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[int]:
  """Holds a suite's folder, for this process and those it starts.

  Yields:
    The lock's file descriptor; while any process has it open, no other command gets the folder.
  Raises:
    UsageError: if another command holds it.
  """
  with open(workdir / LOCK_FILE, "ab") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UsageError(f"--workdir {workdir} is in use by another command.") from error
    yield file.fileno()


def execute(
  runs: Sequence[PlannedRun],
  *,
  jobs: int,
  lock: int,
  on_end: Callable[[PlannedRun, int], None],
) -> None:
  """Trains every run, saying what starts and ends; one that starts from another waits for it.

  With one job a run has the terminal; with several, each has its share of the CPU cores, takes a
  GPU's memory as it needs it, and writes to a log beside its folder. A run that fails or is killed
  leaves the others alone.

  Args:
    runs: what is missing, in the order to start; one whose start is neither here nor finished on
      disk is not run.
    jobs: runs at a time.
    lock: of `locked`; inherited by the runs.
    on_end: called with each run that ended and its exit status.
  Raises:
    UsageError: if a run refused its input; the others in progress are stopped, and go on next time.
  """
  waiting = collections.deque(runs)
  free = list(_share_cores(jobs))
  active: list[_Job] = []
  with _termination_as_exit():
    try:
      while waiting or active:
        while free and (run := _next_ready(waiting)) is not None:
          active.append(_start(run, free.pop(0), lock=lock, has_terminal=jobs == 1))
        if not active:
          return  # what is left starts from a run that failed
        time.sleep(_POLL_SECONDS)
        ended = [job for job in active if job.process.poll() is not None]
        for job in ended:
          active.remove(job)
          free.insert(0, job.cores)
          _say(_end_line(job, has_terminal=jobs == 1))
          if job.process.returncode != _REFUSED:
            on_end(job.run, job.process.returncode)
        for job in ended:
          if job.process.returncode == _REFUSED:
            raise UsageError(
              f"{job.run.name} refused its input; the reason is {_where(job, jobs == 1)}."
            )
    finally:
      for job in active:
        job.process.terminate()
      for job in active:
        job.process.wait()


def is_finished(run: PlannedRun) -> bool:
  """Whether the run has left its mark."""
  return (run.workdir / RUN_FILE).exists()


def check_folders(runs: Iterable[PlannedRun]) -> None:
  """Looks at the folders that runs would go on in, be collected from or start from.

  Raises:
    UsageError: if one has another configuration than its run. Where a run starts from does not
      count: the suite's folder may have been moved.
  """
  folders = {r.workdir: r for pair in runs for r in (pair, pair.start) if r is not None}
  for run in folders.values():
    if (run.workdir / CONFIG_FILE).exists():
      stored = read_config(run.workdir)
      if run.start is not None:
        stored[run.config["phases"][0]]["start_from"] = ""
      if config_hash(stored) != run.identity:
        raise UsageError(
          f"{run.workdir} holds another configuration than {run.name} has in this suite; move it "
          "away, or use another --workdir."
        )


def _next_ready(waiting: collections.deque[PlannedRun]) -> PlannedRun | None:
  for run in waiting:
    if run.start is None or is_finished(run.start):
      waiting.remove(run)
      return run
  return None


def _start(run: PlannedRun, cores: tuple[int, ...], *, lock: int, has_terminal: bool) -> _Job:
  _say(f"start  {run.name}")
  run.workdir.parent.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "-m", "bcgd_jax.suites.worker", f"--workdir={run.workdir}"]
  if cores:
    command.append(f"--cores={','.join(map(str, cores))}")
  with contextlib.ExitStack() as stack:
    log = None if has_terminal else stack.enter_context(open(_log_path(run), "ab"))
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=log,
      stderr=subprocess.STDOUT if log else None,
      pass_fds=(lock,),
      env=os.environ if has_terminal else _shared_device_environment(),
    )
  assert process.stdin is not None
  with process.stdin as stdin:
    stdin.write(to_json(run.config).encode())
  return _Job(run=run, process=process, cores=cores, started=time.monotonic())


def _shared_device_environment() -> dict[str, str]:
  """The environment of a run beside others: JAX must not reserve most of a GPU for one of them."""
  return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}


def _end_line(job: _Job, *, has_terminal: bool) -> str:
  status = job.process.returncode
  minutes = (time.monotonic() - job.started) / 60
  if status == 0:
    return f"done   {job.run.name} ({minutes:.1f} min)"
  how = f"status {status}" if status > 0 else f"killed by signal {-status}"
  return (
    f"failed {job.run.name} ({minutes:.1f} min, {how}); the reason is {_where(job, has_terminal)}"
  )


def _where(job: _Job, has_terminal: bool) -> str:
  return "above" if has_terminal else f"in {_log_path(job.run)}"


def _log_path(run: PlannedRun) -> Path:
  """Where a run's output goes when several run at a time."""
  return run.workdir.with_name(f"{run.workdir.name}-log.txt")


def _say(line: str) -> None:
  print(line, flush=True)


def _share_cores(jobs: int) -> list[tuple[int, ...]]:
  if jobs == 1 or not hasattr(os, "sched_getaffinity"):
    return [()] * jobs
  cores = sorted(os.sched_getaffinity(0))
  # with more jobs than cores, several have one core each
  return [tuple(cores[i::jobs]) or (cores[i % len(cores)],) for i in range(jobs)]


@contextlib.contextmanager
def _termination_as_exit() -> Iterator[None]:
  """SIGTERM leaves by SystemExit, so that the runs in progress are stopped, too."""

  def leave(signum: int, frame: Any) -> None:
    sys.exit(128 + signum)

  before = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
