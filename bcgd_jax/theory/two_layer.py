"""Closed forms of the network v^T step(Z w) with Gaussian input and a filter shared by its rows.

  y(Z, v, w) = sum_i v_i step(Z_i . w),  step(x) = 1 where x > 0, else 0
  loss       = (y(Z, v, w) - y(Z, v_star, w_star))^2 / 2

with Z [m, n] of independent standard normal entries; every function here is an expectation over Z.

Throughout: v, v_star [m] and w, w_star [n] are float32 or float64 of one dtype; |w| is 1e37 at
most; w_star is not zero and only its direction enters; u, u_star are the unit vectors of w, w_star;
theta is the angle between them; S, S_star are the sums of v, v_star. The network does not depend on
|w| except at w = 0 (subnormal entries count as 0), where it is 0: there the values are those of the
zero network, theta is pi/2 and the gradient in w, which does not exist, is 0. Results have the
inputs' dtype. All functions but `critical_points` work under jit, vmap and grad, with finite
derivatives at theta = 0, theta = pi and w = 0.

The model and, where not said otherwise, the formulas are those of Yin et al. 2019 (Understanding
straight-through estimators, arXiv 1903.05662), rearranged to have no 0/0 and no cancellation.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

ESTIMATORS = ("identity", "relu", "clipped")

_SQRT_TWO = math.sqrt(2)
_SQRT_TWO_PI = math.sqrt(2 * math.pi)

# erf(x / sqrt(2)) and 1 - exp(-x^2 / 2) are 1 from here on, in float64 too.
_SATURATION = 40.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPoint:
  """A critical point of the population loss; the length of w is free."""

  v: jax.Array  # [m]
  theta: jax.Array  # [], in (0, pi]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPoints:
  """The critical points besides the global minimum v = v_star, theta = 0."""

  saddle: CriticalPoint | None
  spurious_minimum: CriticalPoint | None


class _Geometry(NamedTuple):
  """w and w_star, taken apart."""

  unit: jax.Array  # [n], w / |w|; 0 at w = 0
  unit_star: jax.Array  # [n]
  norm: jax.Array  # [], |w|
  half_sine: jax.Array  # [], sin(theta / 2)
  half_cosine: jax.Array  # [], cos(theta / 2)

  @property
  def theta(self) -> jax.Array:
    return 2 * jnp.arctan2(self.half_sine, self.half_cosine)

  @property
  def sine(self) -> jax.Array:
    return 2 * self.half_sine * self.half_cosine

  @property
  def cosine(self) -> jax.Array:
    return (self.half_cosine - self.half_sine) * (self.half_cosine + self.half_sine)


def angle(w: jax.Array, w_star: jax.Array) -> jax.Array:
  """The angle between w and w_star, to a few ulp of 1 everywhere, near 0 and pi too.

    theta = 2 atan2(|u - u_star|, |u + u_star|)

  Args:
    w: [n].
    w_star: [n], not zero.
  Returns:
    [], in [0, pi] radians; pi/2 at w = 0. The derivative at 0, pi and w = 0 is 0 (none exists).
  Raises:
    ValueError, TypeError: if shapes or dtypes break the rules of this module.
  Source: derived; arccos(u . u_star) would lose half the digits near 0 and pi.
  """
  w, w_star = check_vectors(w=w, w_star=w_star)
  return _take_apart(w, w_star).theta


def sine_and_norm(w: jax.Array, w_star: jax.Array) -> tuple[jax.Array, jax.Array]:
  """sin(theta) [] of the angle between w and w_star, exactly 0 at 0 and pi, and |w| []."""
  geometry = _take_apart(w, w_star)
  return geometry.sine, geometry.norm


def population_loss(v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array) -> jax.Array:
  """Expected loss.

    f = (|v - v_star|^2 + (S - S_star)^2 + (4 theta / pi) v . v_star) / 8

  At v = v_star this is |v|^2 theta / (2 pi); at w = 0, (|v_star|^2 + S_star^2) / 8.

  Args:
    v, v_star: [m].
    w, w_star: [n].
  Returns:
    [].
  Raises:
    ValueError, TypeError: if shapes or dtypes break the rules of this module.
  Source: arXiv 1903.05662; this arrangement derived.
  """
  v, w, v_star, w_star = check_arguments(v, w, v_star, w_star)
  geometry = _take_apart(w, w_star)
  loss = _square(v - v_star) + 4 / math.pi * geometry.theta * jnp.sum(v * v_star)
  return jnp.where(geometry.norm > 0, loss, _square(v_star)) / 8


def population_grad(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The true gradient of `population_loss`.

    grad_v = (v - v_star + (S - S_star) 1 + (2 theta / pi) v_star) / 4
    grad_w = -(v . v_star) / (2 pi |w|) e,  e the unit vector of u_star - cos(theta) u

  f has a kink at theta = 0 and theta = pi: within 4 ulp of them grad_w is 0 (our choice; e would be
  rounding noise), as at w = 0. grad_w grows as 1 / |w|, up to the dtype's range.

  Args:
    v, v_star: [m].
    w, w_star: [n].
  Returns:
    grad_v [m] and grad_w [n].
  Raises:
    ValueError, TypeError: if shapes or dtypes break the rules of this module.
  Source: arXiv 1903.05662.
  """
  v, w, v_star, w_star = check_arguments(v, w, v_star, w_star)
  geometry = _take_apart(w, w_star)
  residual = v - v_star
  grad_v = (residual + jnp.sum(residual) + 2 / math.pi * geometry.theta * v_star) / 4
  is_inside = geometry.norm > 0
  norm = jnp.where(is_inside, geometry.norm, 1.0)
  grad_w = -jnp.sum(v * v_star) / (2 * math.pi * norm) * _take_tangent(geometry)
  return jnp.where(is_inside, grad_v, 0.0), jnp.where(is_inside, grad_w, 0.0)


