"""JSON files that survive NaN and interruption.

JSON has no number for NaN or infinity. Files written here hold the strings "NaN", "Infinity" and
"-Infinity" in their place, and the readers turn exactly these strings back into floats.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcgd_jax.errors import UsageError

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def is_number(value: object) -> bool:
  """Whether `value` is a Python int or float; True and False are not numbers here."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def is_number_map(value: object) -> bool:
  """Whether `value` is a dict with nothing but numbers in it."""
  return isinstance(value, dict) and all(map(is_number, value.values()))


def plain_value(value: Any) -> Any:
  """Python numbers, strings, lists and dicts out of what may hold NumPy or JAX values.

  Raises:
    TypeError: for anything else, naming its type.
  """
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, Mapping):
    return {str(key): plain_value(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain_value(item) for item in value]
  if hasattr(value, "tolist"):
    return plain_value(value.tolist())
  raise TypeError(
    f"cannot write a {type(value).__name__} as JSON; convert it to a number or string"
  )


def dump_json(value: Any, *, indent: int | None = None) -> str:
  """Standard JSON (no bare NaN), keys in the order given; arrays become nested lists."""
  return json.dumps(_encode_non_finite(plain_value(value)), indent=indent, allow_nan=False)


def load_json(text: str | bytes) -> Any:
  """The inverse of `dump_json`; bare NaN and Infinity, as Python's json writes them, pass too.

  Raises:
    ValueError: if `text` is not JSON in UTF-8.
  """
  return _decode_non_finite(json.loads(text))


def write_atomic(path: Path, data: bytes) -> None:
  """Writes `path` by a temporary file and a rename: a reader sees the old file or the new one.

  Meant for one writer a path. The folder must exist.
  """
  temporary = path.with_name(f".{path.name}.tmp")
  try:
    with open(temporary, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
  """Writes `value` to `path` as indented JSON (see `dump_json`), atomically."""
  write_atomic(path, (dump_json(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
  """Reads a file that holds one JSON object.

  Raises:
    UsageError: if the file is missing or holds anything else.
  """
  try:
    value = load_json(path.read_bytes())
  except FileNotFoundError as error:
    raise UsageError(f"{path} is missing: the run has not written it yet") from error
  except ValueError as error:
    raise UsageError(f"{path} must hold one JSON object, but is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise UsageError(f"{path} must hold one JSON object, got a {type(value).__name__}")
  return value


def _encode_non_finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _encode_non_finite(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_encode_non_finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
  return value


def _decode_non_finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _decode_non_finite(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_decode_non_finite(item) for item in value]
  return _NON_FINITE.get(value, value) if isinstance(value, str) else value
