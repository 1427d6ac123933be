"""Float networks as ONNX models: what exported integer ones are compared with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
import onnx
from flax.traverse_util import flatten_dict
from onnx import TensorProto, helper

from bcgd_jax.export.graph import GraphWriter
from bcgd_jax.export.networks import describe_network
from bcgd_jax.models import BATCH_NORM_EPSILON

_OPSET_VERSION, _IR_VERSION = 14, 7


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
  """A name and its shape (height, width, channels)."""

  name: str
  shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class _Conv:
  """A convolution that is not written yet: batch norm is folded into it first."""

  x: _Tensor
  weights: np.ndarray  # [height, width, in, out]
  bias: np.ndarray
  stride: int
  padding: int


def make_float_onnx(
  model: nn.Module, variables: Mapping[str, Any], *, image_shape: tuple[int, int, int]
) -> onnx.ModelProto:
  """The float network as ONNX Runtime likes it best: convolutions with batch norm folded in.

  Its input "image" is float32 [batch, channels, height, width], already normalised; its output
  "logits" float32 [batch, classes].

  Args:
    model: one of this project's networks, nothing quantized.
    variables: "params" and "batch_stats".
    image_shape: (height, width, channels).
  """
  builder = _FloatBuilder(variables, image_shape)
  describe_network(model, builder)
  height, width, channels = image_shape
  graph = helper.make_graph(
    builder.graph.nodes,
    "float",
    [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, height, width])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", builder.num_classes])],
    initializer=builder.graph.constants,
  )
  made = helper.make_model(
    graph, opset_imports=[helper.make_opsetid("", _OPSET_VERSION)], ir_version=_IR_VERSION
  )
  onnx.checker.check_model(made, full_check=True)
  return made


class _FloatBuilder:
  """Takes the layers as `export.builder.ProgramBuilder` does."""

  def __init__(self, variables: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
    self._params = flatten_dict(variables["params"], sep="/")
    self._stats = flatten_dict(variables["batch_stats"], sep="/")
    self.graph = GraphWriter()
    self.image = _Tensor("image", image_shape)
    self.num_classes = 0

  def conv(self, x: _Tensor, path: str, *, stride: int = 1) -> _Conv:
    kernel = np.asarray(self._params[f"{path}/kernel"])
    is_dense = kernel.ndim == 2
    kernel = kernel.reshape(*x.shape, -1) if is_dense else kernel
    padding = 0 if is_dense else (kernel.shape[0] - 1) // 2
    bias = np.asarray(self._params.get(f"{path}/bias", np.zeros(kernel.shape[-1], np.float32)))
    return _Conv(x, kernel, bias, stride, padding)

  def normalize(self, x: _Conv, path: str) -> _Conv:
    mean, var = (np.asarray(self._stats[f"{path}/{key}"]) for key in ("mean", "var"))
    gain = np.asarray(self._params.get(f"{path}/scale", np.ones_like(var)))
    gain = gain / np.sqrt(var + np.float32(BATCH_NORM_EPSILON))
    bias = np.asarray(self._params.get(f"{path}/bias", np.zeros_like(var)))
    return dataclasses.replace(x, weights=x.weights * gain, bias=(x.bias - mean) * gain + bias)

  def add(self, x: _Conv, shortcut: "_Conv | _Tensor") -> _Tensor:
    first = self._write(x)
    second = self._write(shortcut) if isinstance(shortcut, _Conv) else shortcut
    return _Tensor(self.graph.apply("Add", first.name, second.name), first.shape)

  def activation(self, x: "_Conv | _Tensor", path: str) -> _Tensor:
    del path
    tensor = self._write(x) if isinstance(x, _Conv) else x
    return _Tensor(self.graph.apply("Relu", tensor.name), tensor.shape)

  def max_pool(self, x: _Tensor, *, window: int, stride: int, padding: int = 0) -> _Tensor:
    pooled = self.graph.apply(
      "MaxPool", x.name, kernel_shape=[window] * 2, strides=[stride] * 2, pads=[padding] * 4
    )
    height, width = ((side + 2 * padding - window) // stride + 1 for side in x.shape[:2])
    return _Tensor(pooled, (height, width, x.shape[2]))

  def subsample(self, x: _Tensor, *, stride: int, channels: int) -> _Tensor:
    name = x.name
    for axis in (2, 3):
      name = self.graph.slice(name, axis=axis, start=0, end=2**31 - 1, step=stride)
    pads = self.graph.constant(np.array([0] * 5 + [channels - x.shape[2], 0, 0], np.int64))
    height, width = (-(-side // stride) for side in x.shape[:2])
    padded = self.graph.apply("Pad", name, pads, self.graph.constant(np.float32(0.0)))
    return _Tensor(padded, (height, width, channels))

  def logits(self, x: _Tensor, path: str) -> None:
    kernel, bias = (np.asarray(self._params[f"{path}/{key}"]) for key in ("kernel", "bias"))
    self.num_classes = kernel.shape[-1]
    pooled = self.graph.apply("GlobalAveragePool", x.name)
    flat = self.graph.apply("Flatten", pooled)
    self.graph.apply(
      "Gemm", flat, self.graph.constant(kernel), self.graph.constant(bias), output="logits"
    )

  def _write(self, x: _Conv) -> _Tensor:
    weights = np.ascontiguousarray(x.weights.transpose(3, 2, 0, 1), np.float32)
    y = self.graph.apply(
      "Conv",
      x.x.name,
      self.graph.constant(weights),
      self.graph.constant(x.bias.astype(np.float32)),
      kernel_shape=list(x.weights.shape[:2]),
      strides=[x.stride] * 2,
      pads=[x.padding] * 4,
    )
    height, width = (
      (side + 2 * x.padding - size) // x.stride + 1
      for side, size in zip(x.x.shape[:2], x.weights.shape[:2], strict=True)
    )
    return _Tensor(y, (height, width, x.weights.shape[3]))