def coarse_grad(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array, *, ste: str
) -> jax.Array:
  """Expected coarse gradient in w: the chain rule with step' replaced by an estimator.

  With k = |v|^2 + S (S - S_star), p = v . v_star, c = 1 / |w|, t = exp(-c^2 / 2) and
  x = c / sin(theta):

    "identity", 1:              ( |v|^2 u - p u_star ) / sqrt(2 pi)
    "relu",     1{x > 0}:       ( k u - p u_star ) / (2 sqrt(2 pi))
    "clipped",  1{0 < x < 1}:   ( ((1 - t) k + t p erf(x cos(theta) / sqrt 2)) u
                                  - p erf(x / sqrt 2) u_star ) / (2 sqrt(2 pi))

  "clipped" tends to "relu" as |w| -> 0. In general none is the gradient of any function. At w = 0
  the pre-activations are 0: "relu" and "clipped" are 0, "identity" is -p u_star / sqrt(2 pi).

  Args:
    v, v_star: [m].
    w, w_star: [n].
    ste: "identity", "relu" or "clipped".
  Returns:
    [n].
  Raises:
    ValueError, TypeError: if ste is none of the three, or shapes or dtypes break the rules of this
      module.
  Source: arXiv 1903.05662 for identity and relu; clipped, derived.
  """
  check_choice("ste", ste, ESTIMATORS)
  v, w, v_star, w_star = check_arguments(v, w, v_star, w_star)
  geometry = _take_apart(w, w_star)
  product = jnp.sum(v * v_star)
  along = jnp.sum(v * v)
  if ste == "identity":
    return (along * geometry.unit - product * geometry.unit_star) / _SQRT_TWO_PI
  along = along + jnp.sum(v) * jnp.sum(v - v_star)
  star = product
  if ste == "clipped":
    inverse_norm = 1 / jnp.maximum(geometry.norm, 1 / _SATURATION)
    lowest_sine = jnp.maximum(inverse_norm / _SATURATION, jnp.finfo(w.dtype).tiny)
    reach = inverse_norm / jnp.maximum(geometry.sine, lowest_sine) / _SQRT_TWO
    tail = jnp.exp(-(inverse_norm**2) / 2)
    along = -jnp.expm1(-(inverse_norm**2) / 2) * along
    along = along + tail * product * jax.lax.erf(reach * geometry.cosine)
    star = product * jax.lax.erf(reach)
  grad_w = (along * geometry.unit - star * geometry.unit_star) / (2 * _SQRT_TWO_PI)
  return jnp.where(geometry.norm > 0, grad_w, 0.0)


