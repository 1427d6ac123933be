"""Convolution and pooling that stay fast where XLA's CPU backend is slow, chosen by shape only.

The code is the same on every backend: nothing here asks where it runs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_Pads = Sequence[tuple[int, int]]


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | _Pads,
  *,
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  precision: Any = None,
) -> jax.Array:
  """`jax.lax.conv_general_dilated`, as a matrix product of patches where the map is small.

  Meant for the `conv_general_dilated` field of `flax.linen.Conv`. A two-dimensional, undilated,
  ungrouped convolution in the layout NHWC, HWIO, NHWC becomes one matrix product if its kernel is
  larger than its input along an axis or if its output is 2x2 or smaller; anything else is passed on
  unchanged. Both ways compute the same sums, in another order.

  The rule is where XLA's CPU convolution falls off a cliff (forward or weight gradient, two cores,
  jax 0.10: 3x3 on 2x2x512 maps 60 times, 3x3 on 1x1 maps 40 times, 5x5 on 4x4 maps 9 times, weight
  gradient of 3x3/2 on 4x4 maps 6 times); on larger maps the convolution is the faster way.

  Args:
    lhs: [batch, height, width, in_features].
    rhs: [kernel_height, kernel_width, in_features, out_features], of lhs's dtype.
    window_strides: two ints; the remaining arguments as `jax.lax.conv_general_dilated` has them.
  Returns:
    [batch, out_height, out_width, out_features], of lhs's dtype.
  Source: our choice.
  """
  if lhs.ndim == 4 and _is_plain(
    lhs, rhs, (lhs_dilation, rhs_dilation), dimension_numbers, feature_group_count
  ):
    sizes, kernel, strides = lhs.shape[1:3], rhs.shape[:2], tuple(window_strides)
    pads = padding
    if isinstance(pads, str):
      pads = jax.lax.padtype_to_pads(sizes, kernel, strides, pads)
    outputs = [
      (n + lo + hi - k) // s + 1
      for n, k, s, (lo, hi) in zip(sizes, kernel, strides, pads, strict=True)
    ]
    larger_kernel = any(k > n for n, k in zip(sizes, kernel, strict=True))
    if min(outputs) >= 1 and (larger_kernel or max(outputs) <= 2):
      return _multiply_patches(lhs, rhs, strides, pads, outputs=outputs, precision=precision)
  return jax.lax.conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    dimension_numbers=dimension_numbers,
    feature_group_count=feature_group_count,
    precision=precision,
  )


def _is_plain(
  lhs: jax.Array,
  rhs: jax.Array,
  dilations: Sequence[Sequence[int] | None],
  dimension_numbers: Any,
  feature_group_count: int,
) -> bool:
  channels_last = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
  numbers = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  undilated = all(dilation is None or set(dilation) == {1} for dilation in dilations)
  return numbers == channels_last and undilated and feature_group_count == 1


def _multiply_patches(
  lhs: jax.Array,
  rhs: jax.Array,
  strides: Sequence[int],
  pads: _Pads,
  *,
  outputs: Sequence[int],
  precision: Any,
) -> jax.Array:
  rows, columns = (
    _find_used_taps(lhs.shape[1 + axis], rhs.shape[axis], strides[axis], pads[axis], outputs[axis])
    for axis in range(2)
  )
  padded = jnp.pad(lhs, ((0, 0), *pads, (0, 0)))
  patches = []
  for row in rows:
    slab = _take_strided(padded, 1, row, strides[0], outputs[0])
    patches += [_take_strided(slab, 2, column, strides[1], outputs[1]) for column in columns]
  kernel = rhs[rows.start : rows.stop, columns.start : columns.stop]
  return jax.lax.dot_general(
    jnp.concatenate(patches, axis=-1),  # [B, out_height, out_width, taps * in_features]
    kernel.reshape(-1, rhs.shape[-1]),  # [taps * in_features, out_features]
    (((3,), (0,)), ((), ())),
    precision=precision,
  )


def _find_used_taps(size: int, kernel: int, stride: int, pads: tuple[int, int], n: int) -> range:
  """Kernel positions along one axis that meet the map at all: 1 of 3 on a 1x1 map.

  The others only ever multiply padding: leaving them out changes neither value nor gradient (zero).
  """
  used = [k for k in range(kernel) if any(0 <= o * stride + k - pads[0] < size for o in range(n))]
  return range(used[0], used[-1] + 1) if used else range(1)


def _take_strided(x: jax.Array, axis: int, start: int, stride: int, count: int) -> jax.Array:
  return jax.lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def max_pool(x: jax.Array, *, window: int, stride: int, padding: int = 0) -> jax.Array:
  """Maximum over square windows, as `flax.linen.max_pool`; rows that fill no window are dropped.

  Written as elementwise maxima of strided slices, first over rows, then over columns: on XLA's CPU
  backend the gradient is 5 to 8 times (2x2/2) and 2.5 to 3 times (3x3/2) faster than that of the
  window reduction behind `flax.linen.max_pool`; the value of 3x3/2 alone takes twice as long.

  Backward: where two values tie, each of the two gets half. So the whole gradient of a window
  always arrives (the sum over the window is kept), and since tied quantized activations lie on the
  same step, their alpha receives what it would receive if one of them had won. PyTorch and
  `flax.linen.max_pool` give all to one element; quantized activations tie often.

  Args:
    x: [batch, height, width, channels], floating.
    window: side of the window; stride: its step; padding: rows and columns of minus infinity put
      at each of the four sides.
  Returns:
    [batch, (height + 2 padding - window) // stride + 1, likewise for width, channels], x's dtype.
  Raises:
    ValueError: if the window does not fit the padded map.
  Source: our choice (backward at ties).
  """
  if min(x.shape[1:3]) + 2 * padding < window:
    raise ValueError(
      f"window must fit the padded map, got window {window} for a map of "
      f"{x.shape[1]}x{x.shape[2]} with padding {padding}"
    )
  if padding:
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, sides, constant_values=-jnp.inf)
  for axis in (1, 2):
    count = (x.shape[axis] - window) // stride + 1
    maximum = _take_strided(x, axis, 0, stride, count)
    for start in range(1, window):
      maximum = jnp.maximum(maximum, _take_strided(x, axis, start, stride, count))
    x = maximum
  return x


def global_average_pool(x: jax.Array) -> jax.Array:
  """Mean over height and width: [batch, height, width, channels] -> [batch, channels].

  Summed and returned in float32 (float64 for float64), also for a bfloat16 x.
  """
  return jnp.mean(x.astype(wide_dtype(x.dtype)), axis=(1, 2))


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
  """float32, or float64 for float64: the dtype of statistics, sums and thresholds.

  Not jnp.promote_types(dtype, float32): strict promotion, a setting of the caller's, refuses that.
  """
  return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)
