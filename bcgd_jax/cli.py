"""The flags of the commands that work on one run, and its configuration."""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from bcgd_jax.command import local_folder
from bcgd_jax.errors import UsageError
from bcgd_jax.training.workdir import read_config

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Configuration file; --config.KEY=VALUE overrides a key.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")


def required_config() -> dict[str, Any]:
  """The value of --config as nested plain dicts."""
  if CONFIG.value is None:
    raise UsageError("--config must name a configuration file, such as configs/default.py.")
  return CONFIG.value.to_dict()


def required_workdir() -> Path:
  """The value of --workdir."""
  return local_folder(WORKDIR.value, flag="--workdir")


def config_of_workdir() -> dict[str, Any]:
  """The configuration that the run in --workdir was started with."""
  return read_config(required_workdir())
