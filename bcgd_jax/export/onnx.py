"""Integer programs as ONNX models of standard operators, for ONNX Runtime and others."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bcgd_jax.export.graph import GraphWriter
from bcgd_jax.export.integer import (
  MAX_PIXEL,
  Affine,
  Conv,
  FloatSum,
  Logits,
  MaxPool,
  Node,
  Program,
  Requantizer,
  SameStepSum,
  Staircase,
  Subsample,
  TableSum,
  num_channels,
)
from bcgd_jax.export.packing import split_int16
from bcgd_jax.export.requantize import fits_pairs
from bcgd_jax.export.stem import Convolution, fold_blocks

# The lowest that serve: Add of uint8 came with opset 14.
OPSET_VERSION = 14
IR_VERSION = 7

_SIGN_BIT = 128


def make_onnx(program: Program, *, outputs: Sequence[str] = ()) -> onnx.ModelProto:
  """The ONNX model of a program.

  Its input "image" is uint8 [batch, height, width, channels], its output "logits" float32
  [batch, classes]; the batch may have any size. Convolutions whose thresholds a `Requantizer` meets
  are QLinearConv, others a product of patches (MatMulInteger) and float32 arithmetic.

  Args:
    program: what to write.
    outputs: names of codes that are outputs as well, uint8.
  Returns:
    A model that `onnx.checker` accepts.
  """
  writer = _Writer(program)
  for node in program.nodes:
    writer.write(node)
  height, width, channels = program.image.shape
  logits = program.nodes[-1]
  assert isinstance(logits, Logits)
  graph = helper.make_graph(
    writer.graph.nodes,
    "bcgd_jax",
    [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", height, width, channels])],
    [
      helper.make_tensor_value_info(
        logits.name, TensorProto.FLOAT, ["batch", logits.weights.shape[1]]
      ),
      *(
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", None, None, None])
        for name in outputs
      ),
    ],
    initializer=writer.graph.constants,
  )
  model = helper.make_model(
    graph,
    opset_imports=[helper.make_opsetid("", OPSET_VERSION)],
    ir_version=IR_VERSION,
    producer_name="bcgd_jax",
  )
  helper.set_model_props(model, {key: _as_text(value) for key, value in program.facts.items()})
  onnx.checker.check_model(model, full_check=True)
  return model


def _as_text(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


class _Writer:
  """Writes the nodes of a program; a convolution is written where its accumulators are used."""

  def __init__(self, program: Program) -> None:
    self.graph = GraphWriter()
    self._image = program.image
    self._convs = {node.name: node for node in program.nodes if isinstance(node, Conv)}
    self._largest = {"image": MAX_PIXEL}
    self._channels = {"image": program.image.shape[2]}
    for node in program.nodes:
      if isinstance(node, MaxPool | Subsample):
        self._largest[node.name] = self._largest[node.input]
        self._channels[node.name] = (
          node.channels if isinstance(node, Subsample) else self._channels[node.input]
        )
      elif not isinstance(node, Conv | Logits):
        self._largest[node.name] = node.num_levels
        self._channels[node.name] = num_channels(node)

  def write(self, node: Node) -> None:
    """Adds what a node computes, under its name."""
    if not isinstance(node, Conv):
      _WRITE[type(node)](self, node)

  def staircase(self, node: Staircase) -> None:
    conv = self._convs[node.input]
    if isinstance(node.scheme, Affine):
      value = self._scaled(self._accumulator(conv), node.scheme)
      self._round(value, node.num_levels, output=node.name)
      return
    if node.num_levels == MAX_PIXEL:
      self._requantized(conv, node.scheme, output=node.name)
    else:
      self._clip(self._requantized(conv, node.scheme), 0, node.num_levels, output=node.name)

  def same_step_sum(self, node: SameStepSum) -> None:
    zero, levels = node.scheme.zero_point, node.num_levels
    codes = self._requantized(self._convs[node.input], node.scheme)
    # not above 2 * levels + 1, so that the sum stays in a byte
    capped = self.graph.apply("Min", codes, self._byte(zero + levels))
    total = self.graph.apply("Add", capped, node.shortcut)
    clipped = self._clip(total, zero, zero + levels)
    self.graph.apply("Sub", clipped, self._byte(zero), output=node.name)

  def table_sum(self, node: TableSum) -> None:
    value = self._scaled(self._accumulator(self._convs[node.input]), node.scheme)
    assert node.scheme.ratio is not None
    added = self.graph.apply("Cast", node.shortcut, to=TensorProto.FLOAT)
    added = self.graph.apply("Mul", added, self.graph.constant(node.scheme.ratio))
    self._round(self.graph.apply("Add", value, added), node.num_levels, output=node.name)

  def float_sum(self, node: FloatSum) -> None:
    first, second = (
      self.graph.apply(
        "Mul",
        self.graph.apply("Cast", self._accumulator(self._convs[name]), to=TensorProto.FLOAT),
        self.graph.constant(slope),
      )
      for name, slope in zip(node.inputs, node.slopes, strict=True)
    )
    value = self.graph.apply("Add", first, second)
    value = self.graph.apply("Add", value, self.graph.constant(node.offset))
    self._round(value, node.num_levels, output=node.name)

  def max_pool(self, node: MaxPool) -> None:
    pooled = self.graph.apply(
      "MaxPool",
      self.graph.channels_first(node.input),
      kernel_shape=[node.window] * 2,
      strides=[node.stride] * 2,
      pads=[node.padding] * 4,
    )
    self.graph.channels_last(pooled, output=node.name)

  def subsample(self, node: Subsample) -> None:
    x = node.input
    for axis in (1, 2):
      x = self.graph.slice(x, axis=axis, start=0, end=2**31 - 1, step=node.stride)
    added = node.channels - self._channels[node.input]
    pads = self.graph.constant(np.array([0] * 7 + [added], np.int64))
    self.graph.apply("Pad", x, pads, self._byte(0), output=node.name)

  def logits(self, node: Logits) -> None:
    codes = self.graph.apply("Cast", node.input, to=TensorProto.FLOAT)
    axes = self.graph.constant(np.array([1, 2], np.int64))
    sums = self.graph.apply("ReduceSum", codes, axes, keepdims=0)
    if node.weights.dtype == np.float32:
      weights = self.graph.constant(node.weights)
    else:
      packed = self.graph.weights(node.weights, num_bits=node.num_bits)
      weights = self.graph.apply("Cast", packed, to=TensorProto.FLOAT)
    # integers below 2^24, so that float32 is exact where the weights are integers
    products = self.graph.apply("MatMul", sums, weights)
    scaled = self.graph.apply("Mul", products, self.graph.constant(node.scale))
    self.graph.apply("Add", scaled, self.graph.constant(node.bias), output=node.name)

  def _requantized(self, conv: Conv, scheme: Requantizer, *, output: str | None = None) -> str:
    """QLinearConv between transpositions, which ONNX Runtime cancels."""
    x = conv.input
    if scheme.input_factor > 1:
      x = self.graph.apply("Mul", x, self._byte(scheme.input_factor))
    one = self.graph.constant(np.float32(1.0))
    weights = self.graph.weights(
      np.ascontiguousarray(conv.weights.transpose(3, 2, 0, 1)),
      num_bits=conv.num_bits,
      factor=scheme.weight_factor,
    )
    convolution = Convolution(
      x=x,
      weights=weights,
      kernel_shape=list(conv.weights.shape[:2]),
      strides=[conv.stride] * 2,
      pads=[conv.padding] * 4,
    )
    height, width, _ = self._image.shape
    if conv.input == "image" and conv.stride == 2 and height % 2 == width % 2 == 0:
      convolution = fold_blocks(self.graph, conv, convolution, self._image.shape)
    y = self.graph.apply(
      "QLinearConv",
      self.graph.channels_first(convolution.x),
      one,
      self._byte(self._zero_point(conv)),
      convolution.weights,
      self.graph.constant(scheme.multiplier),
      self.graph.constant(np.int8(0)),
      one,
      self._byte(scheme.zero_point),
      self.graph.constant(scheme.bias),
      kernel_shape=convolution.kernel_shape,
      strides=convolution.strides,
      pads=convolution.pads,
    )
    return self.graph.channels_last(y, output=output)

  def _accumulator(self, conv: Conv) -> str:
    """int32 [batch, height, width, channels], by a product of patches."""
    patches = self._patches(conv)
    flat = conv.weights.reshape(-1, conv.weights.shape[3])
    if conv.weights.dtype == np.int8:
      return self._integer_product(patches, flat, conv)
    high, low = split_int16(flat)
    coarse = self._integer_product(patches, high, conv)
    coarse = self.graph.apply("Mul", coarse, self.graph.constant(np.int32(256)))
    return self.graph.apply("Add", coarse, self._integer_product(patches, low, conv))

  def _integer_product(self, patches: str, weights: np.ndarray, conv: Conv) -> str:
    zero_point = self._byte(self._zero_point(conv))
    max_weight = int(np.abs(weights.astype(np.int16)).max())
    if not fits_pairs(self._largest[conv.input], max_weight):
      # kernels of two unsigned bytes do not saturate
      unsigned = self.graph.constant((weights.astype(np.int16) + _SIGN_BIT).astype(np.uint8))
      return self.graph.apply("MatMulInteger", patches, unsigned, zero_point, self._byte(_SIGN_BIT))
    bits = conv.num_bits if conv.weights.dtype == np.int8 else 8
    return self.graph.apply(
      "MatMulInteger", patches, self.graph.weights(weights, num_bits=bits), zero_point
    )

  def _patches(self, conv: Conv) -> str:
    """[batch, height, width, window * in]: the windows' pixels, rows before columns."""
    height, width = conv.weights.shape[:2]
    x, stride = conv.input, conv.stride
    if conv.padding:
      pads = [0, conv.padding, conv.padding, 0] * 2
      x = self.graph.apply(
        "Pad", x, self.graph.constant(np.array(pads, np.int64)), self._byte(self._zero_point(conv))
      )
    for axis, count in ((2, width), (1, height)):
      if count > 1 or stride > 1:
        parts = [
          # an end below 0 counts from the end: 2^31 - 1 is beyond it
          self.graph.slice(
            x,
            axis=axis,
            start=start,
            end=start - count + 1 if start < count - 1 else 2**31 - 1,
            step=stride,
          )
          for start in range(count)
        ]
        x = self.graph.concat(parts, axis=3)
    return x

  def _scaled(self, accumulator: str, affine: Affine) -> str:
    value = self.graph.apply("Cast", accumulator, to=TensorProto.FLOAT)
    value = self.graph.apply("Mul", value, self.graph.constant(affine.slope))
    return self.graph.apply("Add", value, self.graph.constant(affine.offset))

  def _round(self, value: str, num_levels: int, *, output: str) -> None:
    """clip(round_half_even(value), 0, num_levels); QuantizeLinear saturates at 0 and 255."""
    one = self.graph.constant(np.float32(1.0))
    if num_levels == MAX_PIXEL:
      self.graph.apply("QuantizeLinear", value, one, self._byte(0), output=output)
    else:
      codes = self.graph.apply("QuantizeLinear", value, one, self._byte(0))
      self._clip(codes, 0, num_levels, output=output)

  def _clip(self, x: str, low: int, high: int, *, output: str | None = None) -> str:
    return self.graph.apply("Clip", x, self._byte(low), self._byte(high), output=output)

  def _byte(self, value: int) -> str:
    return self.graph.constant(np.uint8(value))

  def _zero_point(self, conv: Conv) -> int:
    return self._image.zero_point if conv.input == "image" else 0


_WRITE: dict[type, Callable[[_Writer, Any], None]] = {
  Staircase: _Writer.staircase,
  SameStepSum: _Writer.same_step_sum,
  TableSum: _Writer.table_sum,
  FloatSum: _Writer.float_sum,
  MaxPool: _Writer.max_pool,
  Subsample: _Writer.subsample,
  Logits: _Writer.logits,
}
