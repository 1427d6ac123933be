"""Draws a run, finished or going on: python -m bcgd_jax.report --workdir=DIR.

Needs only the workdir, and writes nothing in it but its folder report/. May be called again and
again while the run goes on, from another process or machine that sees the folder.
"""

from absl import flags

from bcgd_jax.command import local_folder, run_command
from bcgd_jax.report.report import make_overview, write_report_of
from bcgd_jax.report.tables import print_table
from bcgd_jax.report.workdir import read_run_files

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")


def main() -> None:
  workdir = local_folder(_WORKDIR.value, flag="--workdir")
  files = read_run_files(workdir)
  report = write_report_of(files, workdir)
  overview = make_overview(files)
  if files.run is None:
    print(overview.lead)
  print_table(overview.table)
  print(f"Report: {report}")


if __name__ == "__main__":
  run_command(main, interrupted="the report may be drawn again at any time")
