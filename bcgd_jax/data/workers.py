"""Worker processes that end with the process that started them, and for no other reason."""

import multiprocessing
import os
import signal
import threading


def bind_to_parent() -> None:
  """To be called in a worker: SIGINT and SIGTERM are ignored, the parent's end is its end.

  Schedulers and terminals send these signals to the whole process group; the parent decides what
  happens then. Grain's workers and those of `concurrent.futures` would wait for ever for a parent
  that was killed.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)
