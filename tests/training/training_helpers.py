"""A small quantized training problem that every mapping and process count must solve alike."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.layers import QuantConv, QuantDense, QuantReLU, weight_quantizers
from bcgd_jax.numerics import Binary, make_projection
from bcgd_jax.optim import bcgd
from bcgd_jax.training.parallel import AXIS_NAME
from bcgd_jax.training.state import TrainState, create_state
from bcgd_jax.training.steps import StepOptions, cross_entropy

PyTree = Any
BATCH, IMAGE_SHAPE, NUM_CLASSES = 16, (8, 8, 1), 10


def make_batches(dtype: Any, num_steps: int) -> list[dict[str, np.ndarray]]:
  """Normalised images and labels of `num_steps` global batches."""
  rng = np.random.default_rng(0)
  return [
    {
      "image": rng.normal(size=(BATCH, *IMAGE_SHAPE)).astype(dtype),
      "label": rng.integers(0, NUM_CLASSES, BATCH).astype(np.int32),
    }
    for _ in range(num_steps)
  ]


class TinyNet(nn.Module):
  """Two quantized convolutions with batch norm and a quantized classifier.

  So small that rounding in float32 does not carry one of its few thousand activations over a
  threshold within three steps, which it does in a ResNet.
  """

  axis_name: str | None
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    types = {"dtype": self.dtype, "param_dtype": self.dtype}
    for index in range(2):
      conv = QuantConv(8, (3, 3), strides=2, quantizer=Binary(), name=f"conv{index}", **types)
      norm = nn.BatchNorm(
        use_running_average=not train,
        axis_name=self.axis_name,
        force_float32_reductions=self.dtype == np.float32,
        name=f"norm{index}",
        **types,
      )
      x = QuantReLU(num_bits=4, name=f"relu{index}")(norm(conv(x)))
    x = jnp.mean(x, axis=(1, 2))
    return QuantDense(NUM_CLASSES, quantizer=Binary(), name="dense", **types)(x)


def make_options(
  dtype: Any, *, axis_name: str | None, norm_axis: str | None = AXIS_NAME, **changes: Any
) -> StepOptions:
  """1-bit weights and 4-bit activations, rho large enough to matter in few steps.

  norm_axis=None leaves batch statistics to each replica.
  """
  model = TinyNet(axis_name=axis_name and norm_axis, dtype=dtype)
  example = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), dtype)
  quantizers = weight_quantizers(model, example, rngs=jax.random.key(0), train=False)
  return StepOptions(
    model=model,
    eval_model=model,
    tx=bcgd(0.05, make_projection(quantizers), rho=1e-2),
    loss_fn=cross_entropy(),
    mean=(0.0,),
    std=(1.0,),
    axis_name=axis_name,
    seed_key=jax.random.key(1),
    **changes,
  )


def initial_state(options: StepOptions, dtype: Any, **changes: Any) -> TrainState:
  """The same initial state whatever the mapping, with every float leaf in `dtype`."""
  model = options.model.clone(axis_name=None)
  x = jnp.zeros((1, *IMAGE_SHAPE), dtype)
  variables = jax.jit(lambda: model.init(jax.random.key(2), x, train=False))()
  # alpha and the running statistics start in float32 whatever the model's dtype
  variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
  return create_state(variables, options.tx, **changes)


def make_distance(options: StepOptions) -> Any:
  """A function (state, images) -> how near a value comes to a threshold or a weight to zero."""
  model = options.model.clone(axis_name=None)

  @jax.jit
  def distance(state: TrainState, images: jax.Array) -> jax.Array:
    nearest: list[jax.Array] = []

    def watch(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
      if isinstance(context.module, QuantReLU) and context.method_name == "__call__":
        alpha = context.module.get_variable("params", "alpha")
        thresholds = jnp.arange(16, dtype=alpha.dtype) * alpha
        nearest.append(jnp.min(jnp.abs(jnp.subtract.outer(args[0], thresholds))))
      return next_fn(*args, **kwargs)

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    with nn.intercept_methods(watch):
      model.apply(variables, images, train=True, mutable=["batch_stats"])
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    kernels = [leaf for path, leaf in leaves if "kernel" in jax.tree_util.keystr(path)]
    return jnp.min(jnp.stack([*nearest, *(jnp.min(jnp.abs(kernel)) for kernel in kernels)]))

  return distance
