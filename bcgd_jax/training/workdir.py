"""What a run keeps in its folder besides metrics and checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcgd_jax.errors import UsageError
from bcgd_jax.report.files import read_json, write_atomic
from bcgd_jax.training.settings import config_hash, to_json, without_places

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
WEIGHTS_FILE = "weights.json"
CHECKPOINTS_FOLDER = "checkpoints"
PHASES_FOLDER = "phases"


def open_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
  """Creates the folder and writes its configuration, or checks that it has the same one.

  Keys that `without_places` leaves out may differ; the folder then takes the new values.

  Raises:
    UsageError: if the folder belongs to another configuration (it names the first key that
      differs), or holds files but no configuration.
  """
  path = workdir / CONFIG_FILE
  if path.exists():
    stored, given = read_config(workdir), json.loads(to_json(config))
    if stored == given:
      return
    if config_hash(stored) != config_hash(given):
      key, old, new = _first_difference(without_places(stored), without_places(given))
      raise UsageError(
        f"workdir {workdir} belongs to another configuration: config.{key} is {old!r} there, "
        f"{new!r} here. Use another workdir, or the configuration it was started with."
      )
    write_atomic(path, to_json(config).encode())
    return
  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise UsageError(f"workdir must be a run's folder, an empty or a new one, got {workdir}.")
  workdir.mkdir(parents=True, exist_ok=True)
  write_atomic(path, to_json(config).encode())


def read_config(workdir: Path) -> dict[str, Any]:
  """The configuration a run was started with.

  Raises:
    UsageError: if the folder has none, or it is not JSON.
  """
  return read_json(workdir / CONFIG_FILE)


def _first_difference(
  old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any]:
  for key in sorted(set(old) | set(new)):
    before, after = old.get(key), new.get(key)
    if before == after:
      continue
    if isinstance(before, dict) and isinstance(after, dict):
      return _first_difference(before, after, f"{prefix}{key}.")
    return f"{prefix}{key}", before, after
  raise AssertionError("called with equal configurations")
