"""Trains, evaluates and reports: python -m bcgd_jax.main --config=FILE --workdir=DIR.

Started again on its workdir, a run continues from its last checkpoint; a finished one says so.
With several processes each runs this command on the same shared workdir.
"""

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
from bcgd_jax.training.settings import parse_settings
from bcgd_jax.training.workdir import RUN_FILE, open_workdir


def main() -> None:
  config, workdir = required_config(), required_workdir()
  parse_settings(config)
  options = distributed_options()
  enable_compilation_cache()
  join_processes(options)
  if (workdir / RUN_FILE).exists():
    open_workdir(workdir, config)
    if is_primary():
      print(f"The run in {workdir} is finished.")
  else:
    with watched_hooks() as hooks:
      train_and_evaluate(config, workdir, hooks=hooks)
  if is_primary():
    report = write_report(workdir)
    print_table(summary_table(read_summary(workdir)))
    print(f"Report: {report}")


if __name__ == "__main__":
  run_command(main, leave=leave_processes, leave_after_error=leave_after_error)
