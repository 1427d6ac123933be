"""Integer programs as .npz files: packed weights and thresholds for readers without ONNX.

The layout is documented in docs/deploy.md; what the fields of a node mean, in `export.integer`.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np

from bcgd_jax.errors import UsageError
from bcgd_jax.export import integer
from bcgd_jax.export.integer import Image, Program
from bcgd_jax.export.packing import pack_codes, storage_bits, unpack_codes

FORMAT_VERSION = 1

_PROGRAM = "program.json"
_SEAL = b"sha256:"  # then 64 hexadecimal digits of all bytes before: the comment of the zip archive
_SEAL_SIZE = len(_SEAL) + 64
_KINDS = {
  kind.__name__: kind
  for kind in (
    *(integer.Conv, integer.MaxPool, integer.Subsample, integer.Logits, integer.Staircase),
    *(integer.SameStepSum, integer.TableSum, integer.FloatSum),
    *(integer.Requantizer, integer.Affine),
  )
}


def write_npz(program: Program) -> bytes:
  """The file of a program: what `np.load(allow_pickle=False)` opens, closed by a checksum.

  Equal programs give equal bytes.
  """
  arrays: dict[str, np.ndarray] = {}
  described = {
    "format_version": FORMAT_VERSION,
    "image": dataclasses.asdict(program.image),
    "nodes": [_describe(node, f"{index}", arrays) for index, node in enumerate(program.nodes)],
    "facts": dict(program.facts),
  }
  text = np.frombuffer(json.dumps(described).encode(), np.uint8)
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, array in {_PROGRAM: text, **arrays}.items():
      member = io.BytesIO()
      np.lib.format.write_array(member, array, allow_pickle=False)
      # the default date, so that bytes do not depend on the day
      archive.writestr(
        zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9
      )
    archive.comment = b" " * _SEAL_SIZE
  body = file.getvalue()[:-_SEAL_SIZE]
  return body + _SEAL + hashlib.sha256(body).hexdigest().encode()


def read_npz(data: bytes, *, name: str) -> Program:
  """The program of a file's bytes; `name` is what errors call the file.

  Raises:
    UsageError: if a byte is not as it was written, or the file is of a later format.
  """
  body, seal = data[:-_SEAL_SIZE], data[-_SEAL_SIZE:]
  if not seal.startswith(_SEAL):
    raise UsageError(f"{name} must end with its checksum: it is cut off, or not an exported .npz")
  if seal != _SEAL + hashlib.sha256(body).hexdigest().encode():
    raise UsageError(f"{name} must be as it was written, but its checksum differs: it is damaged")
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    arrays = dict(file.items())
  described = json.loads(arrays.pop(_PROGRAM).tobytes())
  if described["format_version"] != FORMAT_VERSION:
    raise UsageError(
      f"{name} must be of format version {FORMAT_VERSION}, got {described['format_version']}"
    )
  image = described["image"]
  return Program(
    image=Image(**{**image, "shape": tuple(image["shape"])}),
    nodes=tuple(_restore(node, arrays) for node in described["nodes"]),
    facts=described["facts"],
  )


def _describe(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
  """A node, or a field of one, as JSON; its arrays go to `arrays` under their paths."""
  if isinstance(value, np.ndarray | np.generic):
    arrays[path] = np.asarray(value)
    return {"array": path}
  if isinstance(value, tuple):
    return [_describe(item, f"{path}.{index}", arrays) for index, item in enumerate(value)]
  if not dataclasses.is_dataclass(value) or isinstance(value, type):
    return value
  described: dict[str, Any] = {"kind": type(value).__name__}
  for field in dataclasses.fields(value):
    item, where = getattr(value, field.name), f"{path}.{field.name}"
    if isinstance(value, integer.Conv | integer.Logits) and _is_packed(field.name, item):
      arrays[where] = pack_codes(item, value.num_bits)
      bits = storage_bits(value.num_bits)
      described[field.name] = {"array": where, "shape": list(item.shape), "packed_bits": bits}
    else:
      described[field.name] = _describe(item, where, arrays)
  return described


def _is_packed(field: str, value: Any) -> bool:
  return field == "weights" and value.dtype == np.int8


def _restore(value: Any, arrays: dict[str, np.ndarray]) -> Any:
  """The inverse of `_describe`."""
  if isinstance(value, list):
    return tuple(_restore(item, arrays) for item in value)
  if not isinstance(value, dict):
    return value
  if "packed_bits" in value:
    return unpack_codes(arrays[value["array"]], value["packed_bits"], tuple(value["shape"]))
  if "array" in value:
    array = arrays[value["array"]]
    return array[()] if array.ndim == 0 else array
  fields = {key: _restore(item, arrays) for key, item in value.items() if key != "kind"}
  return _KINDS[value["kind"]](**fields)
