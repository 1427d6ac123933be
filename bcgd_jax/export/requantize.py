"""Finds the bias and the multiplication by which an 8-bit convolution meets integer thresholds.

ONNX's QLinearConv, with all scales 1 but that of the weights, computes

    y = clip(round_half_even(float32(acc' + bias) * multiplier) + zero_point, 0, 255)

which never falls as acc' grows. So y - zero_point crosses each level where a threshold says, for
all accumulators, if it does so at the threshold and just below it: two points a level are a proof.
"""

import dataclasses

import numpy as np

from bcgd_jax.export.integer import Requantizer

_MAX_PAIR = 2**15 - 1
_MAX_INT8 = 127
_MAX_UINT8 = 255
_MAX_BIAS = 2**30
# Biases tried around the one that real arithmetic gives; a rounded one often has no multiplier.
_TRIED = np.arange(-4, 5)
# Of the weights, the best first: larger ones do not fit wider codes.
_WEIGHT_FACTORS = (64, 127, 42, 32, 21, 18, 16, 9, 4, 1)
_INPUT_FACTORS = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
  """The accumulators that a channel can have: int64 [channels] each.

  Attributes:
    low, high: the least and the greatest.
  """

  low: np.ndarray
  high: np.ndarray


def fits_pairs(max_input: int, max_weight: int) -> bool:
  """Whether kernels without VNNI are exact, which add pairs of products in saturating 16 bits.

  Args:
    max_input: of the unsigned bytes.
    max_weight: largest magnitude of the signed ones.
  """
  return 2 * max_input * max_weight <= _MAX_PAIR


def find_reach(weights: np.ndarray, *, smallest: int, largest: int) -> Reach:
  """What accumulators can be, for inputs (less the zero point) in [smallest, largest].

  Args:
    weights: integers [..., channels].
    smallest: <= 0.
    largest: >= 0.
  """
  flat = weights.reshape(-1, weights.shape[-1]).astype(np.int64)
  positive, negative = np.maximum(flat, 0).sum(0), np.minimum(flat, 0).sum(0)
  return Reach(
    low=positive * smallest + negative * largest, high=positive * largest + negative * smallest
  )


def apply_requantizer(scheme: Requantizer, acc: np.ndarray) -> np.ndarray:
  """What QLinearConv makes of accumulators (without the factors), less the zero point.

  Args:
    scheme: with channels last.
    acc: integers [..., channels].
  Returns:
    int64, in [-zero_point, 255 - zero_point].
  """
  factor = scheme.weight_factor * scheme.input_factor
  shifted = (acc.astype(np.int64) * factor + scheme.bias).astype(np.float32)
  scaled = shifted * scheme.multiplier
  y = np.clip(np.rint(scaled).astype(np.int64) + scheme.zero_point, 0, _MAX_UINT8)
  found: np.ndarray = y - scheme.zero_point
  return found


def wrong_channels(
  scheme: Requantizer, thresholds: np.ndarray, levels: np.ndarray, reach: Reach
) -> np.ndarray:
  """Which channels do not cross every level where their thresholds say: the proof of a scheme.

  Args:
    scheme: of the layer.
    thresholds: int32 [channels, n].
    levels: integers [n], what is reached at each threshold.
    reach: of the layer.
  Returns:
    bool [channels].
  """
  at = np.clip(thresholds, reach.low[:, None], reach.high[:, None] + 1).astype(np.int64)
  channel_last = _transposed(scheme, at)
  below = _transposed(scheme, at - 1)
  reachable, unreached = at <= reach.high[:, None], at - 1 >= reach.low[:, None]
  wrong = (reachable & (channel_last < levels)) | (unreached & (below >= levels))
  found: np.ndarray = wrong.any(axis=1)
  return found


def _transposed(scheme: Requantizer, acc: np.ndarray) -> np.ndarray:
  """`apply_requantizer` with channels first."""
  return apply_requantizer(scheme, acc.T).T


