"""A suite as a list of runs, and which of them start from another."""

import dataclasses
import re
import shlex
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
    command: what trains this configuration without a suite, up to --workdir. It trains the first
      phase itself and goes on in the stream of batches; a run that starts from another begins the
      stream anew, with the first phase's orders and augmentations.
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
    return run_name(row, self.seed)


def run_name(row: str, seed: int) -> str:
  """What a row's run is called."""
  return f"{row}, seed {seed}"


def plan_runs(suite: Suite, workdir: Path, *, overrides: Mapping[str, str]) -> list[PlannedRun]:
  """Every run of a suite, by seeds, then rows; where no row trains a shared phase, a run more does.

  A run of several phases whose first one is float does not train that phase: it is trained once
  for all runs that agree in seed, model, data and that phase's settings. A row that consists of
  this phase alone is that run.

  Args:
    suite: its rows.
    workdir: the suite's folder.
    overrides: dotted keys and values, as text, on top of every row.
  Raises:
    UsageError: for a configuration that is not valid, or two rows with one folder, before anything
      runs.
  """
  if "seed" in overrides:
    raise UsageError(f"--set must leave seed to the suite's rows, got seed={overrides['seed']}.")
  by_folder = {slug(row.name): row.name for row in suite.rows}
  for row in suite.rows:
    if by_folder[slug(row.name)] != row.name:
      raise UsageError(
        f"rows {row.name!r} and {by_folder[slug(row.name)]!r} would share the folder "
        f"{slug(row.name)!r}; rename one."
      )
  seeds = sorted({seed for row in suite.rows for seed in row.seeds})
  pairs = [(row, seed) for seed in seeds for row in suite.rows if seed in row.seeds]
  configs = [resolve(row, seed, overrides) for row, seed in pairs]
  runs = [
    _planned(row, seed, config, workdir / "runs" / slug(row.name) / f"seed{seed}", overrides)
    for (row, seed), config in zip(pairs, configs, strict=True)
  ]
  # a row that is such a phase may stand after those that start from it
  firsts: dict[str, PlannedRun] = {}
  for run in runs:
    if len(run.config["phases"]) == 1 and not _begins_quantized(run.config):
      firsts.setdefault(_first_phase_key(run.config), run)
  result: list[PlannedRun] = []
  for run in runs:
    if _can_share(run.config):
      key = _first_phase_key(run.config)
      if key not in firsts:
        folder = workdir / "first_phases" / f"{key[:8]}-seed{run.seed}"
        alone = {**run.config, "phases": run.config["phases"][:1]}
        firsts[key] = _planned(None, run.seed, alone, folder, {})
        result.append(firsts[key])
      run = _started_from(run, firsts[key])
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
  overrides: Mapping[str, str],
) -> PlannedRun:
  command = ""
  if row is not None:
    flags = [f"--config.{key}={_text(value)}" for key, value in row.overrides.items()]
    flags += [f"--config.{key}={shlex.quote(value)}" for key, value in overrides.items()]
    flags += [f"--config.seed={seed}"]
    command = " ".join(["python -m bcgd_jax.main", f"--config={row.config}", *flags])
  return PlannedRun(
    row=row,
    seed=seed,
    config=config,
    workdir=folder,
    identity=config_hash(config),
    start=None,
    command=command,
  )


def _started_from(run: PlannedRun, start: PlannedRun) -> PlannedRun:
  """The run with its first phase taken from another; its identity stays."""
  first = run.config["phases"][0]
  block = {**run.config[first], "start_from": str(start.workdir)}
  return dataclasses.replace(run, config={**run.config, first: block}, start=start)


def _can_share(config: Mapping[str, Any]) -> bool:
  """Whether a run has a float first phase of its own that another one could train for it."""
  given = config[config["phases"][0]]["start_from"]
  return len(config["phases"]) > 1 and not _begins_quantized(config) and not given


def _begins_quantized(config: Mapping[str, Any]) -> bool:
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
  if isinstance(current, str):
    return text
  return float(text) if isinstance(current, float) else int(text)


def _text(value: Any) -> str:
  if isinstance(value, tuple):
    inside = ",".join(repr(item) if isinstance(item, str) else str(item) for item in value)
    return f'"({inside},)"'
  return str(value)
