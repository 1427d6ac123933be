"""Runs a training in a process of its own that kills itself at a given place.

Usage: run_worker.py CONFIG_JSON WORKDIR KILL, KILL one of "none", "step:N", "written:N",
"committed:N".
"""

import json
import os
import signal
import sys
from pathlib import Path

from bcgd_jax.training.loop import train_and_evaluate
from bcgd_jax.training.run import Hooks


def main() -> None:
  config_path, workdir, kill = sys.argv[1:]
  event, _, number = kill.partition(":")

  def die(name: str, step: int) -> None:
    if name == event and step == int(number):
      os.kill(os.getpid(), signal.SIGKILL)

  hooks = Hooks(on_step=lambda step: die("step", step), on_checkpoint=die)
  config = json.loads(Path(config_path).read_text())
  train_and_evaluate(config, Path(workdir), hooks=hooks)


if __name__ == "__main__":
  main()
