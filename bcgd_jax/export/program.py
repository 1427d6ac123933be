"""Makes the integer program of a network and its variables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from bcgd_jax.errors import UsageError
from bcgd_jax.export.builder import ProgramBuilder
from bcgd_jax.export.integer import MAX_PIXEL, Codes, Image, Program
from bcgd_jax.export.networks import describe_network
from bcgd_jax.numerics import WeightQuantizer


def make_program(
  model: nn.Module,
  variables: Mapping[str, Any],
  *,
  image_shape: tuple[int, int, int],
  mean: Sequence[float],
  std: Sequence[float],
  quantizers: Mapping[str, WeightQuantizer],
  facts: Mapping[str, Any],
) -> Program:
  """The program that computes what `model.apply(variables, (x / 255 - mean) / std)` does.

  Thresholds are computed in float64 from the float32 parameters. The network's own evaluation, in
  float32, may take the other side of a threshold where it lies within rounding of it.

  Args:
    model: one of this project's networks, whose activations are quantized.
    variables: "params" and "batch_stats".
    image_shape: (height, width, channels).
    mean: of pixels in [0, 1]: one value k / 255 for an integer k.
    std: one value.
    quantizers: of the kernels, by parameter path; layers without one are rounded to 16 bits (fewer
      where a 32-bit accumulator asks for it), the classifier stays float.
    facts: see `Program`; added are "weight_scales", what one weight code of a layer stands for,
      [1] or [out]; "activation_steps", what one code of each node does; "largest_threshold_shift".
  Raises:
    UsageError: if the network is not one of ours, its activations are float, images are not
      normalised by an integer, or its parameters cannot be folded.
  """
  bits = getattr(getattr(model, "quantization", None), "activation_bits", None)
  if bits is None:
    raise UsageError(
      "activations must be quantized to 1 to 8 bits for a network to become integers, but are float"
    )
  image = _make_image(image_shape, mean=mean, std=std)
  builder = ProgramBuilder(image, variables, quantizers=quantizers, num_levels=2**bits - 1)
  describe_network(model, builder)
  nodes = tuple(builder.nodes)
  return Program(
    image=image,
    nodes=nodes,
    facts={
      **facts,
      "weight_scales": builder.weight_scales,
      "activation_steps": {node.name: node.step for node in nodes if isinstance(node, Codes)},
      "largest_threshold_shift": builder.largest_shift,
    },
  )


def _make_image(
  shape: tuple[int, int, int], *, mean: Sequence[float], std: Sequence[float]
) -> Image:
  if len(mean) != 1 or len(std) != 1:
    raise UsageError(
      "data.mean and data.std must be one value each for the first layer to see integers, got "
      f"{tuple(mean)} and {tuple(std)}: train with one mean k / 255 and one std"
    )
  zero_point = round(mean[0] * MAX_PIXEL)
  if not math.isclose(mean[0] * MAX_PIXEL, zero_point, abs_tol=1e-4):
    raise UsageError(
      f"data.mean must be k / 255 for an integer k, so that pixels become integers, got {mean[0]}, "
      f"which is {mean[0] * MAX_PIXEL:.4f} / 255"
    )
  if not 0 <= zero_point <= MAX_PIXEL:
    raise UsageError(f"data.mean must be in [0, 1], got {mean[0]}")
  return Image(shape=shape, zero_point=zero_point, step=1.0 / (MAX_PIXEL * std[0]))
