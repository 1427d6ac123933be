"""Blended coarse gradient descent as the authors' code does it: SGD, blending and alpha's rules."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bcgd_jax.optim.blend import blend
from bcgd_jax.optim.leaves import Projection, check_number, get_leaf_name


def last_key_is_alpha(path: str) -> bool:
  """Tells whether a parameter path ends in the key "alpha", as in "block1/relu/alpha"."""
  return path.rsplit("/", 1)[-1] == "alpha"


def last_key_is_kernel(path: str) -> bool:
  """Tells whether a parameter path ends in the key "kernel", as in "block1/conv/kernel"."""
  return path.rsplit("/", 1)[-1] == "kernel"


def bcgd(
  learning_rate: optax.ScalarOrSchedule,
  projection: Projection,
  *,
  rho: optax.ScalarOrSchedule = 1e-5,
  momentum: float | jax.Array = 0.95,
  weight_decay: float | jax.Array = 1e-4,
  is_decayed: Callable[[str], bool] | None = None,
  is_alpha: Callable[[str], bool] = last_key_is_alpha,
  alpha_rate: float | jax.Array = 0.01,
  alpha_clip: float | jax.Array = 1.0,
  alpha_range: tuple[float, float] = (1e-3, 5.0),
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum on blended weights, and the scaled, clipped gradient of alpha.

  One update, g being the coarse gradient at Q(w):

    w_b = w + rho * (Q(w) - w)       on projected leaves
    w_b = clip(w, *alpha_range)      on alpha leaves
    w_b = w                          elsewhere
    g   = clip(alpha_rate * g, -alpha_clip, alpha_clip)    on alpha leaves only
    g   = g + weight_decay * w_b                           on decayed leaves
    m   = momentum * m + g
    w   = w_b - learning_rate * m

  By default every parameter is decayed: biases, batch norm and alpha too. An alpha may leave its
  range by one step; layers clamp it when they read it, the next update starts from the clamped
  value.

  Under `optax.inject_hyperparams` pass `static_args=("projection", "is_alpha")`, and "is_decayed"
  where it is given.

  Args:
    learning_rate: >= 0, a number or a schedule of the number of updates made so far.
    projection: as for `blend`; projected leaves must be float32 (or float64).
    rho: in [0, 1], a number or a schedule; 0 is BinaryConnect.
    momentum: in [0, 1); no dampening, not Nesterov's.
    weight_decay: >= 0; acts on w_b, so it is scaled by the learning rate.
    is_decayed: tells from a path "outer/inner/name" whether weight decay acts on the leaf; None
      is all (authors' code), `last_key_is_kernel` spares biases, batch norm and alpha.
    is_alpha: tells from a path "outer/inner/name" whether the leaf is an activation step. Those
      leaves must be float32 (or float64) too. It may hold for no leaf.
    alpha_rate: >= 0; alpha's learning rate relative to the rest.
    alpha_clip: > 0; bound on alpha's scaled gradient, in its own units.
    alpha_range: (low, high) with 0 < low < high, in units of the activations.
  Returns:
    A transformation whose `update` needs params.
  Raises:
    ValueError, TypeError: if an argument breaks its rule above; in update as `blend`.
  Source: authors' code, order of operations and defaults. Differs from it: g of a shared alpha is
    clipped once, after the sum over its uses (and the mean over devices, if the caller takes one);
    the original clips for each use. The blend is applied to the weights as they enter the update,
    where the original swaps Q(w) in and out of the model.
  """
  low, high = _check_alpha_range(alpha_range)
  _check_hyperparameters(
    learning_rate=learning_rate,
    momentum=momentum,
    weight_decay=weight_decay,
    alpha_rate=alpha_rate,
    alpha_clip=alpha_clip,
  )

  def rescale_gradient(path: tuple[Any, ...], g: jax.Array) -> jax.Array:
    if not is_alpha(get_leaf_name(path)):
      return g
    bound = jnp.asarray(alpha_clip, g.dtype)
    return jnp.clip(jnp.asarray(alpha_rate, g.dtype) * g, -bound, bound)

  def clamp_alpha(path: tuple[Any, ...], w: jax.Array) -> jax.Array:
    return jnp.clip(w, low, high) if is_alpha(get_leaf_name(path)) else w

  descent = optax.chain(
    optax.stateless(lambda g, _: jax.tree_util.tree_map_with_path(rescale_gradient, g)),
    optax.add_decayed_weights(weight_decay, mask=is_decayed and _make_mask(is_decayed)),
    optax.sgd(learning_rate, momentum=momentum),
  )
  # Clamping is projecting: a full blend hands the clamped alpha to the decay and starts from it.
  clamped = blend(descent, lambda p: jax.tree_util.tree_map_with_path(clamp_alpha, p), 1.0)
  return blend(clamped, projection, rho)


def _make_mask(holds: Callable[[str], bool]) -> Callable[[optax.Params], Any]:
  """A function: tree -> tree of bools, whether `holds` is true of each leaf's path."""
  return functools.partial(
    jax.tree_util.tree_map_with_path, lambda path, _: holds(get_leaf_name(path))
  )


def _check_hyperparameters(*, learning_rate: Any, momentum: Any, **others: Any) -> None:
  check_number(
    "learning_rate", learning_rate, rule="at least 0", holds=lambda x: x >= 0, schedule=True
  )
  check_number("momentum", momentum, rule="in [0, 1)", holds=lambda x: 0 <= x < 1)
  for name in ("weight_decay", "alpha_rate"):
    check_number(name, others[name], rule="at least 0", holds=lambda x: x >= 0)
  check_number("alpha_clip", others["alpha_clip"], rule="above 0", holds=lambda x: x > 0)


def _check_alpha_range(alpha_range: tuple[float, float]) -> tuple[float, float]:
  if len(alpha_range) != 2 or not 0 < alpha_range[0] < alpha_range[1]:
    raise ValueError(f"alpha_range must be (low, high) with 0 < low < high, got {alpha_range}")
  return alpha_range
