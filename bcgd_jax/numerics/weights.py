"""Weight quantizers: a float array to integer codes and a scale, and back.

Each quantizer maps a group of weights (the whole array, or one output channel) to scale * code.
All are hashable and static under `jax.jit`, and may be jitted themselves (which takes a weak
reference, hence `weakref_slot`). What they have in common:

* Statistics and scale are computed in float32, also for bfloat16 weights (float64 for float64).
* A group of zeros decodes to zeros. A group that holds a NaN or an infinity, or whose sum of
  magnitudes overflows, decodes to NaN throughout: never silently to something finite.
* They are plain functions whose derivative is that of the scale; train through
  `straight_through`.

Which of them are exact projections (the nearest point of the set, as the sufficient descent of
blending assumes): `Binary()` and `Ternary("sort")`. `Ternary("lloyd")` is one up to the error it
states; `Ternary("twn")`, `Ternary("twn_all")` and `Uniform` are not.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bcgd_jax.numerics.ternary_rules import TERNARY_RULES, Axes


@functools.partial(jax.tree_util.register_dataclass, data_fields=["codes", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
  """Integer weights: value = scale * codes.

  Attributes:
    codes: int8, of the weights' shape.
    scale: float32 (float64 for float64 weights), broadcastable to `codes`: grouped axes kept at 1.
  """

  codes: jax.Array
  scale: jax.Array

  def decode(self, dtype: DTypeLike) -> jax.Array:
    """Returns scale * codes, multiplied in the scale's dtype and then rounded to `dtype`."""
    return (self.codes.astype(self.scale.dtype) * self.scale).astype(dtype)


@runtime_checkable
class WeightQuantizer(Protocol):
  """What layers, `make_projection` and `quantize_params` ask of a weight quantizer.

  Implementations are hashable and compare by value, so that jit and Flax take them as static.
  """

  @property
  def num_bits(self) -> int:
    """Bits that store one code."""

  def encode(self, w: jax.Array) -> Encoded:
    """Returns codes and scale of `w`."""

  def __call__(self, w: jax.Array) -> jax.Array:
    """Returns `encode(w).decode(w.dtype)`."""


def _check_channel_axis(channel_axis: int | None) -> None:
  if channel_axis not in (None, -1):
    raise ValueError(
      "channel_axis must be None (one scale an array) or -1 (one scale for each entry of the last "
      f"axis), got {channel_axis!r}"
    )


def _check_int(name: str, value: object, *, minimum: int, maximum: int | None = None) -> None:
  if isinstance(value, bool) or not isinstance(value, int):
    raise TypeError(f"{name} must be a Python int, got {value!r}")
  if value < minimum or (maximum is not None and value > maximum):
    limits = f"at least {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
    raise ValueError(f"{name} must be {limits}, got {value}")


def _group_axes(w: jax.Array, channel_axis: int | None) -> Axes:
  if not jnp.issubdtype(w.dtype, jnp.floating):
    raise TypeError(f"w must be a floating-point array, got dtype {w.dtype}")
  if w.size == 0:
    raise ValueError(f"w must have at least one element, got shape {w.shape}")
  if channel_axis is None:
    return tuple(range(w.ndim))
  if w.ndim == 0:
    raise ValueError("w must have at least one axis for channel_axis=-1, got a scalar")
  return tuple(range(w.ndim - 1))


def _to_statistics_dtype(w: jax.Array) -> jax.Array:
  return w if w.dtype == jnp.float64 else w.astype(jnp.float32)


