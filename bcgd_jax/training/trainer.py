"""The steps of one phase, with their metrics."""

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.errors import TrainingError
from bcgd_jax.training.evaluation import Score
from bcgd_jax.training.metrics import MetricsSink
from bcgd_jax.training.recipe import Phase
from bcgd_jax.training.run import Run, load_teacher, map_eval_step, score_split
from bcgd_jax.training.state import TrainState, eval_variables
from bcgd_jax.training.steps import train_step
from bcgd_jax.training.watch import CodeWatch, DeadWatch

PyTree = Any

# Steps handed to the devices before the first of them has ended: enough to keep them busy, few
# enough that a step which never ends is noticed.
_MAX_STEPS_AHEAD = 4


class Trainer:
  """Steps of one phase, with the metrics since the last log."""

  def __init__(
    self,
    run: Run,
    phase: Phase,
    writer: MetricsSink,
    state: TrainState,
    codes: Mapping[str, jax.Array] | None,
  ) -> None:
    """
    Args:
      run: the run.
      phase: the phase to train.
      writer: of the metrics.
      state: what the phase starts or goes on from, replicated.
      codes: those of the quantized weights at the last log, replicated; None for a new phase.
    """
    self._run, self._phase, self._writer = run, phase, writer
    options = phase.options
    self._train = run.parallel.map_step(
      functools.partial(train_step, options=options), num_replicated=2, donate=True
    )
    self._teacher = run.parallel.replicate(load_teacher(run, phase))
    self._eval = map_eval_step(run, phase)
    self.eval_steps = _eval_steps(phase, run.settings.eval_every_epochs)
    self._codes = CodeWatch(run.parallel, phase.quantizers, phase.float_params(state), codes)
    self._dead = DeadWatch(run, phase)
    self._window: list[dict[str, Any]] = []
    self._step = int(state.step)
    self._compiled = False
    self._timed_steps = 0
    self._waited = 0.0
    self._clock = time.perf_counter()

  @contextlib.contextmanager
  def untimed(self) -> Iterator[None]:
    """Leaves what is done in its block out of the speed that is reported."""
    jax.block_until_ready(self._window)
    start = time.perf_counter()
    yield
    self._clock += time.perf_counter() - start

  @property
  def codes(self) -> dict[str, jax.Array]:
    """The codes of the quantized weights at the last log, which a checkpoint has to keep."""
    return self._codes.codes

  def step(self, state: TrainState, batches: Iterator[Mapping[str, np.ndarray]]) -> TrainState:
    """Takes one step on the next of `batches`."""
    if self._compiled:
      return self._take_step(state, batches)
    with self._run.hooks.slow():
      state = jax.block_until_ready(self._take_step(state, batches))
    self._compiled = True
    self._restart_clock()
    return state

  def _take_step(
    self, state: TrainState, batches: Iterator[Mapping[str, np.ndarray]]
  ) -> TrainState:
    profiler = self._run.hooks.profiler
    self._step += 1
    if profiler.begins_with(self._step):
      with self.untimed(), self._run.hooks.slow():
        profiler.start()
    with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
      start = time.perf_counter()
      batch = next(batches)
      self._waited += time.perf_counter() - start
      state, metrics = self._train(state, self._teacher, self._run.parallel.place_batch(batch))
    self._window.append(metrics)
    self._timed_steps += 1
    if profiler.ends_with(self._step):
      with self.untimed(), self._run.hooks.slow():
        profiler.stop()
    if len(self._window) > _MAX_STEPS_AHEAD:
      jax.block_until_ready(self._window[-1 - _MAX_STEPS_AHEAD])
    return state

  def window(self) -> list[dict[str, float]]:
    """The metrics of the steps since the last log, which a checkpoint between logs has to keep."""
    return [{k: float(v) for k, v in metrics.items()} for metrics in jax.device_get(self._window)]

  def restore_window(self, window: list[dict[str, float]]) -> None:
    """Goes on from what `window` returned; the metrics are float32, so nothing is lost."""
    self._window = [{k: np.float32(v) for k, v in metrics.items()} for metrics in window]

  def log(self, step: int, state: TrainState) -> dict[str, float]:
    """Writes the means since the last log; raises TrainingError where one is not finite."""
    window = jax.device_get(self._window)
    timing = self._timing()
    self._check_finite(window, step)
    means = {k: float(np.mean([m[k] for m in window], dtype=np.float64)) for k in window[0]}
    local_step = step - 1 - self._phase.first_step
    schedules = {
      "learning_rate": float(self._phase.learning_rate(local_step)),
      "rho": float(self._phase.rho(local_step)),
    }
    head = {"step": step, "phase": self._phase.name}
    changes = self._codes.update(self._phase.float_params(state))
    if changes is not None:
      schedules["codes_changed"] = changes.total
    self._writer.write({**head, "kind": "train", **means, **schedules, "timing": timing})
    if changes is not None:
      self._writer.write({**head, "kind": "codes", "changed": changes.by_path})
    alphas = _alphas(state.params)
    if alphas:
      self._writer.write({**head, "kind": "alpha", "alpha": alphas})
    self._window = []
    self._restart_clock()
    shown = {"loss": means["loss"], "accuracy": means["accuracy"]}
    return shown | {k: v for k, v in timing.items() if k == "examples_per_second"}

  def validate(self, step: int, state: TrainState, best: PyTree | None) -> PyTree | None:
    """Measures dead activations and scores the validation split, if there is one.

    Returns:
      The better of `best` and the current variables.
    """
    phase = self._phase
    variables = eval_variables(state, phase.float_params)
    with self.untimed(), self._run.hooks.slow():
      dead = self._dead.measure(variables)
    self._writer.write({"step": step, "phase": phase.name, "kind": "dead", "dead": dead})
    if not self._run.settings.data.validation_examples:
      return best
    with self.untimed(), self._run.hooks.slow():
      found = score_split(self._run, self._eval, variables, "validation")
    self._writer.write(validation_record(phase, step, found))
    if best is None or np.float32(found.accuracy) <= np.asarray(best["accuracy"]):
      return best
    return self._run.parallel.replicate(as_best(variables, accuracy=found.accuracy))

  def _timing(self) -> dict[str, float]:
    """Speed of the steps since the last log; the one that compiled does not count.

    "input_wait_share" is the fraction of that time in which the loop waited for the next batch.
    Some steps are dispatched ahead of the devices, so that such a wait costs nothing while these
    are still busy: the share bounds from above what the input costs. Near 1, steps come at the pace
    of the input; well below 1, at that of the devices.
    """
    if not self._timed_steps:
      return {}
    elapsed = time.perf_counter() - self._clock
    seconds = elapsed / self._timed_steps
    return {
      "examples_per_second": self._run.settings.data.batch_size / seconds,
      "step_seconds": seconds,
      "input_wait_share": self._waited / elapsed,
    }

  def _restart_clock(self) -> None:
    self._timed_steps = 0
    self._waited = 0.0
    self._clock = time.perf_counter()

  def _check_finite(self, window: list[dict[str, Any]], step: int) -> None:
    for bad, metrics in enumerate(window, step - len(window) + 1):
      for name in ("loss", "grad_norm", "param_norm"):
        if not math.isfinite(metrics[name]):
          meta = self._run.store.latest()
          kept = f"the checkpoint of step {meta.step} is kept" if meta else "there is no checkpoint"
          raise TrainingError(
            f"{name} is {metrics[name]} at step {bad} (phase {self._phase.name!r}); {kept} in "
            f"{self._run.workdir}. A lower learning rate is the usual remedy."
          )


def validation_record(phase: Phase, step: int, found: Score) -> dict[str, Any]:
  """The line of the metrics that says how a phase's weights at a step score on validation."""
  epoch = (step - phase.first_step) / phase.steps_per_epoch
  head = {"step": step, "phase": phase.name, "kind": "validation", "epoch": epoch}
  return {**head, **found.record()}


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
