"""Scores a run's weights again: python -m bcgd_jax.evaluate --workdir=DIR.

Needs only the workdir. Without --phase it takes the run's newest weights: those of its last
finished phase, or of the checkpoint of the phase that it is in.
"""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from bcgd_jax.cli import config_of_workdir, required_workdir
from bcgd_jax.command import run_command
from bcgd_jax.compilation_cache import enable_compilation_cache
from bcgd_jax.errors import UsageError
from bcgd_jax.report import print_table
from bcgd_jax.training.recipe import Phase
from bcgd_jax.training.run import (
  Run,
  abstract_tree,
  load_phase,
  map_eval_step,
  open_run,
  score_split,
)
from bcgd_jax.training.state import eval_variables

_PHASE = flags.DEFINE_string("phase", None, "A finished phase to score; the newest by default.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "What to score on.")
_JSON = flags.DEFINE_string("json", None, "A file to write the score to.")

PyTree = Any


def main() -> None:
  enable_compilation_cache()
  run = open_run(config_of_workdir(), required_workdir())
  if _SPLIT.value == "validation" and not run.settings.data.validation_examples:
    raise UsageError("--split=validation needs a run with config.data.validation_examples > 0.")
  phase, step, variables = _pick(run, _PHASE.value)
  variables = run.parallel.replicate(variables)
  found = score_split(run, map_eval_step(run, phase), variables, _SPLIT.value)
  record = {"phase": phase.name, "step": step, "split": _SPLIT.value, **found.record()}
  record["quantized"] = phase.is_quantized
  print_table(record)
  if _JSON.value:
    Path(_JSON.value).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _pick(run: Run, name: str | None) -> tuple[Phase, int, PyTree]:
  """The phase, the run's step and the variables to score."""
  phases = {phase.name: phase for phase in run.phases}
  if name is not None:
    if name not in phases:
      raise UsageError(f"--phase must be one of {sorted(phases)}, got {name!r}.")
    return phases[name], phases[name].last_step, load_phase(run, phases[name])
  meta = run.store.latest()
  if meta is None:
    raise UsageError(f"{run.workdir} has no checkpoint to score yet.")
  phase = phases[meta.phase]
  if meta.extra["complete"]:
    return phase, meta.step, load_phase(run, phase)
  state = run.store.restore(meta.step, abstract_tree(run, phase))["state"]
  return phase, meta.step, jax.device_get(eval_variables(state, phase.float_params))


if __name__ == "__main__":
  run_command(main)
