"""`python -m bcgd_jax.main` with slow steps and a short heartbeat, so that tests can interfere.

The first argument is "none", or "STEP": process 1 stays in that step for ever, its heartbeat alive.
The others are the program's.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator

import jax

from bcgd_jax import main as program
from bcgd_jax.command import run_command
from bcgd_jax.training import distributed
from bcgd_jax.training.run import Hooks

hang_at = sys.argv.pop(1)
watched_hooks = program.watched_hooks


@contextlib.contextmanager
def slow_hooks() -> Iterator[Hooks]:
  with watched_hooks() as hooks:

    def on_step(step: int) -> None:
      time.sleep(0.15)
      if jax.process_index() == 1 and str(step) == hang_at:
        time.sleep(1e6)
      hooks.on_step(step)

    yield dataclasses.replace(hooks, on_step=on_step)


if __name__ == "__main__":
  program.watched_hooks = slow_hooks
  distributed.HEARTBEAT_SECONDS = 10
  run_command(
    program.main,
    leave=distributed.leave_processes,
    leave_after_error=distributed.leave_after_error,
  )