def _poison(scale: jax.Array, magnitudes: jax.Array, axes: Axes) -> jax.Array:
  """Makes the scale NaN where the group is not finite; a comparison alone would hide a NaN."""
  total = jnp.sum(magnitudes, axis=axes, keepdims=True)
  return jnp.where(jnp.isfinite(total), scale, jnp.nan)


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class Binary:
  """Least-squares binary weights, the exact projection on {-s, +s}^n.

  Formula: Q(w) = s * sign(w), s = mean|w|, with sign(0) = +1: codes are -1 or +1, never 0.

  Attributes:
    channel_axis: None for one scale an array (as the authors' code), -1 for one an output channel.
  Raises:
    ValueError: if channel_axis is neither; if the array has no element.
    TypeError: if the array is not floating-point.
  Source: authors' code, default switch. Differs from it: there an exact zero stays zero.
  """

  channel_axis: int | None = None

  def __post_init__(self) -> None:
    _check_channel_axis(self.channel_axis)

  @property
  def num_bits(self) -> int:
    """Bits that store one code: 1."""
    return 1

  def encode(self, w: jax.Array) -> Encoded:
    """Returns codes in {-1, +1} and the scale mean|w|."""
    axes = _group_axes(w, self.channel_axis)
    w = _to_statistics_dtype(w)
    magnitudes = jnp.abs(w)
    scale = _poison(jnp.mean(magnitudes, axis=axes, keepdims=True), magnitudes, axes)
    return Encoded(jnp.where(w >= 0.0, 1, -1).astype(jnp.int8), scale)

  def __call__(self, w: jax.Array) -> jax.Array:
    """Returns the quantized weights, of `w`'s shape and dtype."""
    return self.encode(w).decode(w.dtype)


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class Ternary:
  """Ternary weights: Q(w) = s * sign(w) where |w| exceeds a threshold d, else 0.

  Rules (t = number of kept weights, S = sum of their magnitudes, n = group size):
    "lloyd": d = 0.7 * mean|w|, then five times d = (S / t) / 2; keeps |w| > d, s = S / t. No
      sort. Its squared error exceeds the exact one by a factor of at most 1 + 7e-5 on 10^6
      Gaussian, Laplace and uniform weights (measured: 6e-7, 6e-5, 4e-9; small groups can
      be further off: 2e-3 was seen among sets of 100 Laplace weights).
    "twn": d = 0.7 * mean|w|; keeps |w| > d, s = S / t.
    "twn_all": d = min(0.7 * mean|w|, 100); keeps |w| >= d, s = S / n. Its scale is 0.58 of the
      least-squares scale on Gaussian weights, and shrinks again when applied to its own output.
    "sort": the exact projection, t = argmax S_t^2 / t over the t largest magnitudes, s = S / t;
      the prefix sums are compensated. O(n log n) and slow: a reference.

  Attributes:
    rule: one of the above.
    channel_axis: None for one scale an array (as the authors' code), -1 for one an output channel.
  Raises:
    ValueError: if the rule or channel_axis is unknown; if the array has no element.
    TypeError: if the array is not floating-point.
  Source: "lloyd" is our choice; "twn" is the threshold of ternary weight networks; "twn_all" is
    the authors' code; "sort" follows from least squares.
  """

  rule: str = "lloyd"
  channel_axis: int | None = None

  def __post_init__(self) -> None:
    if self.rule not in TERNARY_RULES:
      raise ValueError(f"rule must be one of {', '.join(TERNARY_RULES)}, got {self.rule!r}")
    _check_channel_axis(self.channel_axis)

  @property
  def num_bits(self) -> int:
    """Bits that store one code: 2."""
    return 2

  def encode(self, w: jax.Array) -> Encoded:
    """Returns codes in {-1, 0, +1} and the scale of the rule."""
    axes = _group_axes(w, self.channel_axis)
    w = _to_statistics_dtype(w)
    magnitudes = jnp.abs(w)
    selected, scale = TERNARY_RULES[self.rule](magnitudes, axes)
    signs = (w > 0.0).astype(jnp.int8) - (w < 0.0).astype(jnp.int8)
    return Encoded(jnp.where(selected, signs, jnp.int8(0)), _poison(scale, magnitudes, axes))

  def __call__(self, w: jax.Array) -> jax.Array:
    """Returns the quantized weights, of `w`'s shape and dtype."""
    return self.encode(w).decode(w.dtype)


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class Uniform:
  """Uniform symmetric weights of 3 to 8 bits, levels {0, +-1, ..., +-K}, K = 2^(num_bits-1) - 1.

  Formula: s_0 = 2 * max|w| / (2^num_bits - 1); then `lloyd_steps` times: q = nearest level of
  |w| / s, capped at K (a tie goes to the lower level: bins ((2k-1)s/2, (2k+1)s/2] -> k), and
  s = sum(|w| q) / sum(q^2), the least-squares scale of q. Q(w) = s * sign(w) * q, with the last
  s and the q it was fitted to. Not an exact projection: one step stays close to s_0.

  Attributes:
    num_bits: bits that store one code, 3 to 8.
    lloyd_steps: assignments, each followed by a fit of the scale; at least 1. Unrolled when traced.
    channel_axis: None for one scale an array (as the authors' code), -1 for one an output channel.
  Raises:
    ValueError: if an attribute is out of range; if the array has no element.
    TypeError: if num_bits or lloyd_steps is not an int; if the array is not floating-point.
  Source: authors' code for 4 bits and one step; other bits and more steps are our choice.
    Differs from it: there s_0 is capped at 20.
  """

  num_bits: int
  lloyd_steps: int = 1
  channel_axis: int | None = None

  def __post_init__(self) -> None:
    if self.num_bits in (1, 2):
      raise ValueError(
        f"num_bits must be in [3, 8], got {self.num_bits}; for 1 bit use Binary, for 2 bits Ternary"
      )
    _check_int("num_bits", self.num_bits, minimum=3, maximum=8)
    _check_int("lloyd_steps", self.lloyd_steps, minimum=1)
    _check_channel_axis(self.channel_axis)

  def encode(self, w: jax.Array) -> Encoded:
    """Returns codes in {-K, ..., K} and the least-squares scale."""
    axes = _group_axes(w, self.channel_axis)
    w = _to_statistics_dtype(w)
    magnitudes = jnp.abs(w)
    max_code = 2 ** (self.num_bits - 1) - 1

    def assign(scale: jax.Array) -> jax.Array:
      # A scale of 0 means a group of zeros (or of magnitudes too small to divide): codes 0.
      ratio = magnitudes / jnp.where(scale > 0.0, scale, 1.0)
      return jnp.clip(jnp.ceil(ratio - 0.5), 0.0, float(max_code))

    def fit(codes: jax.Array) -> jax.Array:
      products = jnp.sum(magnitudes * codes, axis=axes, keepdims=True)
      return products / jnp.maximum(jnp.sum(codes * codes, axis=axes, keepdims=True), 1.0)

    scale = 2.0 * jnp.max(magnitudes, axis=axes, keepdims=True) / (2**self.num_bits - 1)
    for _ in range(self.lloyd_steps - 1):
      scale = fit(assign(scale))
    codes = assign(scale)
    signed = jnp.where(w < 0.0, -codes, codes)
    # A NaN has no int8 value; the scale, NaN as well, carries it instead.
    signed = jnp.where(jnp.isnan(signed), 0.0, signed).astype(jnp.int8)
    return Encoded(signed, _poison(fit(codes), magnitudes, axes))

  def __call__(self, w: jax.Array) -> jax.Array:
    """Returns the quantized weights, of `w`'s shape and dtype."""
    return self.encode(w).decode(w.dtype)


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class Vmapped:
  """A quantizer applied independently along leading axes, as for kernels stacked by `nn.scan`.

  Attributes:
    quantizer: quantizer of one kernel.
    num_axes: number of leading axes, at least 1; the scale keeps them at full size.
  Raises:
    ValueError: if num_axes is below 1 or the array has fewer axes than that.
  """

  quantizer: WeightQuantizer
  num_axes: int

  def __post_init__(self) -> None:
    _check_int("num_axes", self.num_axes, minimum=1)

  @property
  def num_bits(self) -> int:
    """Bits that store one code: the inner quantizer's."""
    return self.quantizer.num_bits

  def encode(self, w: jax.Array) -> Encoded:
    """Returns codes of `w`'s shape and one scale for each leading index (and group)."""
    if w.ndim < self.num_axes:
      raise ValueError(f"w must have at least num_axes={self.num_axes} axes, got shape {w.shape}")
    encode: Callable[[jax.Array], Encoded] = self.quantizer.encode
    for _ in range(self.num_axes):
      encode = jax.vmap(encode)
    return encode(w)

  def __call__(self, w: jax.Array) -> jax.Array:
    """Returns the quantized weights, of `w`'s shape and dtype."""
    return self.encode(w).decode(w.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply_straight_through(q: Callable[[jax.Array], jax.Array], w: jax.Array) -> jax.Array:
  return q(w)


def _straight_through_fwd(
  q: Callable[[jax.Array], jax.Array], w: jax.Array
) -> tuple[jax.Array, None]:
  return q(w), None


def _straight_through_bwd(
  q: Callable[[jax.Array], jax.Array], residual: None, cotangent: jax.Array
) -> tuple[jax.Array]:
  del q, residual
  return (cotangent,)


_apply_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)


def straight_through(q: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
  """Makes a quantizer differentiable by the straight-through estimator.

  Forward:  y = q(w), bit for bit.
  Backward: dy/dw := identity (a convention, not a limit).

  Args:
    q: maps an array to one of the same shape and dtype; any `WeightQuantizer`, for instance.
  Returns:
    A function of the array alone. Reverse mode only: `jax.jvp` raises a TypeError.
  Source: authors' code, which takes the gradient at Q(w) and applies it to w.
  """
  return functools.partial(_apply_straight_through, q)
