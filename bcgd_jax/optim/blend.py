"""Blending: any optax optimizer, with its weights drawn towards their quantized values."""

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bcgd_jax.optim.leaves import NO_PARAMS_MESSAGE, Projection, check_number, project


class BlendState(NamedTuple):
  """State of `blend`."""

  step_count: jax.Array  # [], int32; updates made so far
  inner_state: optax.OptState


def blend(
  inner: optax.GradientTransformation, projection: Projection, rho: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
  """Blends float weights with their quantized values before each step of an optimizer.

  On the leaves that the projection Q changes:

    w_b     = w + rho * (Q(w) - w)
    updates = rho * (Q(w) - w) + inner(g, params = w_b)

  so that `optax.apply_updates` yields w_b + inner's update. All else is the inner optimizer's. The
  gradient g is the caller's to take, at Q(w) for coarse gradient descent. rho is a share per step,
  not multiplied by the learning rate: after T steps w has forgotten 1 - (1 - rho)^T of itself.

  Under `optax.inject_hyperparams` pass `static_args=("projection",)`; rho is then traced. A traced
  or scheduled rho is not checked, and its zero adds 0 * (Q(w) - w) instead of leaving Q out.

  Args:
    inner: the optimizer; sees w_b as its params (so its weight decay acts on w_b).
    projection: tree -> tree of the same structure, shapes and dtypes. Leaves returned as the same
      objects are untouched. Others must be float32 (float64 under x64); where Q(w) equals w they
      are not moved either.
    rho: in [0, 1], a number or a schedule of the number of updates made so far. The Python number 0
      gives the inner optimizer's updates bit for bit; Q is then traced for its errors alone.
  Returns:
    A transformation with state `BlendState`; `update` needs params and passes extra arguments on.
  Raises:
    ValueError: if rho is a number outside [0, 1]; in update, if params is missing or the projection
      changes the tree's structure or a shape.
    TypeError: if rho is neither number nor schedule; in update, if a projected leaf is neither
      float32 nor float64 (the error names its path).
  Source: Yin et al. 2019 (BCGD, arXiv 1808.05240), the blending step; order of operations as in the
    authors' code.
  """
  check_number("rho", rho, rule="in [0, 1]", holds=lambda r: 0 <= r <= 1, schedule=True)
  inner = optax.with_extra_args_support(inner)
  never_blends = isinstance(rho, numbers.Real) and rho == 0

  def init_fn(params: optax.Params) -> BlendState:
    return BlendState(step_count=jnp.zeros([], jnp.int32), inner_state=inner.init(params))

  def update_fn(
    updates: optax.Updates,
    state: BlendState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, BlendState]:
    if params is None:
      raise ValueError(NO_PARAMS_MESSAGE)
    if never_blends:
      jax.eval_shape(functools.partial(project, projection), params)
      pulls, blended = None, params
    else:
      rate = rho(state.step_count) if callable(rho) else rho
      pulls, blended = _blend_tree(rate, params, projected=project(projection, params))
    updates, inner_state = inner.update(updates, state.inner_state, blended, **extra_args)
    if pulls is not None:
      updates = jax.tree.map(_add_pull, updates, pulls)
    return updates, BlendState(optax.safe_increment(state.step_count), inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _blend_tree(
  rate: jax.typing.ArrayLike, params: optax.Params, *, projected: optax.Params
) -> tuple[Any, optax.Params]:
  """Returns rate * (Q(w) - w), None in place of untouched leaves, and the blended weights."""
  is_full = isinstance(rate, numbers.Real) and rate == 1

  def compute_pull(w: jax.Array, q: jax.Array) -> jax.Array | None:
    return None if q is w else jnp.asarray(rate, q.dtype) * (q - w)

  def blend_leaf(w: jax.Array, q: jax.Array, pull: jax.Array | None) -> jax.Array:
    if pull is None:
      return w
    # w + (q - w) may miss q by a rounding error, and a full blend has to be the projection.
    return q if is_full else w + pull

  pulls = jax.tree.map(compute_pull, params, projected)
  return pulls, jax.tree.map(blend_leaf, params, projected, pulls)


def _add_pull(update: jax.Array, pull: jax.Array | None) -> jax.Array:
  # In the weight's dtype: a small pull would vanish in a bfloat16 sum.
  return update if pull is None else pull + jnp.asarray(update, pull.dtype)
