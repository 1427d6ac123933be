"""A step that computes in bfloat16 keeps its weights, statistics and optimizer in float32."""

import functools

import jax
import jax.numpy as jnp

from bcgd_jax.training.recipe import make_phases
from bcgd_jax.training.settings import parse_settings
from bcgd_jax.training.state import create_state, init_variables
from bcgd_jax.training.steps import train_step
from configs import default

IMAGE_SHAPE = (32, 32, 3)


def test_resnet18_in_bfloat16_with_accumulation_and_smoothing():
  config = default.get_config()
  config.model.name = "imagenet_resnet18"
  config.model.dtype = "bfloat16"
  config.phases = ("quantized",)
  config.quantized.accumulate_steps = 2
  config.quantized.label_smoothing = 0.1
  (phase,) = make_phases(
    parse_settings(config.to_dict()), num_classes=10, image_shape=IMAGE_SHAPE, num_examples=1000
  )
  model = phase.host_model

  def create(key):
    return create_state(init_variables(model, IMAGE_SHAPE, key), phase.options.tx)

  def step(state, batch):
    return jax.vmap(
      functools.partial(train_step, options=phase.options),
      in_axes=(None, None, 0),
      out_axes=None,
      axis_name=phase.options.axis_name,
    )(state, None, batch)

  before = jax.eval_shape(create, jax.random.key(0))
  batch = {
    "image": jax.ShapeDtypeStruct((1, 4, *IMAGE_SHAPE), jnp.uint8),
    "label": jax.ShapeDtypeStruct((1, 4), jnp.int32),
  }
  # traced, not compiled: bfloat16 is emulated on CPUs
  jaxpr, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(before, batch)

  def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

  assert types(after) == types(before)
  floats = [x.dtype for x in jax.tree.leaves((after, metrics)) if x.dtype != jnp.int32]
  assert set(floats) == {jnp.dtype(jnp.float32)}
  convolutions = [
    line for line in str(jaxpr).splitlines() if "= conv_general_dilated[" in line and ":" in line
  ]
  assert len(convolutions) >= 20
  assert all(":bf16[" in line for line in convolutions)
