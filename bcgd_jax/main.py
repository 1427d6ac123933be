"""Trains, evaluates and reports: python -m bcgd_jax.main --config=FILE --workdir=DIR.

Started again on its workdir, a run continues from its last checkpoint; a finished one says so.
With several processes each runs this command on the same shared workdir.
"""

import dataclasses

from absl import flags

from bcgd_jax.cli import required_config, required_workdir
from bcgd_jax.command import run_command
from bcgd_jax.compilation_cache import enable_compilation_cache
from bcgd_jax.process_flags import distributed_options, watched_hooks
from bcgd_jax.report import print_table, read_summary, summary_table, write_report
from bcgd_jax.training.distributed import (
  is_primary,
  join_processes,
  leave_after_error,
  leave_processes,
)
from bcgd_jax.training.loop import train_and_evaluate
from bcgd_jax.training.profiling import PROFILE_FOLDER, StepProfiler, parse_profile_steps
from bcgd_jax.training.settings import parse_settings
from bcgd_jax.training.workdir import RUN_FILE, open_workdir

_PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps",
  None,
  "FIRST,LAST: writes a JAX profiler trace of these steps of the run, counted from 1, to "
  "WORKDIR/profile, for TensorBoard's profile plugin. A phase's first step compiles: leave it out.",
)


def main() -> None:
  config, workdir = required_config(), required_workdir()
  profile_steps = parse_profile_steps(_PROFILE_STEPS.value)
  parse_settings(config)
  options = distributed_options()
  enable_compilation_cache()
  join_processes(options)
  if (workdir / RUN_FILE).exists():
    open_workdir(workdir, config)
    if is_primary():
      print(f"The run in {workdir} is finished.")
  else:
    profiler = StepProfiler(workdir / PROFILE_FOLDER, profile_steps)
    with watched_hooks() as hooks, profiler:
      train_and_evaluate(config, workdir, hooks=dataclasses.replace(hooks, profiler=profiler))
  if is_primary():
    report = write_report(workdir)
    print_table(summary_table(read_summary(workdir)))
    print(f"Report: {report}")


if __name__ == "__main__":
  run_command(main, leave=leave_processes, leave_after_error=leave_after_error)
