"""The quantized ReLU: a ceil staircase with coarse derivatives in its input and its step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Steps that minimise the squared error of rounding half-Gaussian data to the nearest of
# 0, alpha, ..., (2^b - 1) alpha. 1, 2 and 4 bits: the authors' code; 3 and 5 to 8 bits: the same
# optimum, computed here (our choice).
DEFAULT_ALPHA: Mapping[int, float] = {
  1: 1.2221,
  2: 0.6511,
  3: 0.353,
  4: 0.1946,
  5: 0.1055,
  6: 0.05726,
  7: 0.03087,
  8: 0.01653,
}

# The interval alpha is clamped to before use: the authors' code.
ALPHA_RANGE = (1e-3, 5.0)

InputEstimator = Callable[[jax.Array, jax.Array, int], jax.Array]
AlphaProxy = Callable[[jax.Array, int], jax.Array]

# Estimators and proxies see the code r in 0..L+1 (L+1: beyond the top threshold) and L.
_ESTIMATORS: Mapping[str, AlphaProxy] = {
  "clipped": lambda r, top: (r >= 1) & (r <= top),
  "relu": lambda r, top: r >= 1,
  "identity": lambda r, top: jnp.ones_like(r),
}
# Proxies that are constant where 0 < x <= L alpha, by that constant; beyond, all three are L.
_CONSTANT_PROXIES: Mapping[str, Callable[[int], float]] = {
  "three_valued": lambda top: (top + 1) / 2,
  "two_valued": lambda top: 0.0,
}
_PROXIES: Mapping[str, AlphaProxy] = {
  "exact": lambda r, top: jnp.minimum(r, float(top)),
}


def _lift_together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Casts each array to vary over every shard_map axis that any of them varies over.

  Inside `jax.shard_map` a custom_vjp must return cotangents of its arguments' own type; alpha's
  would vary over x's axes while alpha does not. The transpose of the cast is the missing psum.
  """
  varying = [jax.typeof(a).manual_axis_type.varying for a in arrays]
  union: frozenset[str] = frozenset().union(*varying)
  return tuple(
    jax.lax.pcast(a, tuple(sorted(union - v)), to="varying") if union - v else a
    for a, v in zip(arrays, varying, strict=True)
  )


def _compute_code(x: jax.Array, alpha: jax.Array, num_levels: int) -> jax.Array:
  """Number of k in 0..L-1 with x > fl(k * alpha), as a float; NaN for a NaN.

  For x in (fl((c-1) alpha), fl(c alpha)], whose code is c, the rounded product below is near
  (c-1, c] and its nearest integer c - 1 or c, rounding errors or not: one exact compare decides.
  A division here, and compares on either side to mend it, keep XLA's CPU backend from fusing the
  staircase with its neighbours (a ResNet-20 train step takes 1.65 times as long).
  """
  nearest = jnp.clip(jnp.round(x * (1.0 / alpha)), 0.0, float(num_levels - 1))
  return jnp.where(x > nearest * alpha, nearest + 1.0, nearest)


def _apply_staircase(
  x: jax.Array, alpha: jax.Array, num_levels: int
) -> tuple[jax.Array, jax.Array]:
  """The staircase's value, in x's dtype, and the code 0..L+1 that the backward pass needs.

  The value is made from the integer. Made from the float code it is equal, but XLA's CPU backend
  then computes the staircases of a whole residual stream again in each block's fusion (a ResNet-20
  train step uses 1.2 times the time).
  """
  wide = x.astype(alpha.dtype)
  code = _compute_code(wide, alpha, num_levels)
  # A NaN has no integer value; the output carries it, the residual counts it as 0.
  residual = jnp.where(jnp.isnan(code), 0.0, code).astype(_residual_dtype(num_levels))
  residual = residual + (wide > num_levels * alpha).astype(residual.dtype)
  level = jnp.minimum(residual, jnp.asarray(num_levels, residual.dtype)).astype(alpha.dtype)
  return jnp.where(jnp.isnan(wide), jnp.nan, level * alpha).astype(x.dtype), residual


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _quantized_relu(
  x: jax.Array, alpha: jax.Array, num_levels: int, ste: Any, alpha_proxy: Any
) -> jax.Array:
  del ste, alpha_proxy
  return _apply_staircase(x, alpha, num_levels)[0]


