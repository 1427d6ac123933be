"""Trains a configuration in a workdir, phase after phase; started again, it goes on."""

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from bcgd_jax.data import train_batches
from bcgd_jax.errors import PreemptedError
from bcgd_jax.report.files import read_json
from bcgd_jax.report.progress import progress
from bcgd_jax.training.batch_stats import recalibrate_batch_stats
from bcgd_jax.training.checkpoint import CheckpointMeta, CheckpointStore
from bcgd_jax.training.distributed import is_primary, on_primary
from bcgd_jax.training.gallery import write_run_gallery
from bcgd_jax.training.metrics import MetricsSink, MetricsWriter, NoMetrics
from bcgd_jax.training.recipe import Phase, enter_phase
from bcgd_jax.training.results import write_phase_weights, write_run
from bcgd_jax.training.run import (
  Hooks,
  Run,
  abstract_tree,
  load_phase,
  map_eval_step,
  open_run,
  score_split,
  train_images,
)
from bcgd_jax.training.state import TrainState, eval_variables
from bcgd_jax.training.steps import normalize
from bcgd_jax.training.trainer import Trainer, as_best, validation_record
from bcgd_jax.training.workdir import PHASES_FOLDER, RUN_FILE, WEIGHTS_FILE

PyTree = Any


def train_and_evaluate(
  config: Mapping[str, Any],
  workdir: Path,
  *,
  devices: Sequence[jax.Device] | None = None,
  hooks: Hooks | None = None,
) -> dict[str, Any]:
  """Trains, scores each phase on the test split and writes gallery.npz and run.json.

  Args:
    config: nested mapping with the keys of configs/default.py.
    workdir: the run's folder, new or of an earlier start with the same configuration.
    devices: those to use; all by default.
    hooks: see `Hooks`.
  Returns:
    The content of run.json.
  Raises:
    UsageError: for bad input, before anything is compiled.
    TrainingError: if the loss is not finite; the last good checkpoint stays.
    PreemptedError: if `hooks.should_stop` asked for it; the state is saved.
  """
  with (hooks or Hooks()).slow():
    run = open_run(config, workdir, devices=devices, hooks=hooks)
  run.hooks.on_open()
  meta = run.store.latest()
  if meta is not None:
    run.store.discard_after(meta.step)  # what is damaged, where an older one was fallen back to
  seconds: dict[str, float] = dict(meta.extra["seconds"]) if meta else {}
  writer = _open_metrics(workdir, num_records=meta.extra["num_records"] if meta else 0)
  try:
    names = [phase.name for phase in run.phases]
    first = names.index(meta.phase) if meta else 0
    for phase in run.phases[first:]:
      resumed = meta if meta is not None and meta.phase == phase.name else None
      if resumed is None or not resumed.extra["complete"]:
        _run_phase(run, phase, resumed, writer=writer, seconds=seconds)
  finally:
    writer.close()
    run.store.wait()
  variables = load_phase(run, run.phases[-1])
  with run.hooks.slow():
    write_run_gallery(run, variables)  # before run.json, after which nothing is done again
  on_primary(
    lambda: write_run(
      workdir,
      run.settings,
      run.phases,
      info=run.dataset.info,
      variables=variables,
      seconds=seconds,
    ),
    what=f"writing {RUN_FILE}",
  )
  return read_json(workdir / RUN_FILE)


def _open_metrics(workdir: Path, *, num_records: int) -> MetricsSink:
  if not is_primary():
    return NoMetrics()
  return MetricsWriter(workdir, num_records=num_records)


