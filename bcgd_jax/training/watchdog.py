"""Ends a process whose training stands still, because a peer hangs or its input does."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

HANG_STATUS = 142
_STDERR = 2
# What may take long without a step: compilation, saving, evaluation.
SLOW_SECONDS = 3600.0


def _exit_process() -> None:
  os._exit(HANG_STATUS)


class Watchdog:
  """Calls `on_hang` from a thread of its own when no step ends for too long.

  A peer that hangs keeps its connections and its heartbeat, so that neither collectives nor JAX's
  service notice it; and a thread that waits inside a collective cannot be interrupted from Python.
  What is left is to end the process.

  Args:
    limit_seconds: longest time between two steps, > 0.
    on_hang: by default the process ends at once with status 142, after the stacks of its threads
      were printed.
    slow_seconds: the limit inside `slow`.
  """

  def __init__(
    self,
    limit_seconds: float,
    *,
    on_hang: Callable[[], None] = _exit_process,
    slow_seconds: float = SLOW_SECONDS,
  ) -> None:
    if not limit_seconds > 0:
      raise ValueError(f"limit_seconds must be > 0, got {limit_seconds}")
    self._limit = limit_seconds
    self._slow_limit = max(slow_seconds, limit_seconds)
    self._on_hang = on_hang
    self._slow_blocks = 0
    self._last = time.monotonic()
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

  def beat(self) -> None:
    """Says that a step has ended."""
    self._last = time.monotonic()

  @contextlib.contextmanager
  def slow(self) -> Iterator[None]:
    """Waits up to `slow_seconds` for what its block does; blocks may lie in each other."""
    self._slow_blocks += 1
    self.beat()
    try:
      yield
    finally:
      self.beat()
      self._slow_blocks -= 1

  def __enter__(self) -> "Watchdog":
    self.beat()
    self._thread.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._stop.set()
    self._thread.join()

  def _watch(self) -> None:
    while not self._stop.wait(min(1.0, self._limit / 4)):
      limit = self._slow_limit if self._slow_blocks else self._limit
      waited = time.monotonic() - self._last
      if waited > limit:
        try:
          self._tell(waited, limit)
        finally:
          self._on_hang()
        return

  def _tell(self, waited: float, limit: float) -> None:
    print(
      f"error: no step ended for {waited:.0f} seconds (limit {limit:.0f}): another process or the "
      "input hangs. The last checkpoint is kept.",
      file=sys.stderr,
      flush=True,
    )
    faulthandler.dump_traceback(file=_STDERR)  # sys.stderr may be an object without a descriptor
