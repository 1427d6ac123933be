"""Timing of things that are to be compared: in turns, so that a busy machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def time_in_rotation(
  runs: Mapping[Name, Callable[[], None]], *, num_rounds: int
) -> dict[Name, list[float]]:
  """Seconds of each run in each round.

  In round r the order starts at the r-th run, so that none always follows the same pause.

  Args:
    runs: name -> a function that returns when its work is done; warmed up by the caller.
    num_rounds: at least 1.
  """
  names = list(runs)
  seconds: dict[Name, list[float]] = {name: [] for name in names}
  for round_ in range(num_rounds):
    shift = round_ % len(names)
    for name in (*names[shift:], *names[:shift]):
      start = time.perf_counter()
      runs[name]()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def paired_ratios(
  seconds: Sequence[float], baseline: Sequence[float]
) -> tuple[float, float, float]:
  """Lower quartile, median and upper quartile of seconds / baseline, round by round.

  A ratio within a round compares two neighbours in time; the ratio of two medians would not.
  """
  ratios = [a / b for a, b in zip(seconds, baseline, strict=True)]
  if len(ratios) == 1:
    return ratios[0], ratios[0], ratios[0]
  low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
  return low, middle, high