def _quantized_relu_fwd(
  x: jax.Array, alpha: jax.Array, num_levels: int, ste: Any, alpha_proxy: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  del alpha_proxy
  y, residual = _apply_staircase(x, alpha, num_levels)
  return y, (residual, x, alpha) if callable(ste) else (residual,)


def _residual_dtype(num_levels: int) -> Any:
  return jnp.uint8 if num_levels + 1 <= jnp.iinfo(jnp.uint8).max else jnp.uint16


def _quantized_relu_bwd(
  num_levels: int, ste: Any, alpha_proxy: Any, kept: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  residual = kept[0]
  multiplier = (
    ste(kept[1], kept[2], num_levels) if callable(ste) else _ESTIMATORS[ste](residual, num_levels)
  )
  wide = cotangent.astype(_compute_dtype(cotangent.dtype))
  grad_alpha = _sum_alpha_gradient(wide, residual, num_levels, alpha_proxy)
  return cotangent * multiplier.astype(cotangent.dtype), grad_alpha


def _sum_alpha_gradient(
  cotangent: jax.Array, residual: jax.Array, num_levels: int, alpha_proxy: Any
) -> jax.Array:
  """Sum of cotangent * proxy.

  For the constant proxies as two sums of masked cotangents: the first is that of the gradient in x
  (for "clipped"), which exists anyway, where an array of proxies would be written in the forward
  pass and kept.
  """
  if callable(alpha_proxy) or alpha_proxy in _PROXIES:
    proxy = alpha_proxy if callable(alpha_proxy) else _PROXIES[alpha_proxy]
    weight = proxy(residual.astype(cotangent.dtype), num_levels)
    return jnp.sum(cotangent * weight.astype(cotangent.dtype))
  inside = _ESTIMATORS["clipped"](residual, num_levels).astype(cotangent.dtype)
  beyond = (residual > num_levels).astype(cotangent.dtype)
  # Over all axes but the last first: the bias of a batch norm in front needs this very sum.
  axes = tuple(range(max(cotangent.ndim - 1, 0)))
  inner = _CONSTANT_PROXIES[alpha_proxy](num_levels) * jnp.sum(cotangent * inside, axis=axes)
  outer = float(num_levels) * jnp.sum(cotangent * beyond, axis=axes)
  return jnp.sum(inner + outer)


_quantized_relu.defvjp(_quantized_relu_fwd, _quantized_relu_bwd)


def _compute_dtype(dtype: Any) -> Any:
  return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
  if not callable(value) and value not in choices:
    raise ValueError(f"{name} must be one of {', '.join(choices)} or a callable, got {value!r}")


def quantized_relu(
  x: jax.Array,
  alpha: jax.Array,
  *,
  num_bits: int,
  ste: str | InputEstimator = "clipped",
  alpha_proxy: str | AlphaProxy = "three_valued",
) -> jax.Array:
  """Rounds the positive part of x up to a multiple of alpha, at most L * alpha, L = 2^num_bits - 1.

  Forward:  y = alpha * code(x), code(x) = number of k in 0, ..., L-1 with x > fl(k * alpha).
  Backward in x (`ste`), by convention:
    "clipped": 1 where 0 < x <= L * alpha, else 0; "relu": 1 where x > 0, else 0; "identity": 1.
  Backward in alpha (`alpha_proxy`), summed over all elements, not clipped or scaled:
                        x <= 0    0 < x <= L * alpha    x > L * alpha
    "three_valued"        0           (L + 1) / 2             L
    "two_valued"          0                0                  L
    "exact"               0             code(x)               L
  fl rounds to the dtype of the computation: float32, also for bfloat16 x, or float64 for
  float64 x. In that dtype the function is idempotent; a rounded bfloat16 output may lie above
  its level and be rounded up once more. Subnormal x count as 0 where the backend flushes them
  (XLA on CPU does). NaN gives NaN, with a derivative as at 0.

  Args:
    x: any shape, floating-point; activations before quantization.
    alpha: [], floating-point, > 0 and normal (1 / alpha finite); step of the staircase, in units
      of x.
    num_bits: static Python int in [1, 8].
    ste: a name above, or a callable (x, alpha, L) -> multiplier of x's shape; the callable needs
      x kept for the backward pass, the names only one small integer an element.
    alpha_proxy: a name above, or a callable (code, L) -> multiplier of code's shape; code is
      float32 (float64 for float64 x), 0 to L, and L + 1 where x > L * alpha.
  Returns:
    Array of x's shape and dtype. Reverse mode only: `jax.jvp` raises a TypeError.
  Raises:
    ValueError: if num_bits, ste or alpha_proxy is out of range or unknown, or alpha not a scalar.
    TypeError: if num_bits is not an int, or x or alpha is not floating-point.
  Source: authors' code (staircase, estimators, proxies). Differs from it: alpha's gradient is the
    plain sum (there times 0.01 and clipped to [-1, 1]: see `optim.bcgd`), and thresholds are
    exact where the code takes the rounded quotient.
  """
  if not isinstance(num_bits, int):
    raise TypeError(f"num_bits must be a Python int, got {num_bits!r}")
  if not 1 <= num_bits <= 8:
    raise ValueError(
      f"num_bits must be in [1, 8], got {num_bits}; for float activations use jax.nn.relu"
    )
  _check_choice("ste", ste, tuple(_ESTIMATORS))
  _check_choice("alpha_proxy", alpha_proxy, (*_CONSTANT_PROXIES, *_PROXIES))
  x, alpha = jnp.asarray(x), jnp.asarray(alpha)
  for name, array in (("x", x), ("alpha", alpha)):
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise TypeError(f"{name} must be floating-point, got dtype {array.dtype}")
  if alpha.ndim != 0:
    raise ValueError(f"alpha must be a scalar, one step an activation, got shape {alpha.shape}")
  x, alpha = _lift_together(x, alpha.astype(_compute_dtype(x.dtype)))
  return _quantized_relu(x, alpha, 2**num_bits - 1, ste, alpha_proxy)
