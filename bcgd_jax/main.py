"""Trains, evaluates and reports: python -m bcgd_jax.main --config=FILE --workdir=DIR.

Started again on its workdir, a run continues from its last checkpoint; a finished one says so.
"""

from absl import flags

from bcgd_jax.cli import required_config, required_workdir
from bcgd_jax.command import run_command
from bcgd_jax.report import print_table, read_summary, summary_table, write_report
from bcgd_jax.training.loop import train_and_evaluate
from bcgd_jax.training.profiling import PROFILE_FOLDER, StepProfiler, parse_profile_steps
from bcgd_jax.training.run import Hooks
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
  if (workdir / RUN_FILE).exists():
    open_workdir(workdir, config)
    print(f"The run in {workdir} is finished.")
  else:
    with StepProfiler(workdir / PROFILE_FOLDER, profile_steps) as profiler:
      train_and_evaluate(config, workdir, hooks=Hooks(profiler=profiler))
  report = write_report(workdir)
  print_table(summary_table(read_summary(workdir)))
  print(f"Report: {report}")


if __name__ == "__main__":
  run_command(main)
