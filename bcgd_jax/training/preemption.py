"""Whether a run was asked to stop: SIGTERM, to this process or to any of several."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils


def watch_for_sigterm() -> Callable[[int], bool]:
  """A function of the step that tells whether to save and leave now; call it after each step.

  With several processes JAX's preemption service owns the signal: it agrees on one step for all,
  the first that none has passed. All of them call the function at the same steps. A single process
  installs a handler, so this must be its main thread; signals after the first change nothing.
  """
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point
  asked = threading.Event()

  def remember(number: int, frame: FrameType | None) -> None:
    del number, frame
    asked.set()

  signal.signal(signal.SIGTERM, remember)
  return lambda step: asked.is_set()
