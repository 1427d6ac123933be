"""Writes ONNX operators one after the other, with their constants."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bcgd_jax.export.packing import pack_codes, unpack_table


class GraphWriter:
  """A list of ONNX nodes and constants that grows; every method returns the name of a tensor."""

  def __init__(self) -> None:
    self.nodes: list[onnx.NodeProto] = []
    self.constants: list[onnx.TensorProto] = []
    self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    self._count = 0

  def apply(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
    """One operator; its output has the name given, or a new one."""
    name = self._new_name(operator) if output is None else output
    self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
    return name

  def constant(self, array: np.ndarray | np.generic) -> str:
    """A constant; equal ones are stored once."""
    array = np.asarray(array)
    key = (array.dtype.str, array.shape, array.tobytes())
    if key not in self._known:
      self._known[key] = name = self._new_name("constant")
      self.constants.append(numpy_helper.from_array(array, name))
    return self._known[key]

  def weights(self, codes: np.ndarray, *, num_bits: int, factor: int = 1) -> str:
    """int8 factor * codes, stored in `storage_bits(num_bits)` each, unpacked by table look-up.

    ONNX Runtime does that once, when it loads the file.
    """
    table = unpack_table(num_bits)
    if table.shape[1] == 1:
      return self.constant((codes.astype(np.int16) * factor).astype(np.int8))
    packed = self.constant(pack_codes(codes, num_bits))
    index = self.apply("Cast", packed, to=onnx.TensorProto.INT32)
    values = np.clip(table.astype(np.int16) * factor, -128, 127).astype(np.int8)
    found = self.apply("Gather", self.constant(values), index, axis=0)
    if codes.size % table.shape[1]:
      found = self.reshape(found, (-1,))
      ends = (np.array([n], np.int64) for n in (0, codes.size, 0))
      found = self.apply("Slice", found, *map(self.constant, ends))
    return self.reshape(found, codes.shape)

  def slice(
    self, x: str, *, axis: int, start: int, end: int, step: int = 1, output: str | None = None
  ) -> str:
    """x[start:end:step] along an axis."""
    bounds = (np.array([n], np.int64) for n in (start, end, axis, step))
    return self.apply("Slice", x, *map(self.constant, bounds), output=output)

  def reshape(self, x: str, shape: Sequence[int]) -> str:
    """x in another shape; one side may be -1."""
    return self.apply("Reshape", x, self.constant(np.array(shape, np.int64)))

  def concat(self, parts: Sequence[str], *, axis: int) -> str:
    """The parts joined along an axis; one part is itself."""
    return parts[0] if len(parts) == 1 else self.apply("Concat", *parts, axis=axis)

  def channels_first(self, x: str) -> str:
    """[batch, height, width, channels] -> [batch, channels, height, width]."""
    return self.apply("Transpose", x, perm=[0, 3, 1, 2])

  def channels_last(self, x: str, *, output: str | None = None) -> str:
    """The inverse of `channels_first`."""
    return self.apply("Transpose", x, perm=[0, 2, 3, 1], output=output)

  def _new_name(self, what: str) -> str:
    self._count += 1
    return f"{what}:{self._count}"
