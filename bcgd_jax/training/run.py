"""A run opened for work: its settings checked, its dataset and its checkpoints at hand."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.data import BatchIterator, DataOptions, Dataset, eval_batches, load_dataset
from bcgd_jax.errors import UsageError
from bcgd_jax.training.checkpoint import CheckpointStore
from bcgd_jax.training.distributed import check_processes, on_primary
from bcgd_jax.training.evaluation import Score, score
from bcgd_jax.training.parallel import Parallel
from bcgd_jax.training.profiling import PROFILE_FOLDER, StepProfiler
from bcgd_jax.training.recipe import Phase, enter_phase, make_phases
from bcgd_jax.training.settings import RunSettings, config_hash, parse_settings
from bcgd_jax.training.state import TrainState, eval_variables
from bcgd_jax.training.steps import eval_step
from bcgd_jax.training.workdir import (
  CHECKPOINTS_FOLDER,
  PHASES_FOLDER,
  open_workdir,
  read_config,
)

PyTree = Any
EvalStep = Callable[[PyTree, PyTree], dict[str, jax.Array]]


def _ignore(*_: Any) -> None:
  """The hook that does nothing."""


def _never(step: int) -> bool:
  del step
  return False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
  """Calls at fixed places of a run, for tests and for tools that watch it.

  Attributes:
    on_open: called once its input is checked and the folder is its own, before anything is trained.
    on_step: called with the number of steps done, after each step and before it is logged.
    on_checkpoint: called as ("written" | "committed", step) around a checkpoint's commit, from the
      thread that writes it.
    should_stop: called with the number of steps done after each step; where it returns True, on all
      processes at the same step, the run saves and raises PreemptedError.
    slow: a context around whatever takes long without a step: compilation, saving, evaluation.
    profiler: begins and ends a trace at its steps.
  """

  on_open: Callable[[], None] = _ignore
  on_step: Callable[[int], None] = _ignore
  on_checkpoint: Callable[[str, int], None] = _ignore
  should_stop: Callable[[int], bool] = _never
  slow: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
  profiler: StepProfiler = dataclasses.field(
    default_factory=lambda: StepProfiler(Path(PROFILE_FOLDER), None)
  )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
  """What every part of a run needs."""

  settings: RunSettings
  workdir: Path
  hash: str
  dataset: Dataset
  data_options: DataOptions
  parallel: Parallel
  phases: tuple[Phase, ...]
  hooks: Hooks
  store: CheckpointStore


def open_run(
  config: Mapping[str, Any],
  workdir: Path,
  *,
  devices: Sequence[jax.Device] | None = None,
  hooks: Hooks | None = None,
) -> Run:
  """Checks everything that can be checked before compilation, and reads the dataset."""
  settings = parse_settings(config)
  parallel = Parallel(settings.parallel, tuple(devices or jax.devices()))
  data = settings.data
  for phase in settings.phases.values():
    parallel.check_batch_size(
      data.batch_size, name="config.data.batch_size", parts=phase.accumulate_steps
    )
  parallel.check_batch_size(data.eval_batch_size, name="config.data.eval_batch_size")
  data_options = make_data_options(settings)
  dataset = load_dataset(data_options)
  info = dataset.info
  if len(data.mean) not in (1, info.image_shape[-1]):
    raise UsageError(
      f"config.data.mean must have 1 value or {info.image_shape[-1]}, one a channel of "
      f"{info.name}, got {data.mean}."
    )
  phases = make_phases(
    settings,
    num_classes=info.num_classes,
    image_shape=info.image_shape,
    num_examples=len(dataset.train),
  )
  hooks = hooks or Hooks()
  hooks.profiler.check_steps(phases[-1].last_step)
  on_primary(lambda: open_workdir(workdir, config), what=f"opening {workdir}")
  hash_ = config_hash(config)
  check_processes(workdir, config_hash=hash_)
  store = CheckpointStore(
    workdir / CHECKPOINTS_FOLDER,
    config_hash=hash_,
    keep=settings.keep_checkpoints,
    on_event=hooks.on_checkpoint,
  )
  return Run(
    settings=settings,
    workdir=workdir,
    hash=hash_,
    dataset=dataset,
    data_options=data_options,
    parallel=parallel,
    phases=phases,
    hooks=hooks,
    store=store,
  )


def make_data_options(settings: RunSettings) -> DataOptions:
  """The part of the settings that the data package takes."""
  data = settings.data
  return DataOptions(
    dataset=data.dataset,
    data_dir=data.data_dir,
    manual_dir=data.manual_dir,
    validation_examples=data.validation_examples,
    train_examples=data.train_examples,
    image_size=data.image_size,
    eval_resize=data.eval_resize,
    min_crop_area=data.min_crop_area,
    max_bad_fraction=data.max_bad_fraction,
    pad=data.pad,
    flip=data.flip,
    batch_size=data.batch_size,
    eval_batch_size=data.eval_batch_size,
    seed=settings.seed,
    num_workers=data.num_workers,
  )


def load_phase(run: Run, phase: Phase, *, workdir: Path | None = None) -> PyTree:
  """The variables a finished phase ended with, on one device: "params" and "batch_stats".

  Args:
    run: the run whose model it is.
    phase: the phase.
    workdir: of the run that trained it, if that is another one.
  Raises:
    UsageError: if that phase has not been finished there, or trained another network.
  """
  hash_ = run.hash if workdir is None else config_hash(read_config(workdir))
  folder = (workdir or run.workdir) / PHASES_FOLDER / phase.name
  store = CheckpointStore(folder, config_hash=hash_)
  meta = store.latest()
  if meta is None:
    raise UsageError(f"{folder} must hold a finished phase {phase.name!r}, but there is none.")
  state = abstract_state(run, phase)
  abstract = jax.eval_shape(lambda s: eval_variables(s, phase.float_params), state)
  try:
    return store.restore(meta.step, abstract)
  except ValueError as error:
    raise UsageError(f"{folder} must hold weights of this run's network: {error}") from error


def load_teacher(run: Run, phase: Phase) -> PyTree | None:
  """What a phase's `aux_fn` reads: what the phase before ended with; None without an `aux_fn`."""
  if phase.options.aux_fn is None:
    return None
  return load_phase(run, run.phases[run.phases.index(phase) - 1])


