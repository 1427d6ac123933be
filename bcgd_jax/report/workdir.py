"""What a run left in its workdir so far, read back with every field checked."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bcgd_jax.errors import UsageError
from bcgd_jax.report.files import is_number, is_number_map, read_json
from bcgd_jax.report.gallery import Gallery, read_gallery
from bcgd_jax.report.records import METRICS_FILE, read_metrics


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
  """What a run left in its workdir, checked.

  `run` is None if the run has not ended. `records` has one at least. `weights` is empty if no phase
  has ended, or the run kept no histograms. `gallery` is None where the run has written none.
  """

  config: dict[str, Any]
  run: dict[str, Any] | None
  records: list[dict[str, Any]]
  weights: dict[str, dict[str, Any]]
  gallery: Gallery | None


def read_run_files(workdir: Path) -> RunFiles:
  """Reads config.json, metrics.jsonl and, if there, run.json, weights.json and gallery.npz.

  A run may go on meanwhile: it replaces its files whole, and of its metrics the whole lines count.

  Raises:
    UsageError: if one of the first two is missing, there are no metrics yet, or a field breaks its
      rule.
  """
  workdir = Path(workdir)
  config_path = workdir / "config.json"
  run_path, weights_path = workdir / "run.json", workdir / "weights.json"
  if not config_path.exists():
    raise UsageError(f"{config_path} is missing: {workdir} is not the folder of a run")
  config = read_json(config_path)
  # before the metrics, which are complete once this file is there
  run = read_json(run_path) if run_path.exists() else None
  weights = read_json(weights_path) if weights_path.exists() else {}
  if run is None:
    _check_config(config, config_path)
  else:
    _check_run(run, run_path)
  _check_weights(weights, weights_path)
  records = read_metrics(workdir)
  if not records:
    raise UsageError(
      f"{workdir / METRICS_FILE} has no record yet: the first comes after config.log_every_steps"
    )
  return RunFiles(
    config=config,
    run=run,
    records=records,
    weights=weights,
    gallery=read_gallery(workdir),
  )


def _is_count(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_shape(value: object) -> bool:
  return isinstance(value, list) and all(map(_is_count, value))


def _is_fraction(value: object) -> bool:
  return isinstance(value, int | float) and is_number(value) and 0 <= value <= 1


def _or_null(rule: Callable[[object], bool]) -> Callable[[object], bool]:
  return lambda value: value is None or rule(value)


_Rules = dict[str, tuple[Callable[[object], bool], str]]

_STRING = (lambda value: isinstance(value, str), "a string")
_COUNT = (_is_count, "an integer >= 0")
_COUNT_OR_NULL = (_or_null(_is_count), "an integer >= 0 or null")
_FRACTION_OR_NULL = (_or_null(_is_fraction), "a fraction in [0, 1] or null")

_RUN_RULES: _Rules = {
  "model": _STRING,
  "dataset": _STRING,
  "weight_bits": _COUNT_OR_NULL,
  "activation_bits": _COUNT_OR_NULL,
  "float_bytes": _COUNT,
  "quantized_bytes": _COUNT_OR_NULL,
  "num_parameters": _COUNT,
  "num_test_examples": _COUNT,
  "float_test_accuracy": _FRACTION_OR_NULL,
  "quantized_test_accuracy": _FRACTION_OR_NULL,
  "phase_seconds": (is_number_map, "an object of numbers"),
  "layers": (lambda value: isinstance(value, list), "a list"),
}
_LAYER_RULES: _Rules = {
  "path": _STRING,
  "kind": _STRING,
  "shape": (_or_null(_is_shape), "a list of integers or null"),
  "weight_bits": _COUNT_OR_NULL,
  "activation_bits": _COUNT_OR_NULL,
  "float_bytes": _COUNT,
  "quantized_bytes": _COUNT,
  "macs": _COUNT,
}


def _check_fields(value: Mapping[str, Any], rules: _Rules, where: str) -> None:
  for key, (rule, words) in rules.items():
    if key not in value:
      raise UsageError(f'{where}: "{key}" is missing; it must be {words}')
    if not rule(value[key]):
      raise UsageError(f'{where}: "{key}" must be {words}, got {value[key]!r}')


def _check_config(config: Mapping[str, Any], path: Path) -> None:
  """Checks the keys that a report of an unfinished run names."""
  for block, key in (("model", "name"), ("data", "dataset")):
    if not isinstance(config.get(block), dict):
      raise UsageError(f'{path}: "{block}" must be an object, got {config.get(block)!r}')
    _check_fields(config[block], {key: _STRING}, f"{path}: {block}")


def _check_run(run: Mapping[str, Any], path: Path) -> None:
  _check_fields(run, _RUN_RULES, str(path))
  for index, layer in enumerate(run["layers"]):
    where = f"{path}: layers[{index}]"
    if not isinstance(layer, dict):
      raise UsageError(f"{where} must be an object, got {layer!r}")
    _check_fields(layer, _LAYER_RULES, where)


def _check_weights(weights: Mapping[str, Any], path: Path) -> None:
  for phase, entries in weights.items():
    if not isinstance(entries, dict):
      raise UsageError(f'{path}: phase "{phase}" must be an object, got {entries!r}')
    for name, entry in entries.items():
      if not _is_histogram(entry):
        raise UsageError(
          f'{path}: "{name}" in phase "{phase}" must have lists "edges" (n + 1 numbers) and'
          f' "counts" (n integers), and "codes" and "scale" together or neither'
        )


def _is_histogram(entry: object) -> bool:
  if not isinstance(entry, dict):
    return False
  edges, counts = entry.get("edges"), entry.get("counts")
  codes, scale = entry.get("codes"), entry.get("scale")
  if not isinstance(edges, list) or not isinstance(counts, list):
    return False
  plain = len(edges) == len(counts) + 1 and all(map(is_number, edges)) and _is_shape(counts)
  if codes is None and scale is None:
    return plain
  return plain and _is_codes(codes) and isinstance(scale, list) and all(map(is_number, scale))


def _is_codes(codes: object) -> bool:
  return isinstance(codes, dict) and all(
    code.lstrip("-").isdecimal() and _is_count(count) for code, count in codes.items()
  )
