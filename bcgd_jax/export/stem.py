"""A first convolution with stride 2, as one with stride 1 on blocks of 2 x 2 pixels."""

import dataclasses

import numpy as np

from bcgd_jax.export.graph import GraphWriter
from bcgd_jax.export.integer import Conv


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
  """What QLinearConv is told beside its scales.

  Attributes:
    x: name of the input, [batch, height, width, in].
    weights: name of the weights, [out, in, height, width].
    kernel_shape, strides, pads: as of ONNX's Conv.
  """

  x: str
  weights: str
  kernel_shape: list[int]
  strides: list[int]
  pads: list[int]


def fold_blocks(
  graph: GraphWriter, conv: Conv, convolution: Convolution, image_shape: tuple[int, int, int]
) -> Convolution:
  """The same sums, with the four pixels of a block as channels.

  On few channels ONNX Runtime's kernels spend most of their time on gathering windows; a 7 x 7
  convolution of 3 channels takes 0.7 of the time as one of 4 x 4 and 12 channels. The added weights
  are 0. Weights are rearranged as the file is loaded, images on each run.

  Args:
    graph: where the rearrangement is written.
    conv: with stride 2.
    convolution: of the image, as it would be written otherwise.
    image_shape: (height, width, channels), height and width even.
  """
  height, width, channels = image_shape
  rows, columns, _, out = conv.weights.shape
  before = conv.padding % 2  # zero weights, so that a block begins where the padding does
  blocks = [(before + size + 1) // 2 for size in (rows, columns)]
  after = [2 * count - before - size for count, size in zip(blocks, (rows, columns), strict=True)]

  pads = np.array([0, 0, before, before, 0, 0, *after], np.int64)
  weights = graph.apply(
    "Pad", convolution.weights, graph.constant(pads), graph.constant(np.int8(0))
  )
  weights = graph.reshape(weights, (out, channels, blocks[0], 2, blocks[1], 2))
  weights = graph.apply("Transpose", weights, perm=[0, 3, 5, 1, 2, 4])
  weights = graph.reshape(weights, (out, 4 * channels, *blocks))

  pairs = graph.reshape(convolution.x, (-1, height, width // 2, 2 * channels))
  halves = [graph.slice(pairs, axis=1, start=row, end=2**31 - 1, step=2) for row in (0, 1)]
  start = (conv.padding + before) // 2
  ends = [
    (side + 2 * conv.padding - size) // 2 + count - start - side // 2
    for side, size, count in zip((height, width), (rows, columns), blocks, strict=True)
  ]
  return Convolution(
    x=graph.concat(halves, axis=3),
    weights=weights,
    kernel_shape=blocks,
    strides=[1, 1],
    pads=[start, start, *ends],
  )
