"""What the transformations of this package share: projected leaves and argument checks."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Projection = Callable[[optax.Params], optax.Params]

# The text of optax's own error, which optax keeps private; a test compares the two.
NO_PARAMS_MESSAGE = (
  "You are using a transformation that requires the current value of parameters, but you are not "
  "passing `params` when calling `update`."
)


def get_leaf_name(path: tuple[Any, ...]) -> str:
  """Returns a key path as "outer/inner/name", the form in which callers name parameters."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def project(projection: Projection, params: optax.Params) -> optax.Params:
  """Applies a projection and checks what it returns.

  Args:
    projection: maps a tree to one of the same structure, shapes and dtypes. A leaf that comes back
      as the same object counts as untouched, and may have any dtype.
    params: tree of arrays.
  Returns:
    The projected tree; untouched leaves are the objects found in params.
  Raises:
    TypeError: if a projected leaf is neither float32 nor float64 (a step of rho = 1e-5 towards
      Q(w) is lost in the 8 bits of a bfloat16 weight), or changes its dtype.
    ValueError: if the structure or a shape changes.
  """
  projected = projection(params)
  structure: Any = jax.tree.structure(params)
  got = jax.tree.structure(projected)
  if got != structure:
    raise ValueError(f"projection must keep the tree structure {structure}, got {got}")
  named_leaves = jax.tree_util.tree_leaves_with_path(params)
  for (path, leaf), image in zip(named_leaves, jax.tree.leaves(projected), strict=True):
    if image is not leaf:
      _check_leaf(get_leaf_name(path), leaf, image=image)
  return projected


def _check_leaf(name: str, leaf: Any, *, image: Any) -> None:
  dtype = jnp.result_type(leaf)
  if dtype not in (jnp.float32, jnp.float64):
    raise TypeError(
      f"projected leaves must be float32 or float64, got {dtype} at {name!r}; keep the float "
      "weights in float32, and let the projection return leaves that it does not change as the "
      "same objects"
    )
  if jnp.result_type(image) != dtype:
    raise TypeError(f"projection must keep dtype {dtype} at {name!r}, got {jnp.result_type(image)}")
  if jnp.shape(image) != jnp.shape(leaf):
    raise ValueError(
      f"projection must keep shape {jnp.shape(leaf)} at {name!r}, got {jnp.shape(image)}"
    )


def check_number(
  name: str, value: Any, *, rule: str, holds: Callable[[float], bool], schedule: bool = False
) -> None:
  """Checks a hyperparameter where its value is known before tracing.

  Args:
    name: of the argument, for the error.
    value: Python or NumPy scalar; arrays pass unchecked, for under `optax.inject_hyperparams` they
      are traced.
    rule: the rule in words, "in [0, 1]".
    holds: the rule as a predicate; false for NaN.
    schedule: whether a function of the step is allowed; it passes unchecked.
  Raises:
    TypeError: if value is not a number, an array or (with schedule) a callable.
    ValueError: if the rule does not hold.
  """
  if isinstance(value, jax.Array | np.ndarray) or (schedule and callable(value)):
    return
  if not isinstance(value, numbers.Real):
    kinds = "a number or a schedule" if schedule else "a number"
    raise TypeError(f"{name} must be {kinds}, got {value!r}")
  if not holds(float(value)):
    raise ValueError(f"{name} must be {rule}, got {value}")
