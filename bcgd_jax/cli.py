"""What the commands share: flags, and errors in one line instead of a traceback.

Exit status: 0 done, 1 the run failed (a loss that is not finite), 2 bad input, 130 interrupted by
the keyboard.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from bcgd_jax.errors import TrainingError, UsageError
from bcgd_jax.training.workdir import read_config

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Configuration file; --config.KEY=VALUE overrides a key.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")


def run_command(command: Callable[[], None]) -> NoReturn:
  """Parses flags, runs `command` and exits with its status.

  Does not return.
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
      _fail(str(error))
    except TrainingError as error:
      _fail(str(error), status=1)
    except KeyboardInterrupt:
      _fail("interrupted; the same command goes on from the last checkpoint.", status=130)

  app.run(main, flags_parser=_parse_flags)
  raise AssertionError("app.run exits")


def required_config() -> dict[str, Any]:
  """The value of --config as nested plain dicts."""
  if CONFIG.value is None:
    raise UsageError("--config must name a configuration file, such as configs/default.py.")
  return CONFIG.value.to_dict()


def required_workdir() -> Path:
  """The value of --workdir."""
  if not WORKDIR.value:
    raise UsageError("--workdir must name the run's folder.")
  if "://" in WORKDIR.value:
    raise UsageError(f"--workdir must be a local or mounted folder, got {WORKDIR.value}.")
  return Path(WORKDIR.value)


def config_of_workdir() -> dict[str, Any]:
  """The configuration that the run in --workdir was started with."""
  return read_config(required_workdir())


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    _ = CONFIG.value  # a file that could not be loaded raises here
  except flags.Error as error:
    _fail(str(error))
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    # ml_collections' own errors of unknown keys, wrong types and missing files
    _fail(f"--config: {error}")
  return rest


def _fail(message: str, *, status: int = 2) -> NoReturn:
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
  sys.exit(status)
