"""The steps of one phase, with their metrics."""

import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.errors import TrainingError
from bcgd_jax.training.metrics import MetricsWriter
from bcgd_jax.training.recipe import Phase
from bcgd_jax.training.run import Run, map_eval_step, score_split
from bcgd_jax.training.state import TrainState, eval_variables
from bcgd_jax.training.steps import train_step

PyTree = Any


class Trainer:
  """Steps of one phase, with the metrics since the last log."""

  def __init__(self, run: Run, phase: Phase, writer: MetricsWriter) -> None:
    self._run, self._phase, self._writer = run, phase, writer
    options = phase.options
    self._train = run.parallel.map_step(
      functools.partial(train_step, options=options), num_replicated=2, donate=True
    )
    self._eval = map_eval_step(run, phase)
    self.eval_steps = _eval_steps(phase, run.settings.eval_every_epochs)
    self._window: list[dict[str, jax.Array]] = []
    self._clock = time.perf_counter()

  def restart_clock(self) -> None:
    """Leaves the time since the last log out of the speed that is reported."""
    self._clock = time.perf_counter()

  def step(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> TrainState:
    state, metrics = self._train(state, None, self._run.parallel.place_batch(batch))
    self._window.append(metrics)
    return state

  def log(self, step: int, state: TrainState) -> dict[str, float]:
    """Writes the means since the last log; raises TrainingError at a loss that is not finite."""
    window = jax.device_get(self._window)
    elapsed = time.perf_counter() - self._clock
    self._check_finite(window, step)
    means = {k: float(np.mean([m[k] for m in window], dtype=np.float64)) for k in window[0]}
    speed = len(window) * self._run.settings.data.batch_size / elapsed
    local_step = step - 1 - self._phase.first_step
    head = {"step": step, "phase": self._phase.name}
    self._writer.write(
      {
        **head,
        "kind": "train",
        "loss": means["loss"],
        "accuracy": means["accuracy"],
        "learning_rate": float(self._phase.learning_rate(local_step)),
        "rho": float(self._phase.rho(local_step)),
        "grad_norm": means["grad_norm"],
        "timing": {"examples_per_second": speed, "step_seconds": elapsed / len(window)},
      }
    )
    alphas = _alphas(state.params)
    if alphas:
      self._writer.write({**head, "kind": "alpha", "alpha": alphas})
    self._window = []
    self.restart_clock()
    return {"loss": means["loss"], "accuracy": means["accuracy"], "examples_per_second": speed}

  def validate(self, step: int, state: TrainState, best: PyTree | None) -> PyTree | None:
    """Scores the validation split; returns the better of `best` and the current variables."""
    if not self._run.settings.data.validation_examples:
      return best
    phase = self._phase
    variables = eval_variables(state, phase.float_params)
    found = score_split(self._run, self._eval, variables, "validation")
    epoch = (step - phase.first_step) / phase.steps_per_epoch
    head = {"step": step, "phase": phase.name, "kind": "validation", "epoch": epoch}
    self._writer.write({**head, **found.record()})
    self.restart_clock()
    if best is None or found.accuracy <= float(best["accuracy"]):
      return best
    return self._run.parallel.replicate(as_best(variables, accuracy=found.accuracy))

  def _check_finite(self, window: list[dict[str, Any]], step: int) -> None:
    for index, metrics in enumerate(window):
      if not math.isfinite(metrics["loss"]):
        bad = step - len(window) + index + 1
        meta = self._run.store.latest()
        kept = f"the checkpoint of step {meta.step} is kept" if meta else "no checkpoint exists yet"
        raise TrainingError(
          f"the loss is {metrics['loss']} at step {bad} (phase {self._phase.name!r}); {kept} in "
          f"{self._run.workdir}. A lower learning rate is the usual remedy."
        )


def as_best(variables: PyTree, *, accuracy: float) -> PyTree:
  """What is kept of the best variables so far: {"variables", "accuracy"}."""
  return {"variables": variables, "accuracy": jnp.asarray(accuracy, jnp.float32)}


def _eval_steps(phase: Phase, every_epochs: float) -> frozenset[int]:
  every = every_epochs * phase.steps_per_epoch
  length = phase.last_step - phase.first_step
  inner = {phase.first_step + round(i * every) for i in range(1, math.floor(length / every) + 1)}
  return frozenset({step for step in inner if step > phase.first_step} | {phase.last_step})


def _alphas(params: PyTree) -> dict[str, float]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  named = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
  return {path: float(leaf) for path, leaf in named.items() if path.rsplit("/", 1)[-1] == "alpha"}