def map_eval_step(run: Run, phase: Phase) -> EvalStep:
  """The phase's evaluation step, mapped over the run's devices: (variables, batch) -> sums."""
  step = functools.partial(eval_step, options=phase.options)
  return run.parallel.map_step(step, num_replicated=1, donate=False)


def train_images(run: Run, num_batches: int) -> Iterator[np.ndarray]:
  """The first training images, not augmented, in whole batches; the same on every process."""
  batches = eval_batches(
    run.dataset.train,
    batch_size=run.settings.data.batch_size,
    max_bad_fraction=run.settings.data.max_bad_fraction,
    num_batches=num_batches,
  )
  with contextlib.closing(batches):
    for batch in batches:
      yield batch["image"][batch["mask"]]


def abstract_state(run: Run, phase: Phase) -> TrainState:
  """Shapes and dtypes of a phase's state."""
  return jax.eval_shape(
    functools.partial(
      enter_phase,
      dataclasses.replace(phase, calibrates=False),  # values do not matter for shapes
      None,
      settings=run.settings,
      image_shape=run.dataset.info.image_shape,
      calibration_images=functools.partial(train_images, run),
    )
  )


def abstract_tree(run: Run, phase: Phase) -> PyTree:
  """Shapes and dtypes of what a checkpoint of a phase holds: {"state", "best", "codes"}.

  "codes" are those of the quantized weights at the last log, by path.
  """
  state = abstract_state(run, phase)
  params = jax.eval_shape(phase.float_params, state)
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  codes = {path: jax.ShapeDtypeStruct(leaves[path].shape, jnp.int8) for path in phase.quantizers}
  if run.settings.selection == "last":
    return {"state": state, "best": None, "codes": codes}
  variables = jax.eval_shape(lambda s: eval_variables(s, phase.float_params), state)
  best = {"variables": variables, "accuracy": jax.ShapeDtypeStruct((), jnp.float32)}
  return {"state": state, "best": best, "codes": codes}


def score_split(run: Run, mapped: EvalStep, variables: PyTree, split: str) -> Score:
  """Scores replicated variables on "train", "validation" or "test", every example once."""
  batches = split_batches(run, split)
  return score(mapped, variables, batches, place_batch=run.parallel.place_batch)


def split_batches(run: Run, split: str, *, num_batches: int | None = None) -> BatchIterator:
  """This process's part of a split's batches for scoring, not augmented, every example once.

  `num_batches` reads only the first so many, without processes of their own.
  """
  return eval_batches(
    getattr(run.dataset, split),
    batch_size=run.settings.data.eval_batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=run.settings.data.num_workers if num_batches is None else 0,
    max_bad_fraction=run.settings.data.max_bad_fraction,
    num_batches=num_batches,
  )
