"""A profiler trace of some steps of a run."""

import re
from pathlib import Path
from types import TracebackType
from typing import Self

import jax
from absl import logging

from bcgd_jax.errors import UsageError

PROFILE_FOLDER = "profile"


class StepProfiler:
  """Writes a JAX profiler trace of the run's steps `first` to `last`, both included.

  Steps are counted from 1 over the whole run, as in its metrics. Only process 0 writes: traces of
  several processes on one machine would take each other's names. What the run does between these
  steps (logs, validation, checkpoints) is in the trace too. As a context, it ends a trace that is
  under way when the run stops before `last`.
  """

  def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
    """
    Args:
      folder: where the trace goes, below plugins/profile/; it is made when the trace begins.
      steps: (first, last), see `parse_profile_steps`; None traces nothing.
    """
    self._folder = folder
    self._first, self._last = steps or (0, 0)
    self._is_pending, self._is_tracing = steps is not None, False

  def check_steps(self, num_steps: int) -> None:
    """Raises UsageError if the steps are not all steps of a run of `num_steps`."""
    if self._last > num_steps:
      raise UsageError(
        f"--profile_steps must be steps of the run, which has {num_steps}, got "
        f"{self._first},{self._last}."
      )

  def begins_with(self, step: int) -> bool:
    """Whether to call `start` before step number `step`; asked before every step."""
    if not self._is_pending or step < self._first:
      return False
    self._is_pending = False
    if step > self._first:
      logging.warning(
        "No profile: the run went on with step %d, after the first of --profile_steps=%d,%d.",
        *(step, self._first, self._last),
      )
      return False
    return jax.process_index() == 0

  def ends_with(self, step: int) -> bool:
    """Whether to call `stop` after step number `step`."""
    return self._is_tracing and step >= self._last

  def start(self) -> None:
    """Begins the trace; what was dispatched before must be done."""
    jax.profiler.start_trace(self._folder)
    self._is_tracing = True

  def stop(self) -> None:
    """Ends the trace and writes it; what it is to show must be done."""
    self._is_tracing = False
    jax.profiler.stop_trace()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if self._is_tracing:
      self.stop()


def parse_profile_steps(value: str | None) -> tuple[int, int] | None:
  """(first, last) out of "first,last"; None for None.

  Raises:
    UsageError: unless they are two whole numbers with 1 <= first <= last.
  """
  if value is None:
    return None
  found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", value, re.ASCII)
  first, last = map(int, found.groups()) if found else (0, 0)
  if not 1 <= first <= last:
    raise UsageError(
      f"--profile_steps must be FIRST,LAST with 1 <= FIRST <= LAST, such as 20,25, got {value!r}."
    )
  return first, last
