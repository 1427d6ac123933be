"""One run of a suite in a process of its own; the suite's command starts it.

Reads the configuration as JSON from standard input.
"""

import json
import os
import sys
import time
from pathlib import Path

from absl import flags

from bcgd_jax.command import local_folder, run_command
from bcgd_jax.report import read_json, write_json, write_report
from bcgd_jax.training.environment import ENVIRONMENT_FILE, describe_environment
from bcgd_jax.training.loop import train_and_evaluate
from bcgd_jax.training.run import Hooks
from bcgd_jax.training.workdir import RUN_FILE

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
_CORES = flags.DEFINE_list("cores", [], "CPU cores to run on; all by default.")


def main() -> None:
  if _CORES.value:
    # before JAX starts its threads: it takes one a core that it may use
    os.sched_setaffinity(0, {int(core) for core in _CORES.value})
  workdir, config = local_folder(_WORKDIR.value, flag="--workdir"), json.load(sys.stdin)
  if not (workdir / RUN_FILE).exists():
    train_and_evaluate(config, workdir, hooks=Hooks(on_open=lambda: note_environment(workdir)))
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    environment = read_json(workdir / ENVIRONMENT_FILE)
    write_json(workdir / ENVIRONMENT_FILE, {**environment, "finished": ended})
  write_report(workdir)


def note_environment(workdir: Path) -> None:
  """Writes where a run begins; where it goes on elsewhere, adds that under "resumed_in"."""
  path, here = workdir / ENVIRONMENT_FILE, describe_environment()
  if not path.exists():
    write_json(path, here)
    return
  began = read_json(path)
  resumed = began.pop("resumed_in", [])
  if here != (resumed or [began])[-1]:
    write_json(path, {**began, "resumed_in": [*resumed, here]})


if __name__ == "__main__":
  run_command(main)
