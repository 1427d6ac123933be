"""The integer program: what a trained network computes on a machine that knows only integers.

A program is a list of nodes in order. Each has a name, by which later ones refer to its output, and
works on arrays [batch, height, width, channels]:

    image                 uint8                  what the program is given
    Conv                  int32 accumulators     from the image or from codes
    MaxPool, Subsample    codes                  from codes
    Staircase, *Sum       codes, 0..num_levels   from accumulators, and codes where there is a sum
    Logits                float32 [batch, classes], from codes

Between two quantized layers there are thresholds alone: scales of weights, steps of activations,
batch norm, biases and the staircase are folded into them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_PIXEL = 255  # of an image, and the largest code that ONNX's kernels make


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
  """The input: uint8 [batch, height, width, channels].

  Attributes:
    shape: (height, width, channels).
    zero_point: the pixel that normalisation maps to 0; what convolutions pad with.
    step: of a normalised pixel: its value is step * (pixel - zero_point).
  """

  shape: tuple[int, int, int]
  zero_point: int
  step: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
  """acc = sum over the window and the input channels of weights * (input - zero point).

  The zero point is that of the image, 0 for codes; padding contributes 0. A dense layer is a
  convolution whose kernel has the size of its map. Where the slope of batch norm is negative, the
  channel's weights have the other sign than in the network.

  Attributes:
    name: of the output, int32 [batch, height', width', out].
    input: "image" or the name of codes.
    weights: integers [height, width, in, out]; int8, or int16 where a float layer was rounded.
    num_bits: that one weight takes when packed.
    stride: in both directions.
    padding: rows and columns at each of the four sides.
    bound: the largest magnitude that acc can have, of all channels; below 2^31.
  """

  name: str
  input: str
  weights: np.ndarray
  num_bits: int
  stride: int
  padding: int
  bound: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool:
  """The largest code of each square window; padding never wins.

  Attributes:
    name, input: of codes.
    window, stride, padding: as in a convolution.
  """

  name: str
  input: str
  window: int
  stride: int
  padding: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subsample:
  """Every stride-th row and column, with channels of 0 added at the end.

  Attributes:
    name, input: of codes.
    stride: in both directions.
    channels: of the output.
  """

  name: str
  input: str
  stride: int
  channels: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Requantizer:
  """How an 8-bit convolution kernel makes the codes of thresholds: a bias and a multiplication.

    code' = clip(round_half_even(float32(factor * acc + bias) * multiplier) + zero_point, 0, 255)

  `export.requantize` proves of each channel that code' - zero_point crosses every level where the
  thresholds say.

  Attributes:
    weight_factor, input_factor: what weights and inputs are multiplied by to make steps finer;
      `factor` is their product.
    bias: int32 [channels].
    multiplier: float32 [channels].
    zero_point: of the output.
  """

  weight_factor: int
  input_factor: int
  bias: np.ndarray
  multiplier: np.ndarray
  zero_point: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
  """Codes by float32 arithmetic, one rounding an operation:

    code = clip(round_half_even((float32(acc) * slope + offset) [+ code_in * ratio]), 0, num_levels)

  Attributes:
    slope: float32 [channels], >= 0.
    offset: float32 [channels]; half a code is included, which makes rounding a ceil.
    ratio: float32 [], step of the codes added over that of the result; None where none are added.
  """

  slope: np.ndarray
  offset: np.ndarray
  ratio: np.float32 | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Staircase:
  """code = number of thresholds of the channel that acc reaches.

  Attributes:
    name: of the codes, 0..num_levels.
    input: accumulators.
    step: of a code: what it stands for is step * code.
    thresholds: int32 [channels, num_levels], ascending; acc reaches one by being at least as large.
    scheme: how the thresholds are met by arithmetic; Affine where they were made by it.
  """

  name: str
  input: str
  step: float
  thresholds: np.ndarray
  scheme: Requantizer | Affine

  @property
  def num_levels(self) -> int:
    """The highest code."""
    return int(self.thresholds.shape[1])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SameStepSum:
  """code = clip(n - num_levels + code_in, 0, num_levels), n = number of thresholds acc reaches.

  A residual sum whose codes have the step of the result: ceil(u + k) = ceil(u) + k for integers k.

  Attributes:
    name, input, step: as of a `Staircase`.
    shortcut: name of the codes that are added.
    thresholds: int32 [channels, 2 * num_levels], ascending.
    scheme: how they are met by an 8-bit convolution.
  """

  name: str
  input: str
  shortcut: str
  step: float
  thresholds: np.ndarray
  scheme: Requantizer

  @property
  def num_levels(self) -> int:
    """The highest code."""
    return int(self.thresholds.shape[1]) // 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableSum:
  """code = number of thresholds that acc reaches, of those for the channel and the code added.

  A residual sum of any two steps.

  Attributes:
    name, input, step: as of a `Staircase`.
    shortcut: name of the codes that are added, 0..K.
    thresholds: int32 [channels, K + 1, num_levels], ascending along the last axis.
    scheme: the float32 arithmetic that made them.
  """

  name: str
  input: str
  shortcut: str
  step: float
  thresholds: np.ndarray
  scheme: Affine

  @property
  def num_levels(self) -> int:
    """The highest code."""
    return int(self.thresholds.shape[2])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FloatSum:
  """The sum of two accumulators, as where a shortcut has a convolution; float32 arithmetic:

    code = clip(round_half_even((f(acc) * slope + f(acc_2) * slope_2) + offset), 0, num_levels)

  with f the conversion to float32 and one rounding an operation. Two accumulators have too many
  pairs for a table.

  Attributes:
    name, step: as of a `Staircase`.
    inputs: names of the two accumulators.
    slopes: two float32 [channels].
    offset: float32 [channels], half a code included.
    num_levels: the highest code.
  """

  name: str
  inputs: tuple[str, str]
  step: float
  slopes: tuple[np.ndarray, np.ndarray]
  offset: np.ndarray
  num_levels: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
  """logits = (sum over height and width of codes) @ weights * scale + bias.

  Attributes:
    name: "logits", float32 [batch, classes].
    input: name of codes.
    weights: [channels, classes]: int8 codes, or float32 where the layer is not quantized.
    num_bits: that one weight takes when packed; 32 for float.
    scale: float32 [classes]; the step of the codes and 1 / (height * width) are in it.
    bias: float32 [classes].
  """

  name: str
  input: str
  weights: np.ndarray
  num_bits: int
  scale: np.ndarray
  bias: np.ndarray


Node = Conv | MaxPool | Subsample | Staircase | SameStepSum | TableSum | FloatSum | Logits
Codes = Staircase | SameStepSum | TableSum | FloatSum


def num_channels(node: Codes) -> int:
  """Channels of a node that makes codes of accumulators."""
  return len(node.offset if isinstance(node, FloatSum) else node.thresholds)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
  """A network in integers.

  Attributes:
    image: what it is given.
    nodes: in an order in which each comes after its inputs; the last is `Logits`.
    facts: what a user of the file wants to know: model, dataset, class names, bits, version.
  """

  image: Image
  nodes: tuple[Node, ...]
  facts: Mapping[str, Any]