def _run_phase(
  run: Run,
  phase: Phase,
  resumed: CheckpointMeta | None,
  *,
  writer: MetricsSink,
  seconds: dict[str, float],
) -> None:
  """Runs one phase from its start or a checkpoint of it to its saved end."""
  seconds_before, started = seconds.get(phase.name, 0.0), time.perf_counter()
  with run.hooks.slow():
    state, best, codes = _start_state(run, phase, resumed)
    trainer = Trainer(run, phase, writer, state, codes)
  # whether the newest step is still to be logged, scored and saved
  owes = False
  if resumed is not None:
    trainer.restore_window(resumed.extra["window"])
    owes = resumed.extra["owes"]

  def save(*, complete: bool, owes: bool = False) -> None:
    seconds[phase.name] = seconds_before + time.perf_counter() - started
    run.store.save_async(
      int(state.step),
      {"state": state, "best": best, "codes": trainer.codes},
      phase=phase.name,
      extra={
        "num_records": writer.num_records,
        "seconds": seconds,
        "complete": complete,
        "owes": owes,
        "window": trainer.window(),
      },
    )

  step = int(state.step)
  batches = train_batches(
    run.dataset,
    run.data_options,
    start_step=step,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  bar_steps = phase.last_step - phase.first_step
  with contextlib.closing(batches), progress(bar_steps, phase.name, shown=is_primary()) as bar:
    while True:
      done = step - phase.first_step
      if owes and (done % run.settings.log_every_steps == 0 or step == phase.last_step):
        bar.update(done, **trainer.log(step, state))
      if owes and step in trainer.eval_steps:
        best = trainer.validate(step, state, best)
      if step == phase.last_step:
        break
      if owes and done % run.settings.checkpoint_every_steps == 0:
        with trainer.untimed(), run.hooks.slow():
          save(complete=False)
      state = trainer.step(state, batches)
      step += 1
      owes = True
      run.hooks.on_step(step)
      if run.hooks.should_stop(step):
        with run.hooks.slow():
          save(complete=False, owes=True)
          run.store.wait()
        raise PreemptedError(f"the run was asked to stop; step {step} is saved in {run.workdir}")
  with run.hooks.slow():
    _finish(run, phase, state, best, writer=writer)
    seconds[phase.name] = seconds_before + time.perf_counter() - started
    writer.write(
      {
        "step": phase.last_step,
        "phase": phase.name,
        "kind": "phase_end",
        "timing": {"seconds": seconds[phase.name]},
      }
    )
    save(complete=True)
    run.store.wait()


def _start_state(
  run: Run, phase: Phase, resumed: CheckpointMeta | None
) -> tuple[TrainState, PyTree | None, dict[str, jax.Array] | None]:
  """A phase's first state, or that of a checkpoint, on all devices.

  Returns:
    The state, the best variables so far, and the codes at the last log, None for a new phase.
  """
  if resumed is not None:
    tree = run.store.restore(resumed.step, abstract_tree(run, phase))
    return run.parallel.replicate((tree["state"], tree["best"], tree["codes"]))
  state, best = _enter(run, phase), None
  if run.settings.selection == "best_validation":
    best = as_best(eval_variables(state, phase.float_params), accuracy=-1.0)
  if jax.process_count() > 1:
    # alpha's calibration may round differently on another kind of host
    state, best = multihost_utils.broadcast_one_to_all((state, best))
  return (*run.parallel.replicate((state, best)), None)


def _finish(
  run: Run, phase: Phase, state: TrainState, best: PyTree | None, *, writer: MetricsSink
) -> None:
  """Scores what a phase ends with and keeps it for later phases and runs.

  On the test split; on the validation split too if these are not the weights of the last step, so
  that the last validation score of a phase is that of its end.
  """
  variables = eval_variables(state, phase.float_params) if best is None else best["variables"]
  variables = jax.device_get(variables)
  if phase.settings.recalibrate_batches:
    data = run.settings.data
    images = train_images(run, phase.settings.recalibrate_batches)
    batches = (normalize(jnp.asarray(x), data.mean, data.std) for x in images)
    variables = recalibrate_batch_stats(phase.options.eval_model, variables, batches)
  mapped = map_eval_step(run, phase)
  replicated = run.parallel.replicate(variables)
  is_changed = best is not None or phase.settings.recalibrate_batches
  if is_changed and run.settings.data.validation_examples:
    found = score_split(run, mapped, replicated, "validation")
    writer.write(validation_record(phase, phase.last_step, found))
  found = score_split(run, mapped, replicated, "test")
  head = {"step": phase.last_step, "phase": phase.name, "kind": "test"}
  writer.write({**head, **found.record(), "quantized": phase.is_quantized})
  on_primary(
    lambda: write_phase_weights(run.workdir, phase, variables["params"]),
    what=f"writing {WEIGHTS_FILE}",
  )
  store = CheckpointStore(run.workdir / PHASES_FOLDER / phase.name, config_hash=run.hash)
  # a run killed after this save comes here again with the same variables: saving twice is safe
  store.save(phase.last_step, variables, phase=phase.name, extra={})


def _enter(run: Run, phase: Phase) -> TrainState:
  index = run.phases.index(phase)
  if phase.settings.start_from:
    previous = load_phase(run, phase, workdir=Path(phase.settings.start_from))
  else:
    previous = load_phase(run, run.phases[index - 1]) if index else None
  return enter_phase(
    phase,
    previous,
    settings=run.settings,
    image_shape=run.dataset.info.image_shape,
    calibration_images=functools.partial(train_images, run),
  )
