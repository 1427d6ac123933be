"""A suite as a list of runs, those that others start from first."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcgd_jax.errors import UsageError
from bcgd_jax.suites.spec import Row, Suite, load_module
from bcgd_jax.training.settings import config_hash, parse_settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
  """One run of a suite.

  Attributes:
    row: of the table; None for a first phase that only others start from.
    seed: of the run.
    config: resolved, with `start_from` set where its first phase is shared.
    workdir: of the run.
    identity: hash of the configuration, without where it starts from.
    start: the run that trains its first phase; None where it trains that itself.
    command: what trains the same without a suite, up to --workdir.
  """

  row: Row | None
  seed: int
  config: dict[str, Any]
  workdir: Path
  identity: str
  start: "PlannedRun | None"
  command: str

  @property
  def name(self) -> str:
    """What the run is called in messages."""
    row = "shared first phase" if self.row is None else self.row.name
    return f"{row}, seed {self.seed}"


def plan_runs(suite: Suite, workdir: Path, *, overrides: Mapping[str, str]) -> list[PlannedRun]:
  """Every run of a suite; one that others start from comes before them.

  A run of several phases whose first one is float does not train that phase: it is trained once
  for all runs that agree in seed, model, data and that phase's settings. A row that consists of
  this phase alone is that run.

  Args:
    suite: its rows.
    workdir: the suite's folder.
    overrides: dotted keys and values, as text, on top of every row.
  Raises:
    UsageError: for a configuration that is not valid, before anything runs.
  """
  firsts: dict[str, PlannedRun] = {}
  runs: list[PlannedRun] = []
  seeds = sorted({seed for row in suite.rows for seed in row.seeds})
  pairs = [(row, seed) for seed in seeds for row in suite.rows if seed in row.seeds]
  configs = {(row.name, seed): resolve(row, seed, overrides) for row, seed in pairs}
  # rows that train a first phase alone are known before the runs that may start from them
  for row, seed in sorted(pairs, key=lambda pair: len(configs[pair[0].name, pair[1]]["phases"])):
    config = configs[row.name, seed]
    folder = workdir / "runs" / slug(row.name) / f"seed{seed}"
    if len(config["phases"]) == 1 and not _is_quantized(config):
      key = _first_phase_key(config)
      run = _planned(row, seed, config, folder, None, overrides)
      firsts.setdefault(key, run)
    else:
      run = _planned(row, seed, config, folder, _shared(config, seed, firsts, workdir), overrides)
    runs.append(run)
  shared_only = [run for run in firsts.values() if run.row is None]
  order = {(row.name, seed): i for i, (row, seed) in enumerate(pairs)}
  named = sorted(runs, key=lambda run: order[run.row.name if run.row else "", run.seed])
  result: list[PlannedRun] = []
  for run in named:
    if run.start is not None and run.start in shared_only and run.start not in result:
      result.append(run.start)
    result.append(run)
  return result


def resolve(row: Row, seed: int, overrides: Mapping[str, str]) -> dict[str, Any]:
  """The configuration of a row and seed, checked.

  Raises:
    UsageError: naming the row, for an unknown key or a value that breaks its rule.
  """
  config = load_module(Path(row.config), needs="get_config").get_config()
  given = [(key, value, False) for key, value in row.overrides.items()]
  given += [(key, text, True) for key, text in overrides.items()]
  for key, value, is_text in given:
    try:
      parsed = _parse(value, _value(config, key)) if is_text else value
      config.update_from_flattened_dict({key: parsed})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      reason = error.args[0] if error.args else error
      raise UsageError(f"row {row.name!r}, {key}: {reason}") from error
  config.seed = seed
  plain = config.to_dict()
  try:
    parse_settings(plain)
  except UsageError as error:
    raise UsageError(f"row {row.name!r}: {error}") from error
  return plain


def slug(name: str) -> str:
  """A row's name as a folder's: lower case, with runs of other characters as one dash."""
  return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _planned(
  row: Row | None,
  seed: int,
  config: dict[str, Any],
  folder: Path,
  start: PlannedRun | None,
  overrides: Mapping[str, str],
) -> PlannedRun:
  identity = config_hash(config)
  if start is not None:
    first = config["phases"][0]
    config = {**config, first: {**config[first], "start_from": str(start.workdir)}}
  command = ""
  if row is not None:
    flags = [f"--config.{key}={_text(value)}" for key, value in row.overrides.items()]
    flags += [f"--config.{key}={value}" for key, value in overrides.items()]
    flags += [f"--config.seed={seed}"]
    command = " ".join(["python -m bcgd_jax.main", f"--config={row.config}", *flags])
  return PlannedRun(
    row=row,
    seed=seed,
    config=config,
    workdir=folder,
    identity=identity,
    start=start,
    command=command,
  )


def _shared(
  config: dict[str, Any], seed: int, firsts: dict[str, PlannedRun], workdir: Path
) -> PlannedRun | None:
  """The run that trains the float first phase of a configuration; None if it has none."""
  first = config["phases"][0]
  if len(config["phases"]) == 1 or _is_quantized(config) or config[first]["start_from"]:
    return None
  key = _first_phase_key(config)
  if key not in firsts:
    folder = workdir / "first_phases" / f"{key[:8]}-seed{seed}"
    alone = {**config, "phases": (first,)}
    firsts[key] = _planned(None, seed, alone, folder, None, {})
  return firsts[key]


def _is_quantized(config: Mapping[str, Any]) -> bool:
  first = config[config["phases"][0]]
  relaxes = first["optimizer"] == "binary_relax"
  return first["quantize_weights"] or first["quantize_activations"] or relaxes


def _first_phase_key(config: Mapping[str, Any]) -> str:
  """Hash of all that a float first phase depends on: not the bits, nor the later phases."""
  name = config["phases"][0]
  blocks = {k: v for k, v in config.items() if not (isinstance(v, Mapping) and "epochs" in v)}
  kept = {k: v for k, v in blocks.items() if k not in ("phases", "quantization")}
  # scale, rounding and estimators of the quantizers play no part in a float phase
  return config_hash({**kept, "first": config[name], "name": name})


def _value(config: Any, key: str) -> Any:
  for part in key.split("."):
    config = config[part]
  return config


def _parse(text: str, current: Any) -> Any:
  """Text as a value of the type that the key has now."""
  if isinstance(current, bool):
    if text.lower() not in ("true", "false"):
      raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() == "true"
  if isinstance(current, tuple | list):
    return tuple(_parse(part, current[0]) for part in text.strip("()").split(",") if part)
  return (
    text if isinstance(current, str) else float(text) if isinstance(current, float) else int(text)
  )


def _text(value: Any) -> str:
  if isinstance(value, tuple):
    inside = ",".join(repr(item) if isinstance(item, str) else str(item) for item in value)
    return f'"({inside},)"'
  return str(value)
