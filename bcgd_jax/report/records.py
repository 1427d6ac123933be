"""The metrics of a run: one JSON object a line, read back with every field checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcgd_jax.errors import UsageError
from bcgd_jax.report.files import is_number, is_number_map, load_json

METRICS_FILE = "metrics.jsonl"

_RECORD_NUMBERS = {
  "train": ("loss", "accuracy"),
  "validation": ("loss", "accuracy"),
  "test": ("accuracy",),
}
# Numbers that a record of a kind may have.
_FREE_NUMBERS = {"train": ("learning_rate", "rho", "grad_norm", "codes_changed")}
# Kinds whose record has one map from path to number.
_NUMBER_MAPS = {"alpha": "alpha", "codes": "changed", "dead": "dead"}


def check_record(record: Mapping[str, Any]) -> str | None:
  """What is wrong with a metrics record of plain Python values, or None.

  Every record has "step" (int >= 0), "phase" and "kind" (strings). Records of kind "train" and
  "validation" have numbers "loss" and "accuracy", "test" has "accuracy". Of "train", also
  "learning_rate", "rho", "grad_norm" and "codes_changed" are numbers where they are there, and of
  every kind "timing" is {name: number}. Layer by layer, {path: number}: "alpha" has "alpha",
  "codes" has "changed" (the fraction of weights whose code changed since the record before) and
  "dead" has "dead" (the fraction of an activation's channels). Further fields and other kinds are
  free.
  """
  step = record.get("step")
  if not isinstance(step, int) or isinstance(step, bool) or step < 0:
    return f'"step" must be an integer >= 0, got {step!r}'
  for key in ("phase", "kind"):
    if not isinstance(record.get(key), str):
      return f'"{key}" must be a string, got {record.get(key)!r}'
  kind = record["kind"]
  for key in _RECORD_NUMBERS.get(kind, ()):
    if not is_number(record.get(key)):
      return f'"{key}" of a "{kind}" record must be a number, got {record.get(key)!r}'
  for key in _FREE_NUMBERS.get(kind, ()):
    if key in record and not is_number(record[key]):
      return f'"{key}" of a "{kind}" record must be a number, got {record[key]!r}'
  if not is_number_map(record.get("timing", {})):
    return f'"timing" must map names to numbers, got {record["timing"]!r}'
  field = _NUMBER_MAPS.get(kind)
  if field is not None and not is_number_map(record.get(field)):
    return f'"{field}" of a "{kind}" record must map paths to numbers, got {record.get(field)!r}'
  return None


def read_metric_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
  """Each line of a metrics file, newline included, with its record.

  A last line without its newline is what a kill in mid-write leaves: it is dropped unless it is
  whole, which a JSON object cut short never is. A file that is not there has no lines.

  Raises:
    UsageError: for any other line that is not a valid record, naming the file and the line.
  """
  if not path.exists():
    return []
  *lines, tail = path.read_bytes().split(b"\n")
  records = [(line + b"\n", _parse_record(line, f"{path}:{i}")) for i, line in enumerate(lines, 1)]
  try:
    load_json(tail)
  except ValueError:
    return records
  return [*records, (tail + b"\n", _parse_record(tail, f"{path}:{len(lines) + 1}"))]


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """The records of `workdir`/metrics.jsonl, in file order; a torn last line is ignored.

  Raises:
    UsageError: if the file is missing, or a line is not a valid record (see `check_record`).
  """
  path = Path(workdir) / METRICS_FILE
  if not path.exists():
    raise UsageError(f"{path} is missing: no training has run in this workdir")
  return [record for _, record in read_metric_lines(path)]


def _parse_record(line: bytes, where: str) -> dict[str, Any]:
  try:
    record = load_json(line)
  except ValueError as error:
    raise UsageError(f"{where}: each line must be one JSON object: {error}") from error
  if not isinstance(record, dict):
    raise UsageError(f"{where}: each line must be one JSON object, got {record!r}")
  problem = check_record(record)
  if problem:
    raise UsageError(f"{where}: {problem}")
  return record
