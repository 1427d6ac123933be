"""Integer thresholds of a staircase over accumulators, in float64 and by float32 arithmetic."""

import numpy as np

from bcgd_jax.export.integer import Affine


def exact_thresholds(
  slope: np.ndarray, offset: np.ndarray, levels: np.ndarray, *, bound: int
) -> np.ndarray:
  """The smallest accumulators whose code is at least each level.

  u = slope * acc + offset is the activation in units of its step; its code, ceil(u), is at least j
  where u > j - 1, so that T_j = floor((j - 1 - offset) / slope) + 1. Out of reach, a threshold is
  -bound or bound + 1. A slope of 0 makes all of a channel's thresholds so.

  Args:
    slope: float64 [channels], >= 0.
    offset: float64 [channels].
    levels: integers [n], ascending.
    bound: the largest magnitude of an accumulator.
  Returns:
    int32 [channels, n], ascending along n.
  """
  distance = levels[None, :] - 1.0 - offset[:, None]
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    found = np.floor(distance / slope[:, None]) + 1.0
  # without a slope, u is the offset everywhere: reached by all or by none
  constant = np.where(distance < 0.0, -np.inf, np.inf)
  found = np.where(slope[:, None] == 0.0, constant, found)
  return np.clip(found, -bound, bound + 1).astype(np.int32)


def evaluate_affine(affine: Affine, acc: np.ndarray, code_in: np.ndarray | None) -> np.ndarray:
  """The arithmetic of `Affine` without rounding to a code and clipping.

  Args:
    affine: its fields broadcast against the other arguments.
    acc: integers.
    code_in: codes that are added, where there is a ratio.
  Returns:
    float32.
  """
  value = acc.astype(np.float32) * affine.slope + affine.offset
  if affine.ratio is not None:
    assert code_in is not None
    value = value + code_in.astype(np.float32) * affine.ratio
  assert value.dtype == np.float32
  return value


def affine_thresholds(
  affine: Affine, *, num_levels: int, num_codes: int | None, bound: int
) -> np.ndarray:
  """The thresholds that the float32 arithmetic of `affine` has, by bisection.

  Rounding is monotone, so the code never falls as the accumulator grows.

  Args:
    affine: slope and offset [channels].
    num_levels: the highest code.
    num_codes: how many codes may be added, 0..num_codes - 1; None where none are.
    bound: the largest magnitude of an accumulator.
  Returns:
    int32 [channels, num_levels], or [channels, num_codes, num_levels].
  """
  channels = affine.slope.shape[0]
  shape = (channels, num_codes or 1, num_levels)
  spread = Affine(
    slope=affine.slope[:, None, None], offset=affine.offset[:, None, None], ratio=affine.ratio
  )
  code_in = np.arange(num_codes or 1)[None, :, None]
  levels = np.arange(1, num_levels + 1)[None, None, :]
  # invariant: not reached at low, reached at high
  low = np.full(shape, -bound - 1, np.int64)
  high = np.full(shape, bound + 1, np.int64)
  while np.any(high - low > 1):
    middle = (low + high) // 2
    reached = np.rint(evaluate_affine(spread, middle, code_in)) >= levels
    low, high = np.where(reached, low, middle), np.where(reached, middle, high)
  found = high.astype(np.int32)
  return found if num_codes is not None else found[:, 0]


def largest_shift(
  thresholds: np.ndarray, slope: np.ndarray, offset: np.ndarray, *, ratio: float, bound: int
) -> float:
  """How far thresholds lie from where the staircase changes in exact arithmetic, in codes.

  A threshold T of level j is right if slope * (T - 1) + offset <= j - 1 < slope * T + offset.

  Args:
    thresholds: int32 [channels, codes, levels].
    slope: float64 [channels].
    offset: float64 [channels].
    ratio: of the code added.
    bound: the largest magnitude of an accumulator; thresholds beyond it say that none is reached.
  Returns:
    0.0 if all are right.
  """
  levels = np.arange(thresholds.shape[2])[None, None, :]
  added = offset[:, None, None] + ratio * np.arange(thresholds.shape[1])[None, :, None] - levels
  above = slope[:, None, None] * thresholds + added  # should be > 0, where T is an accumulator
  below = slope[:, None, None] * (thresholds - 1.0) + added  # should be <= 0
  too_low = np.where(thresholds <= bound, np.maximum(-above, 0.0), 0.0)
  too_high = np.where(thresholds > -bound, np.maximum(below, 0.0), 0.0)
  return float(max(too_low.max(), too_high.max()))
