"""What the training network computes: the codes of its activations and its logits, in float32."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.layers import QuantReLU
from bcgd_jax.numerics import ALPHA_RANGE

PyTree = Any


def make_reference(
  model: nn.Module, variables: PyTree
) -> Callable[[jax.Array], tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]]:
  """A compiled function of normalised images.

  Args:
    model: called as `model(x, train)`.
    variables: its parameters and statistics.
  Returns:
    x -> (values, codes, logits). Both dicts have an entry for each use of a quantized `QuantReLU`,
    by its path, the n-th use of one that is shared as path_n: float32 x / alpha, what the staircase
    is given in units of its step, and uint8 codes.
  """

  def evaluate(variables: PyTree, x: jax.Array) -> tuple[dict, dict, jax.Array]:
    values: dict[str, jax.Array] = {}
    codes: dict[str, jax.Array] = {}
    uses: dict[str, int] = {}

    def record(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
      y = next_fn(*args, **kwargs)
      module = context.module
      if _is_staircase(module) and context.method_name == "__call__":
        alpha = jnp.clip(module.get_variable("params", "alpha"), *ALPHA_RANGE)
        path = "/".join(module.path)
        uses[path] = uses.get(path, 0) + 1
        name = path if uses[path] == 1 else f"{path}_{uses[path]}"
        values[name] = args[0] / alpha
        codes[name] = jnp.rint(y / alpha).astype(jnp.uint8)
      return y

    with nn.intercept_methods(record):
      logits = model.apply(variables, x, train=False)
    return values, codes, jnp.asarray(logits)

  compiled = jax.jit(evaluate)
  return lambda x: compiled(variables, x)


def _is_staircase(module: nn.Module) -> bool:
  return isinstance(module, QuantReLU) and module.num_bits is not None


def find_margins(values: np.ndarray, codes: np.ndarray, *, num_levels: int) -> np.ndarray:
  """How far each value lies outside the interval of a code, in codes; 0 inside.

  Code c stands for values in (c - 1, c], 0 for all up to 0, num_levels for all above the last
  threshold.

  Args:
    values: float32, activations in units of their step.
    codes: uint8, of the same shape.
    num_levels: the highest code.
  """
  code = codes.astype(np.float64)
  above = np.where(codes < num_levels, values - code, 0.0)
  below = np.where(codes > 0, code - 1.0 - values, 0.0)
  margins: np.ndarray = np.maximum(np.maximum(above, below), 0.0)
  return margins
