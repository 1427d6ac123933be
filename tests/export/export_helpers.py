"""Small networks with random weights and unkind batch norms, and what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bcgd_jax.export.integer import Conv, Logits
from bcgd_jax.export.program import make_program
from bcgd_jax.layers import QuantReLU, weight_quantizers
from bcgd_jax.models import create_model
from bcgd_jax.numerics import ALPHA_RANGE

MEAN, STD = 73 / 255, 0.353


def make_variables(model, shape, *, seed):
  """Variables with gammas that are negative, zero and tiny, and any alphas."""
  rng = np.random.default_rng(seed)
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
  made = {}
  for path, value in flatten_dict(variables).items():
    if path[-1] == "kernel":
      fan_in = np.prod(value.shape[:-1])
      value = rng.normal(size=value.shape) / np.sqrt(fan_in)
    elif path[-1] == "alpha":
      value = rng.uniform(0.2, 0.6)
    elif path[-1] == "var":
      value = rng.uniform(0.2, 2.0, value.shape)
    elif path[-1] == "mean":
      value = 0.3 * rng.normal(size=value.shape)
    elif path[-1] == "bias":
      value = 0.4 * rng.normal(size=value.shape)
    elif path[-1] == "scale":
      value = rng.normal(size=value.shape)
      value[:3] = 0.0, 1e-20, -1e-6
    made[path] = jnp.asarray(value, jnp.float32)
  return unflatten_dict(made)


def make_case(name, shape, quantization, *, residual_alpha="own", seed=0):
  """(model, variables, program) of a random network."""
  model = create_model(
    name, num_classes=7, quantization=quantization, residual_alpha=residual_alpha
  )
  variables = make_variables(model, shape, seed=seed)
  quantizers = weight_quantizers(model, jnp.zeros((1, *shape)), rngs=jax.random.key(0), train=False)
  program = make_program(
    model,
    variables,
    image_shape=shape,
    mean=(MEAN,),
    std=(STD,),
    quantizers=quantizers,
    facts={"model": name},
  )
  return model, variables, program


def make_images(shape, *, count, seed=0):
  images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
  images[0] = 0
  images[-1] = 255
  return images


def code_names(program):
  return [node.name for node in program.nodes if not isinstance(node, Conv | Logits)]


def network_codes(model, variables, images):
  """Codes by name, as the program names them, and logits of the network itself, in float64."""
  params = flatten_dict(variables["params"], sep="/")
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), variables)
    x = (images.astype(np.float64) - 73) / (255 * STD)
    logits, state = model.clone(dtype=jnp.float64).apply(
      wide,
      x,
      train=False,
      capture_intermediates=lambda module, _: isinstance(module, QuantReLU),
      mutable=["intermediates"],
    )
  codes = {}
  for path, uses in flatten_dict(state["intermediates"], sep="/").items():
    base = path.removesuffix("/__call__")
    alpha = float(np.clip(params[f"{base}/alpha"], *ALPHA_RANGE))
    for index, y in enumerate(uses, start=1):
      name = base if index == 1 else f"{base}_{index}"
      codes[name] = np.rint(np.asarray(y) / alpha).astype(np.int64)
  return codes, np.asarray(logits)