def critical_points(v_star: jax.Array) -> CriticalPoints:
  """The saddle and the spurious minimum of the population loss over v and w.

  With a = S_star^2 / ((m + 1) |v_star|^2 - S_star^2), both exist exactly where a < 1, that is where
  S_star^2 < (m + 1) / 2 |v_star|^2:

    saddle:            v = -a v_star + (1 + a) S_star / (m + 1) 1,  theta = (1 + a) pi / 2
    spurious minimum:  v = -v_star + 2 S_star / (m + 1) 1,          theta = pi

  At the saddle v . v_star = 0. At the spurious minimum the relu coarse gradient is 0 while the
  identity one has norm 2 (m - 1) S_star^2 / (sqrt(2 pi) (m + 1)^2).

  Args:
    v_star: [m], concrete (whether the points exist is decided in Python).
  Returns:
    The two points, or None for both; in v_star's dtype.
  Raises:
    ValueError, TypeError: if v_star's shape or dtype breaks the rules of this module.
  Source: arXiv 1903.05662, the inverse of I + 1 1^T multiplied out.
  """
  (v_star,) = check_vectors(v_star=v_star)
  size = v_star.shape[0]
  total = jnp.sum(v_star)
  energy = (size + 1) * jnp.sum(v_star * v_star)
  if not 2 * total**2 < energy:
    return CriticalPoints(saddle=None, spurious_minimum=None)
  ratio = total**2 / (energy - total**2)
  shift = total / (size + 1)
  return CriticalPoints(
    saddle=CriticalPoint(v=-ratio * v_star + (1 + ratio) * shift, theta=(1 + ratio) * math.pi / 2),
    spurious_minimum=CriticalPoint(v=-v_star + 2 * shift, theta=jnp.asarray(math.pi, v_star.dtype)),
  )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
  """Raises a ValueError unless value is one of the choices."""
  if value not in choices:
    raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_vectors(**vectors: jax.typing.ArrayLike) -> tuple[jax.Array, ...]:
  """Returns the vectors as arrays of one shape [size >= 1] and one dtype, float32 or float64.

  Raises:
    ValueError: if one is not a vector, empty, or of another size than the first.
    TypeError: if one is neither float32 nor float64, or of another dtype than the first.
  """
  arrays = {name: jnp.asarray(vector) for name, vector in vectors.items()}
  first, reference = next(iter(arrays.items()))
  for name, array in arrays.items():
    if array.ndim != 1 or array.size == 0:
      raise ValueError(f"{name} must be a vector with an entry or more, got shape {array.shape}")
    if array.shape != reference.shape:
      raise ValueError(f"{name} must have {first}'s shape {reference.shape}, got {array.shape}")
    if array.dtype not in (jnp.float32, jnp.float64):
      raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")
    if array.dtype != reference.dtype:
      raise TypeError(f"{name} must have {first}'s dtype {reference.dtype}, got {array.dtype}")
  return tuple(arrays.values())


def split_norm(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns x / |x| [n] and |x| [], both 0 with derivative 0 at x = 0.

  Scaled by the largest entry first, so that neither squares nor derivatives leave the dtype's
  range; the results do not depend on that scale, which therefore may be a constant to `grad`.
  """
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
  is_zero = largest == 0
  scale = jnp.where(is_zero, 1.0, largest)
  scaled = jnp.where(is_zero, 1.0, x / scale)
  length = jnp.sqrt(jnp.sum(scaled * scaled))
  return jnp.where(is_zero, 0.0, scaled / length), jnp.where(is_zero, 0.0, scale * length)


def check_arguments(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns the four as arrays, v and v_star [m], w and w_star [n], of one dtype; else raises."""
  v, v_star = check_vectors(v=v, v_star=v_star)
  w, w_star = check_vectors(w=w, w_star=w_star)
  if v.dtype != w.dtype:
    raise TypeError(f"w must have v's dtype {v.dtype}, got {w.dtype}")
  return v, w, v_star, w_star


def _square(v: jax.Array) -> jax.Array:
  """v^T (I + 1 1^T) v."""
  return jnp.sum(v * v) + jnp.sum(v) ** 2


def _take_apart(w: jax.Array, w_star: jax.Array) -> _Geometry:
  unit, norm = split_norm(w)
  unit_star, _ = split_norm(w_star)
  # Two sides of a rhombus: the diagonals are 2 sin(theta / 2) and 2 cos(theta / 2).
  return _Geometry(
    unit=unit,
    unit_star=unit_star,
    norm=norm,
    half_sine=split_norm(unit - unit_star)[1] / 2,
    half_cosine=split_norm(unit + unit_star)[1] / 2,
  )


def _take_tangent(geometry: _Geometry) -> jax.Array:
  """The unit vector of u_star - cos(theta) u; 0 where that is rounding noise."""
  unit, unit_star = geometry.unit, geometry.unit_star
  # Either difference has the wanted part orthogonal to u; the shorter one has less of the other.
  shorter = jnp.where(geometry.cosine > 0, unit_star - unit, unit_star + unit)
  tangent, length = split_norm(shorter - jnp.sum(shorter * unit) * unit)
  return jnp.where(length > 4 * jnp.finfo(unit.dtype).eps, tangent, 0.0)
