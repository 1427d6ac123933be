"""The reference of integer programs: their nodes in NumPy, as the documentation states them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bcgd_jax.export.integer import (
  Conv,
  FloatSum,
  Logits,
  MaxPool,
  Program,
  SameStepSum,
  Staircase,
  Subsample,
  TableSum,
)

Tensors = dict[str, np.ndarray]

_EXACT_FLOAT32 = 2**24
# above, one binary search an accumulator is faster than one comparison a threshold
_MAX_COMPARED = 40


def run_program(program: Program, images: np.ndarray) -> Tensors:
  """The outputs of all nodes, by name.

  Args:
    program: what to run.
    images: uint8 [batch, height, width, channels] of the program's shape.
  Returns:
    int32 accumulators, uint8 codes, and float32 "logits".
  Raises:
    ValueError: if images have another dtype or shape.
  """
  if images.dtype != np.uint8 or images.shape[1:] != program.image.shape:
    raise ValueError(
      f"images must be uint8 [batch, {', '.join(map(str, program.image.shape))}], got "
      f"{images.dtype} {list(images.shape)}"
    )
  tensors: Tensors = {"image": images.astype(np.int32) - program.image.zero_point}
  for node in program.nodes:
    tensors[node.name] = _RUN[type(node)](node, tensors)
  del tensors["image"]
  return tensors


def predict(program: Program, images: np.ndarray) -> np.ndarray:
  """The class of each image, int64 [batch]; of equal logits the first."""
  found: np.ndarray = np.argmax(run_program(program, images)["logits"], axis=1)
  return found


def _run_conv(node: Conv, tensors: Tensors) -> np.ndarray:
  """Sums of integers, exact: in float32 while they stay below 2^24, else in float64."""
  dtype = np.float32 if node.bound < _EXACT_FLOAT32 else np.float64
  pad, stride = node.padding, node.stride
  x = np.pad(tensors[node.input].astype(dtype), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  rows, columns = node.weights.shape[:2]
  height, width = (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1
  total = np.zeros((len(x), height, width, node.weights.shape[3]), dtype)
  for row in range(rows):
    for column in range(columns):
      part = x[:, row : row + stride * height : stride, column : column + stride * width : stride]
      total += part[:, :height, :width] @ node.weights[row, column].astype(dtype)
  return total.astype(np.int32)


def _run_max_pool(node: MaxPool, tensors: Tensors) -> np.ndarray:
  pad, window, stride = node.padding, node.window, node.stride
  # codes are at least 0, so that 0 never wins against one
  x = np.pad(tensors[node.input], ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (window, window), axis=(1, 2))
  found: np.ndarray = windows[:, ::stride, ::stride].max(axis=(-2, -1))
  return found


def _run_subsample(node: Subsample, tensors: Tensors) -> np.ndarray:
  x = tensors[node.input][:, :: node.stride, :: node.stride]
  return np.pad(x, ((0, 0), (0, 0), (0, 0), (0, node.channels - x.shape[3])))


def _run_staircase(node: Staircase, tensors: Tensors) -> np.ndarray:
  return _count_reached(tensors[node.input], node.thresholds).astype(np.uint8)


def _run_same_step_sum(node: SameStepSum, tensors: Tensors) -> np.ndarray:
  own = _count_reached(tensors[node.input], node.thresholds) - node.num_levels
  return np.clip(own + tensors[node.shortcut], 0, node.num_levels).astype(np.uint8)


def _run_table_sum(node: TableSum, tensors: Tensors) -> np.ndarray:
  acc, code_in = tensors[node.input], tensors[node.shortcut]
  channels = np.arange(acc.shape[-1])
  count = np.zeros(acc.shape, np.uint8)
  for level in range(node.num_levels):
    count += acc >= node.thresholds[channels, code_in, level]
  return count


def _run_float_sum(node: FloatSum, tensors: Tensors) -> np.ndarray:
  products = [
    tensors[name].astype(np.float32) * slope
    for name, slope in zip(node.inputs, node.slopes, strict=True)
  ]
  value = (products[0] + products[1]) + node.offset
  assert value.dtype == np.float32
  return np.clip(np.rint(value), 0, node.num_levels).astype(np.uint8)


def _run_logits(node: Logits, tensors: Tensors) -> np.ndarray:
  sums = tensors[node.input].astype(np.float64).sum(axis=(1, 2))
  products = (sums @ node.weights.astype(np.float64)).astype(np.float32)
  logits: np.ndarray = products * node.scale + node.bias
  return logits


def _count_reached(acc: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
  """How many thresholds [channels, n] of its channel each accumulator reaches, int16."""
  count = np.zeros(acc.shape, np.int16)
  if thresholds.shape[1] <= _MAX_COMPARED:
    for level in range(thresholds.shape[1]):
      count += acc >= thresholds[:, level]
    return count
  for channel, own in enumerate(thresholds):
    count[..., channel] = np.searchsorted(own, acc[..., channel], side="right")
  return count


_RUN: dict[type, Callable[[Any, Tensors], np.ndarray]] = {
  Conv: _run_conv,
  MaxPool: _run_max_pool,
  Subsample: _run_subsample,
  Staircase: _run_staircase,
  SameStepSum: _run_same_step_sum,
  TableSum: _run_table_sum,
  FloatSum: _run_float_sum,
  Logits: _run_logits,
}
