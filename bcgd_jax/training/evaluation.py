"""Scores of a state on a whole split."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

PyTree = Any


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
  """Mean loss and the fraction of examples classified right, over `num_examples` examples."""

  loss: float
  accuracy: float
  num_examples: int

  def record(self) -> dict[str, float | int]:
    return dataclasses.asdict(self)


def score(
  mapped_eval_step: Callable[[PyTree, PyTree], dict[str, jax.Array]],
  state: PyTree,
  batches: Iterable[Mapping[str, np.ndarray]],
  *,
  place_batch: Callable[[Mapping[str, np.ndarray]], PyTree],
) -> Score:
  """Sums the evaluation step over batches and divides once, so that every example weighs the same.

  Args:
    mapped_eval_step: (state, placed batch) -> sums "loss", "correct", "count".
    state: replicated.
    batches: this process's; "mask" is False on padding.
    place_batch: lays a batch out over devices.
  """
  pending = [mapped_eval_step(state, place_batch(batch)) for batch in batches]
  sums = {"loss": 0.0, "correct": 0, "count": 0}
  for partial in jax.device_get(pending):
    sums["loss"] += float(partial["loss"])
    sums["correct"] += int(partial["correct"])
    sums["count"] += int(partial["count"])
  count = sums["count"]
  return Score(loss=sums["loss"] / count, accuracy=sums["correct"] / count, num_examples=int(count))
