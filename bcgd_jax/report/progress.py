"""Progress of a run: one bar on a terminal, plain lines now and then elsewhere."""

import collections
import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from bcgd_jax.report.formats import format_clock
from bcgd_jax.report.tables import terminal_console

_BAR_SECONDS = 0.1
_SPEED_WINDOW = 100


class Progress:
  """Shows how far a loop is; made by `progress`, which also ends the display."""

  def __init__(
    self,
    total_steps: int,
    description: str,
    *,
    stream: TextIO,
    interval_seconds: float,
    clock: Callable[[], float],
  ) -> None:
    self._total = total_steps
    self._clock = clock
    self._start = clock()
    self._next_show = self._start
    self._marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=_SPEED_WINDOW)
    self._facts: dict[str, Any] = {}
    self._step: int | None = None
    self._shown: int | None = None
    console = terminal_console(stream)
    self._interval = interval_seconds if console is None else _BAR_SECONDS
    self._view: _Bar | _Lines
    if console is None:
      self._view = _Lines(description, total_steps, stream)
    else:
      self._view = _Bar(description, total_steps, console)

  def update(self, step: int, **facts: Any) -> None:
    """Says that `step` steps are done, and what is known of the last one.

    Args:
      step: steps done, in 0..total_steps. Of a resumed run, count those done before it too.
      **facts: name to number, or to text. Shown in this order, `examples_per_second` as a speed at
        the end. Converted to text only when shown: a device array costs a wait only then.
    Raises:
      ValueError: if step is out of range.
    """
    if not 0 <= step <= self._total:
      raise ValueError(f"step must be in [0, {self._total}] (total_steps), got {step}")
    now = self._clock()
    self._step, self._facts = step, facts
    self._marks.append((now, step))
    if now >= self._next_show and step < self._total:  # `finish` shows the last one
      self._show(self._time_left(now))
      self._next_show = now + self._interval

  def finish(self) -> None:
    """Shows the last update, if it was not shown, and the seconds taken."""
    if self._step is not None and (self._step != self._shown or self._step == self._total):
      self._show(f"took {format_clock(self._clock() - self._start)}")

  def close(self) -> None:
    """Ends the display as it stands."""
    self._view.close()

  def _show(self, ending: str | None) -> None:
    assert self._step is not None
    self._view.show(self._step, _facts_text(self._facts, ending))
    self._shown = self._step

  def _time_left(self, now: float) -> str | None:
    # Between updates only: the time to the first one is mostly compilation.
    first_time, first_step = self._marks[0]
    step = self._marks[-1][1]
    if step <= first_step:
      return None
    seconds_per_step = (now - first_time) / (step - first_step)
    return f"{format_clock(seconds_per_step * (self._total - step))} left"


@contextlib.contextmanager
def progress(
  total_steps: int,
  description: str,
  *,
  stream: TextIO | None = None,
  interval_seconds: float = 10.0,
  clock: Callable[[], float] = time.monotonic,
  shown: bool = True,
) -> Iterator[Progress]:
  """Shows the progress of the loop in its block.

  On a terminal a bar; elsewhere the first update, then at most one line every `interval_seconds`,
  then the last, such as
  "float  step 120/400  loss 0.42  accuracy 0.88  1,234 examples/s  0:12 left".

  Args:
    total_steps: where the loop ends, >= 0.
    description: what runs, e.g. the phase.
    stream: sys.stdout by default.
    interval_seconds: between plain lines.
    clock: seconds, from any origin, never backwards.
    shown: False shows nothing, for the other processes of a run.
  Raises:
    ValueError: if total_steps is negative.
  """
  if total_steps < 0:
    raise ValueError(f"total_steps must be >= 0, got {total_steps}")
  if not shown:
    stream = io.StringIO()
  display = Progress(
    total_steps,
    description,
    stream=sys.stdout if stream is None else stream,
    interval_seconds=interval_seconds,
    clock=clock,
  )
  try:
    yield display
    display.finish()
  finally:
    display.close()


class _Lines:
  """One plain line a call."""

  def __init__(self, description: str, total: int, stream: TextIO) -> None:
    self._description, self._total, self._stream = description, total, stream

  def show(self, step: int, facts: str) -> None:
    line = f"{self._description}  step {step:,}/{self._total:,}  {facts}".rstrip()
    self._stream.write(line + "\n")
    self._stream.flush()

  def close(self) -> None:
    self._stream.flush()


class _Bar:
  """One rich bar, drawn only when told to: no thread competes with the training loop."""

  def __init__(self, description: str, total: int, console: Console) -> None:
    self._bar = RichProgress(
      TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
      BarColumn(bar_width=20),
      MofNCompleteColumn(table_column=Column(no_wrap=True)),
      TextColumn("{task.fields[facts]}", markup=False, table_column=Column(no_wrap=True)),
      console=console,
      auto_refresh=False,
    )
    self._task = self._bar.add_task(description, total=total, facts="")
    self._bar.start()

  def show(self, step: int, facts: str) -> None:
    self._bar.update(self._task, completed=step, facts=facts, refresh=True)

  def close(self) -> None:
    self._bar.stop()


def _facts_text(facts: dict[str, Any], ending: str | None) -> str:
  facts = dict(facts)
  speed = facts.pop("examples_per_second", None)
  parts = [f"{name.replace('_', ' ')} {_fact_text(value)}" for name, value in facts.items()]
  if speed is not None:
    parts.append(f"{float(speed):,.0f} examples/s")
  if ending is not None:
    parts.append(ending)
  return "  ".join(parts)


def _fact_text(value: Any) -> str:
  if isinstance(value, str):
    return value
  return f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}"
