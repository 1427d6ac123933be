"""Runs a suite of experiments: python -m bcgd_jax.reproduce --suite=NAME --workdir=DIR.

Trains what is missing, a row a configuration and seed, and writes results.json, results.md and the
figures as each run ends. Started again, it goes on.
"""

import shlex
from pathlib import Path

from absl import flags

from bcgd_jax.command import local_folder, make_folder, run_command
from bcgd_jax.errors import TrainingError, UsageError
from bcgd_jax.report import print_table
from bcgd_jax.suites import Suite, load_suite
from bcgd_jax.suites.execute import check_folders, execute, locked
from bcgd_jax.suites.plan import PlannedRun, plan_runs
from bcgd_jax.suites.publish import publish
from bcgd_jax.suites.results import Record, collect, failed, missing, read_results, write_results
from bcgd_jax.suites.tables import suite_table

_SUITE = flags.DEFINE_string("suite", None, "A file of configs/suites without .py, or its path.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The suite's folder.")
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time, each on its share of the CPU cores; they share an accelerator."
)
_SET = flags.DEFINE_multi_string(
  "set", [], "KEY=VALUE on top of every row's configuration, such as data.manual_dir=DIR."
)
_PLAN = flags.DEFINE_bool("plan", False, "Write the table and say what is missing; train nothing.")


def main() -> None:
  if not _SUITE.value:
    raise UsageError("--suite must name a suite, such as fashion_mnist.")
  if _JOBS.value < 1:
    raise UsageError(f"--jobs must be >= 1, got {_JOBS.value}.")
  suite = load_suite(_SUITE.value)
  workdir = local_folder(_WORKDIR.value, flag="--workdir")
  runs = plan_runs(suite, workdir, overrides=_overrides(_SET.value))
  with locked(make_folder(_WORKDIR.value, flag="--workdir")) as lock:
    found = read_results(workdir, suite.name, runs)
    todo = missing(runs, found)
    check_folders(todo)
    records = _write(suite, workdir, runs, found)
    print(f"{suite.name}: {len(todo)} runs to train, {len(found)} done.")
    if _PLAN.value:
      for run in todo:
        print(f"  {run.name}" + (f": {run.command}" if run.command else ""))
    else:

      def on_end(run: PlannedRun, status: int) -> None:
        nonlocal records
        if run.row is not None:
          found[run.row.name, run.seed] = failed(run) if status else collect(run)
          records = _write(suite, workdir, runs, found)

      execute(todo, jobs=_JOBS.value, lock=lock, on_end=on_end)
  print_table(suite_table(suite, records))
  print(f"Results: {workdir / 'results.md'}")
  unfinished = [r for r in records if r["status"] != "done"]
  if unfinished and not _PLAN.value:
    names = ", ".join(f"{r['row']} (seed {r['seed']})" for r in unfinished)
    raise TrainingError(f"{len(unfinished)} of {len(records)} runs did not finish: {names}.")


def _write(
  suite: Suite, workdir: Path, runs: list[PlannedRun], found: dict[tuple[str, int], Record]
) -> list[Record]:
  command = _command()
  head = {"suite": suite.name, "title": suite.title, "command": command}
  records = write_results(workdir, head=head, runs=runs, found=found)
  publish(suite, workdir, records, command=command)
  return records


def _command() -> str:
  """What trains this suite in this folder."""
  arguments = [f"--suite={_SUITE.value}", f"--workdir={_WORKDIR.value}"]
  arguments += [f"--jobs={_JOBS.value}"] if _JOBS.value > 1 else []
  arguments += [f"--set={value}" for value in _SET.value]
  return shlex.join(["python", "-m", "bcgd_jax.reproduce", *arguments])


def _overrides(values: list[str]) -> dict[str, str]:
  pairs = {}
  for value in values:
    key, separator, text = value.partition("=")
    if not (key and separator):
      raise UsageError(f"--set must be KEY=VALUE, got {value!r}.")
    pairs[key] = text
  return pairs


if __name__ == "__main__":
  run_command(main)