def solve_requantizer(
  thresholds: np.ndarray,
  levels: np.ndarray,
  *,
  slope: np.ndarray,
  offset: np.ndarray,
  weights: np.ndarray,
  reach: Reach,
  max_input: int,
  zero_point: int,
) -> Requantizer | None:
  """A proven `Requantizer`, or None where none is found.

  For a given bias each threshold bounds the multiplier on one side, as does its predecessor; the
  middle of what is left is taken. Large factors make the accumulator's steps finer, so that a bias
  can lie between them.

  Args:
    thresholds: int32 [channels, n].
    levels: integers [n], consecutive; level 0 or below may occur.
    slope, offset: float64 [channels] of the staircase that has these thresholds.
    weights: int8 [height, width, in, channels].
    reach: of the accumulators.
    max_input: largest magnitude of an input, less its zero point.
    zero_point: of the output; levels plus it must be in [1, 255].
  """
  max_weight = max(1, int(np.abs(weights).max()))
  if levels[-1] + zero_point > _MAX_UINT8 or weights.dtype != np.int8:
    return None
  for input_factor in _INPUT_FACTORS:
    for weight_factor in _WEIGHT_FACTORS:
      factor = weight_factor * input_factor
      if (
        weight_factor * max_weight > _MAX_INT8
        or not fits_pairs(max_input * input_factor, max_weight * weight_factor)
        or (input_factor > 1 and max_input * input_factor > _MAX_UINT8)
        or int(np.abs([reach.low, reach.high]).max()) * factor >= _MAX_BIAS
      ):
        continue
      scheme = _solve(
        thresholds,
        levels,
        slope=slope,
        offset=offset,
        reach=reach,
        factors=(weight_factor, input_factor),
        zero_point=zero_point,
      )
      if not wrong_channels(scheme, thresholds, levels, reach).any():
        return scheme
  return None


def _solve(
  thresholds: np.ndarray,
  levels: np.ndarray,
  *,
  slope: np.ndarray,
  offset: np.ndarray,
  reach: Reach,
  factors: tuple[int, int],
  zero_point: int,
) -> Requantizer:
  """The best bias and multiplier of each channel; not proven."""
  factor = factors[0] * factors[1]
  at = np.clip(thresholds, reach.low[:, None], reach.high[:, None] + 1).astype(np.float64)
  reachable, unreached = at <= reach.high[:, None], at - 1 >= reach.low[:, None]
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    ideal = np.rint(factor * (offset + 0.5) / slope)
  is_regular = np.isfinite(ideal) & (np.abs(ideal) < _MAX_BIAS)
  start = np.where(is_regular, ideal, 0.0)
  bias = start[:, None] + _TRIED[None, :]  # [channels, tried]
  half = levels - 0.5
  upper = factor * at[:, None, :] + bias[:, :, None]  # [channels, tried, n]
  low, high = _bound_multiplier(upper, upper - factor, half, reachable, unreached)
  width = np.divide(high, low, out=np.zeros_like(high), where=low < high)
  best = np.argmax(width, axis=1)[:, None]
  bias, low, high = (np.take_along_axis(x, best, axis=1)[:, 0] for x in (bias, low, high))
  with np.errstate(invalid="ignore", over="ignore"):
    multiplier = np.where(np.isfinite(high), (low + high) / 2, 2 * low)
  constant = _constant_levels(thresholds, levels, reach)
  is_constant = ~np.isnan(constant)
  bias = np.where(is_constant, np.where(constant < 0, -_MAX_BIAS, _MAX_BIAS), bias)
  multiplier = np.where(is_constant, np.abs(constant) / _MAX_BIAS, multiplier)
  multiplier = np.where(is_constant & (constant == 0), 2.0**-60, multiplier)
  multiplier = np.where(np.isfinite(multiplier) & (multiplier > 0), multiplier, 2.0**-60)
  return Requantizer(
    weight_factor=factors[0],
    input_factor=factors[1],
    bias=bias.astype(np.int32),
    multiplier=multiplier.astype(np.float32),
    zero_point=zero_point,
  )


def _bound_multiplier(
  upper: np.ndarray,
  lower: np.ndarray,
  half: np.ndarray,
  reachable: np.ndarray,
  unreached: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """[channels, tried]: the open interval that multipliers must lie in; empty where low >= high.

  upper * m > half must hold at each reachable threshold, lower * m < half just below it.
  """
  tiny, huge = np.finfo(np.float32).tiny, np.inf
  with np.errstate(divide="ignore", invalid="ignore"):
    above, beneath = half / upper, half / lower
  reach_, keep_ = reachable[:, None, :], unreached[:, None, :]
  positive = half > 0
  # half > 0: m > half / upper, if upper > 0, else impossible; m < half / lower, if lower > 0
  low = np.where(reach_ & positive, np.where(upper > 0, above, huge), tiny)
  high = np.where(keep_ & positive & (lower > 0), beneath, huge)
  # half < 0: m < half / upper, if upper < 0; m > half / lower, if lower < 0, else impossible
  high = np.where(reach_ & ~positive & (upper < 0), above, high)
  low = np.where(keep_ & ~positive, np.where(lower < 0, beneath, huge), low)
  return np.maximum(low.max(axis=2), tiny), high.min(axis=2)


def _constant_levels(thresholds: np.ndarray, levels: np.ndarray, reach: Reach) -> np.ndarray:
  """The level that a channel is always at, NaN for channels that have several.

  float64 [channels].
  """
  always = (thresholds <= reach.low[:, None]).sum(axis=1)
  never = (thresholds > reach.high[:, None]).sum(axis=1)
  count = thresholds.shape[1]
  return np.where(always + never == count, levels[0] - 1.0 + always, np.nan)
