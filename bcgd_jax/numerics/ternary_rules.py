"""Magnitudes to (threshold mask, scale) for the four ternary rules of `weights.Ternary`.

Every rule takes `magnitudes` [..., channels] >= 0 and the `axes` that form one group, and returns
the mask of the weights that are kept and the scale, the latter with `axes` kept at size 1.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Axes = tuple[int, ...]
TernaryRule = Callable[[jax.Array, Axes], tuple[jax.Array, jax.Array]]

_TWN_FACTOR = 0.7  # threshold over mean magnitude in ternary weight networks
_TWN_MAX_THRESHOLD = 100.0  # authors' code
_LLOYD_ITERATIONS = 5


def _mean_selected(magnitudes: jax.Array, selected: jax.Array, axes: Axes) -> jax.Array:
  """Mean of the selected magnitudes, the least-squares scale of that mask; 0 if none is."""
  total = jnp.sum(jnp.where(selected, magnitudes, 0.0), axis=axes, keepdims=True)
  count = jnp.sum(selected, axis=axes, keepdims=True, dtype=magnitudes.dtype)
  return total / jnp.maximum(count, 1.0)


def _select_twn(magnitudes: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
  threshold = _TWN_FACTOR * jnp.mean(magnitudes, axis=axes, keepdims=True)
  selected = magnitudes > threshold
  return selected, _mean_selected(magnitudes, selected, axes)


def _select_twn_all(magnitudes: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
  threshold = _TWN_FACTOR * jnp.mean(magnitudes, axis=axes, keepdims=True)
  selected = magnitudes >= jnp.minimum(threshold, _TWN_MAX_THRESHOLD)
  # Divides by all weights of the group, not by the selected ones: the authors' code.
  return selected, jnp.mean(jnp.where(selected, magnitudes, 0.0), axis=axes, keepdims=True)


def _select_lloyd(magnitudes: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
  threshold = _TWN_FACTOR * jnp.mean(magnitudes, axis=axes, keepdims=True)
  for _ in range(_LLOYD_ITERATIONS):
    threshold = _mean_selected(magnitudes, magnitudes > threshold, axes) / 2.0
  selected = magnitudes > threshold
  return selected, _mean_selected(magnitudes, selected, axes)


def _add_compensated(
  a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Sum of two (high, low) pairs: Knuth's two-sum of the highs, the errors go to the low part."""
  total = a[0] + b[0]
  b_part = total - a[0]
  low = ((a[0] - (total - b_part)) + (b[0] - b_part)) + (a[1] + b[1])
  high = total + low
  return high, low - (high - total)


@jax.jit
def sum_prefixes(values: jax.Array) -> jax.Array:
  """Running sums along axis 0, each the float of its exact sum up to half a unit in the last place.

  A plain float32 cumulative sum of millions of weights is far from it. Every pass adds to each
  partial sum the one 2^k places before it: one small loop body, where a recursive scan such as
  `jax.lax.associative_scan` compiles for seconds at this size.
  """
  size = values.shape[0]

  def add_shifted(k: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    high, low = (
      jax.lax.dynamic_slice_in_dim(jnp.concatenate([0.0 * part, part]), size - (1 << k), size)
      for part in sums
    )
    return _add_compensated((high, low), sums)

  num_passes = (size - 1).bit_length()
  # 0 * values and not zeros: inside shard_map the carry must vary over the axes of the values.
  high, low = jax.lax.fori_loop(0, num_passes, add_shifted, (values, 0.0 * values))
  return high + low


def _select_sort(magnitudes: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
  """Exact: t* = argmax_t S_t^2 / t over the t largest magnitudes, scale S_t* / t*."""
  kept_shape = tuple(1 if i in axes else n for i, n in enumerate(magnitudes.shape))
  group_size = math.prod(magnitudes.shape[i] for i in axes)
  # Groups are the trailing (channel) axis or nothing, so this is [group_size, num_groups].
  ordered = jnp.sort(magnitudes.reshape(group_size, -1), axis=0, descending=True)
  sums = sum_prefixes(ordered)
  counts = jnp.arange(1, group_size + 1, dtype=magnitudes.dtype)[:, None]
  # S * (S / t) and not S^2 / t: the square of a large sum may overflow.
  best = jnp.argmax(sums * (sums / counts), axis=0, keepdims=True)
  threshold = jnp.take_along_axis(ordered, best, axis=0).reshape(kept_shape)
  # Equal magnitudes are all kept: the objective is convex in t along a run of ties, so that its
  # maximum lies at an end of the run; rounding may have put `best` inside one.
  selected = (magnitudes >= threshold) & (magnitudes > 0.0)
  num_selected = jnp.sum(selected, axis=axes, dtype=jnp.int32).reshape(1, -1)
  last = jnp.maximum(num_selected - 1, 0)
  total = jnp.take_along_axis(sums, last, axis=0)
  scale = total / (last + 1).astype(magnitudes.dtype)
  return selected, scale.reshape(kept_shape)


TERNARY_RULES: Mapping[str, TernaryRule] = {
  "lloyd": _select_lloyd,
  "twn": _select_twn,
  "twn_all": _select_twn_all,
  "sort": _select_sort,
}
