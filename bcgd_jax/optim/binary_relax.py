"""BinaryRelax: training at weights between the float ones and the quantized ones."""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bcgd_jax.optim.leaves import NO_PARAMS_MESSAGE, Projection, check_number, project


class BinaryRelaxState(NamedTuple):
  """State of `binary_relax`."""

  step_count: jax.Array  # [], int32; updates made so far
  y: optax.Params  # float weights; shapes and dtypes of params
  inner_state: optax.OptState


def relax(params: optax.Params, projection: Projection, eta: jax.typing.ArrayLike) -> optax.Params:
  """Moves float weights part of the way to their quantized values.

    w = (y + eta * Q(y)) / (1 + eta), computed as y + eta / (1 + eta) * (Q(y) - y)

  the minimiser of |w - y|^2 / 2 + eta / 2 * dist(w, levels of Q)^2 for an exact projection Q.

  Args:
    params: tree of the float weights y; projected leaves float32 (or float64).
    projection: as for `blend`; leaves it returns as the same objects stay as they are.
    eta: [], >= 0; 0 gives y, infinity exactly Q(y).
  Returns:
    Tree of the shapes and dtypes of params.
  Raises:
    ValueError: if eta is a negative number or NaN.
    TypeError: if a projected leaf is neither float32 nor float64.
  Source: Yin et al. 2018 (BinaryRelax, arXiv 1801.06313), the relaxed weight; formula as in the
    authors' code.
  """
  _check_eta(eta, schedule=False)
  return _relax_tree(params, project(projection, params), eta=eta)


def binary_relax(
  inner: optax.GradientTransformation, projection: Projection, eta: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
  """Keeps float weights in its state and leaves relaxed ones in params.

  With y the float weights, g the caller's gradient at the params w_t, eta_t = eta(t):

    y_{t+1} = y_t + inner(g, params = y_t)
    w_{t+1} = (y_{t+1} + eta_{t+1} * Q(y_{t+1})) / (1 + eta_{t+1})

  Step 0. `init` takes the float weights as y_0 and cannot change params; relax them once, so that
  the first gradient too is taken at relaxed weights (without it, that one is taken at y_0):

    state = optimizer.init(params)
    params = relax(params, projection, eta_0)

  Run the model with its weight quantizers off while eta is finite. Over layers that quantize what
  they read this is BinaryConnect, because Q of the relaxed weights is Q(y).

  The updates are w_{t+1} - params, so params hold w_{t+1} up to the rounding of that addition,
  which does not accumulate; `relax(binary_relax_float_params(state), projection, eta)` has no
  rounding. Whatever follows in a chain must not change the updates, or params part from y.
  Untouched leaves get the inner optimizer's updates bit for bit. Under `optax.inject_hyperparams`
  pass `static_args=("projection",)`; the eta injected at step t then shapes w_{t+1}.

  Args:
    inner: the optimizer; sees y as its params (so its weight decay acts on y).
    projection: as for `blend`; projected leaves must be float32 (or float64).
    eta: >= 0, a number (infinity: exact projection) or a schedule of the step; not multiplied by
      the learning rate. Schedules and arrays are not checked.
  Returns:
    A transformation with state `BinaryRelaxState`, whose y is a copy: params may be donated.
  Raises:
    ValueError: if eta is a negative number or NaN; in update, if params is missing.
    TypeError: if eta is neither number nor schedule; in update, if a projected leaf is neither
      float32 nor float64.
  Source: Yin et al. 2018 (BinaryRelax, arXiv 1801.06313); order of operations as in the authors'
    code, which keeps y in the model and swaps w in instead.
  """
  _check_eta(eta, schedule=True)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params: optax.Params) -> BinaryRelaxState:
    return BinaryRelaxState(
      step_count=jnp.zeros([], jnp.int32),
      y=jax.tree.map(jnp.copy, params),
      inner_state=inner.init(params),
    )

  def update_fn(
    updates: optax.Updates,
    state: BinaryRelaxState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, BinaryRelaxState]:
    if params is None:
      raise ValueError(NO_PARAMS_MESSAGE)
    count = optax.safe_increment(state.step_count)
    updates, inner_state = inner.update(updates, state.inner_state, state.y, **extra_args)
    y = optax.apply_updates(state.y, updates)
    projected = project(projection, y)
    relaxed = _relax_tree(y, projected, eta=eta(count) if callable(eta) else eta)

    # On untouched leaves y is a mirror of params: two sums of their own could drift apart.
    y_next = jax.tree.map(
      lambda y, q, p, u: optax.apply_updates(p, u) if q is y else y, y, projected, params, updates
    )
    updates = jax.tree.map(
      lambda y, q, p, u, w: u if q is y else w - p, y, projected, params, updates, relaxed
    )
    return updates, BinaryRelaxState(count, y_next, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def binary_relax_float_params(opt_state: optax.OptState) -> optax.Params:
  """Finds the float weights y of `binary_relax` in an optimizer state.

  Args:
    opt_state: state of `binary_relax` or of any transformation around it (chain, masked...).
  Returns:
    Tree of the float weights, in the shapes and dtypes of the params; under `optax.masked` with a
    `MaskedNode` in place of each masked leaf.
  Raises:
    ValueError: if opt_state holds no `BinaryRelaxState`, or several.
  """
  nodes = jax.tree.leaves(opt_state, is_leaf=_is_relax_state)
  found = [node for node in nodes if _is_relax_state(node)]
  if len(found) != 1:
    raise ValueError(f"opt_state must hold one BinaryRelaxState, got {len(found)}")
  return found[0].y


def _is_relax_state(node: Any) -> bool:
  return isinstance(node, BinaryRelaxState)


def _check_eta(eta: Any, *, schedule: bool) -> None:
  check_number("eta", eta, rule="at least 0", holds=lambda x: x >= 0, schedule=schedule)


def _relax_tree(
  y_tree: optax.Params, projected: optax.Params, *, eta: jax.typing.ArrayLike
) -> optax.Params:
  def relax_leaf(y: jax.Array, q: jax.Array) -> jax.Array:
    if q is y:
      return y
    if isinstance(eta, numbers.Real):
      return q if math.isinf(eta) else y + jnp.asarray(eta / (1 + eta), y.dtype) * (q - y)
    rate = jnp.asarray(eta, y.dtype)
    finite = jnp.where(jnp.isinf(rate), 0, rate)  # inf / inf would be NaN
    return jnp.where(jnp.isinf(rate), q, y + finite / (1 + finite) * (q - y))

  return jax.tree.map(relax_leaf, y_tree, projected)
