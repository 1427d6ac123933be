"""The network as it was trained, its quantization simulated in float32, as serialized StableHLO."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from bcgd_jax.training.steps import normalize

PyTree = Any

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(
  model: nn.Module,
  variables: PyTree,
  *,
  image_shape: tuple[int, int, int],
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> bytes:
  """What `jax.export.deserialize` reads: uint8 images [batch, height, width, channels] -> logits.

  The batch may have any size; parameters and normalisation are in the file. For machines where
  float arithmetic is the fast one, or that compile StableHLO.

  Args:
    model: called as `model(x, train)`.
    variables: its parameters and statistics.
    image_shape: (height, width, channels).
    mean, std: of pixels in [0, 1], as in training.
  """

  def predict(images: jax.Array) -> jax.Array:
    logits = model.apply(variables, normalize(images, mean, std), train=False)
    return jnp.asarray(logits)

  (batch,) = export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
  exported = export.export(jax.jit(predict), platforms=PLATFORMS)(images)
  return bytes(exported.serialize())
