"""The frame of every command: flags, and errors in one line instead of a traceback.

Exit status: 0 done, 1 the run failed (a loss that is not finite, a check that does not hold), 2 bad
input, 130 interrupted by the keyboard, 143 asked to stop (SIGTERM) and saved: the same command goes
on.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from bcgd_jax.errors import CheckError, PreemptedError, TrainingError, UsageError


def run_command(
  command: Callable[[], None],
  *,
  interrupted: str = "the same command goes on where this one stopped",
  leave: Callable[[int], NoReturn] = sys.exit,
  leave_after_error: Callable[[Exception], NoReturn] | None = None,
) -> NoReturn:
  """Parses flags, runs `command` and exits with its status.

  Does not return.

  Args:
    command: what to run.
    interrupted: what to tell who interrupts it.
    leave: ends the process with a status; for one of several that has to tell the others.
    leave_after_error: ends it after any other error; by default that is raised, with status 1.
  """

  def main(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      # libraries tell of every file they write at absl's own default
      logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
      _fail(f"unexpected argument {argv[1]!r}; flags start with --.")
    try:
      command()
    except UsageError as error:
      _print_error(str(error))
      leave(2)
    except (CheckError, TrainingError) as error:
      _print_error(str(error))
      leave(1)
    except PreemptedError as error:
      _print_error(f"{error}; {interrupted}.")
      leave(143)
    except KeyboardInterrupt:
      _print_error(f"interrupted; {interrupted}.")
      leave(130)
    except Exception as error:
      if leave_after_error is None:
        raise
      leave_after_error(error)
    leave(0)

  app.run(main, flags_parser=_parse_flags)
  raise AssertionError("app.run exits")


def local_folder(value: str | None, *, flag: str) -> Path:
  """A flag's value as a path.

  Raises:
    UsageError: if it is not given, or is an address instead of a folder.
  """
  if not value:
    raise UsageError(f"{flag} must name a folder.")
  if "://" in value:
    raise UsageError(f"{flag} must be a local or mounted folder, got {value}.")
  return Path(value)


def make_folder(value: str | None, *, flag: str) -> Path:
  """A flag's value as a folder that is there and can be written to; it is created if need be.

  Raises:
    UsageError: if it is not given, is an address, cannot be made or cannot be written to.
  """
  folder = local_folder(value, flag=flag)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UsageError(f"{flag} must name a folder, got {folder}: {error.strerror}.") from error
  if not os.access(folder, os.W_OK):
    raise UsageError(f"{flag} must be a folder that can be written to, got {folder}.")
  return folder


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    flags.FLAGS.flag_values_dict()  # a configuration file that could not be loaded raises here
  except flags.Error as error:
    _fail(str(error))
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    # ml_collections' own errors of unknown keys, wrong types and missing files
    _fail(f"--config: {error}")
  return rest


def _fail(message: str) -> NoReturn:
  _print_error(message)
  sys.exit(2)


def _print_error(message: str) -> None:
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
