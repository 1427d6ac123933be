"""A process that saves checkpoints and may kill itself while it does; run by a test.

Usage: checkpoint_worker.py DIRECTORY FIRST_STEP LAST_STEP EVENT KILL_STEP. Each state holds its
step. Prints "committed STEP" after each save and dies of SIGKILL at EVENT of KILL_STEP.
"""

import os
import signal
import sys
from pathlib import Path

import jax.numpy as jnp

from bcgd_jax.training.checkpoint import CheckpointStore


def main() -> None:
  directory, first, last, kill_event, kill_step = sys.argv[1:]

  def on_event(event: str, step: int) -> None:
    if (event, step) == (kill_event, int(kill_step)):
      os.kill(os.getpid(), signal.SIGKILL)

  store = CheckpointStore(Path(directory), config_hash="abc", on_event=on_event)
  for step in range(int(first), int(last) + 1):
    state = {"w": jnp.full(1000, step, jnp.float32), "n": jnp.array(step, jnp.int32)}
    store.save(step, state, phase="a", extra={"step": step})
    print("committed", step, flush=True)


if __name__ == "__main__":
  main()
