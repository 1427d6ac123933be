"""Thresholds, requantizers and packed weights by themselves."""

import numpy as np
import pytest

from bcgd_jax.export.integer import Affine, Requantizer
from bcgd_jax.export.packing import (
  pack_codes,
  split_int16,
  storage_bits,
  unpack_codes,
)
from bcgd_jax.export.requantize import (
  apply_requantizer,
  find_reach,
  solve_requantizer,
  wrong_channels,
)
from bcgd_jax.export.thresholds import (
  affine_thresholds,
  evaluate_affine,
  exact_thresholds,
  largest_shift,
)

LEVELS = np.arange(1, 16)


def staircase(slope, offset, acc):
  """ceil(slope * acc + offset) in [0, 15], channels first."""
  return np.clip(np.ceil(slope[:, None] * acc + offset[:, None]), 0, 15)


def test_exact_thresholds_by_hand():
  found = exact_thresholds(
    np.array([0.5, 2.0, 0.0, 0.0, 1e-30]),
    np.array([0.25, 0.0, 2.5, 0.0, -1.0]),
    np.array([1, 2, 3, 4]),
    bound=100,
  )
  # u = acc / 2 + 1/4 > j - 1; u = 2 acc > j - 1; constant 2.5, 0 and -1
  assert found.tolist() == [
    [0, 2, 4, 6],
    [1, 1, 2, 2],
    [-100, -100, -100, 101],
    [101, 101, 101, 101],
    [101, 101, 101, 101],
  ]


def test_exact_thresholds_count_the_staircase():
  rng = np.random.default_rng(0)
  slope, offset = rng.lognormal(-3, 1, 50), 4 * rng.normal(size=50)
  acc = np.arange(-300, 301)
  found = exact_thresholds(slope, offset, LEVELS, bound=300)
  count = (acc[None, :, None] >= found[:, None, :]).sum(-1)
  np.testing.assert_array_equal(count, staircase(slope, offset, acc[None, :]))


def test_affine_thresholds_count_the_float32_arithmetic():
  rng = np.random.default_rng(1)
  slope, offset = rng.lognormal(-3, 1, 20), 4 * rng.normal(size=20)
  affine = Affine(
    slope=slope.astype(np.float32), offset=(offset + 0.5).astype(np.float32), ratio=np.float32(0.7)
  )
  found = affine_thresholds(affine, num_levels=15, num_codes=16, bound=300)
  acc, code_in = rng.integers(-300, 301, (400, 20)), rng.integers(0, 16, (400, 20))
  value = np.clip(np.rint(evaluate_affine(affine, acc, code_in)), 0, 15)
  reached = acc[..., None] >= found[np.arange(20), code_in]
  np.testing.assert_array_equal(reached.sum(-1), value)
  shift = largest_shift(found, slope, offset, ratio=0.7, bound=300)
  assert shift < 1e-5


def test_largest_shift_sees_a_wrong_threshold():
  slope, offset = np.array([0.5]), np.array([0.25])
  right = exact_thresholds(slope, offset, LEVELS, bound=100)[:, None, :]
  assert largest_shift(right, slope, offset, ratio=0.0, bound=100) == 0.0
  wrong = right.copy()
  wrong[0, 0, 3] += 1  # reached at 6, where u = 3.25 and level 4 begins above 3
  assert largest_shift(wrong, slope, offset, ratio=0.0, bound=100) == pytest.approx(0.25)
  wrong[0, 0, 3] -= 2
  assert largest_shift(wrong, slope, offset, ratio=0.0, bound=100) == pytest.approx(0.25)


def weights_and_fold(channels, *, window=64, seed=0):
  rng = np.random.default_rng(seed)
  weights = rng.choice(np.array([-1, 1], np.int8), (3, 3, window, channels))
  # accumulators of a standard deviation of 100 to 150, activations of some codes
  slope = rng.lognormal(-3.5, 0.7, channels)
  return weights, slope, 4 * rng.normal(size=channels)


@pytest.mark.parametrize(("lowest", "zero_point"), [(1, 0), (-14, 16)])
def test_a_requantizer_meets_every_threshold(lowest, zero_point):
  weights, slope, offset = weights_and_fold(400)
  slope[:2], offset[:5] = 0.0, (3.2, -1.0, 1e4, -1e4, 0.0)
  levels = np.arange(lowest, 16)
  reach = find_reach(weights, smallest=0, largest=15)
  bound = int(max(reach.high.max(), -reach.low.min()))
  thresholds = exact_thresholds(slope, offset, levels, bound=bound)
  scheme = solve_requantizer(
    thresholds,
    levels,
    slope=slope,
    offset=offset,
    weights=weights,
    reach=reach,
    max_input=15,
    zero_point=zero_point,
  )
  assert scheme is not None
  # every accumulator, not two points a level
  for low in range(int(reach.low.min()), int(reach.high.max()) + 1, 500):
    acc = np.arange(low, low + 500)[:, None]
    inside = (acc >= reach.low) & (acc <= reach.high)
    code = np.clip(apply_requantizer(scheme, acc), lowest - 1, 15)
    wanted = lowest - 1 + (acc[..., None] >= thresholds).sum(-1)
    np.testing.assert_array_equal(code[inside], wanted[inside])


def test_the_proof_finds_a_requantizer_that_is_off_by_little():
  weights, slope, offset = weights_and_fold(50)
  reach = find_reach(weights, smallest=0, largest=15)
  thresholds = exact_thresholds(slope, offset, LEVELS, bound=10_000)
  rounded = Requantizer(
    weight_factor=1,
    input_factor=1,
    bias=np.rint((offset + 0.5) / slope).astype(np.int32),
    multiplier=slope.astype(np.float32),
    zero_point=0,
  )
  wrong = wrong_channels(rounded, thresholds, LEVELS, reach)
  acc = np.arange(-2000, 2001)[:, None]
  code = np.clip(apply_requantizer(rounded, acc), 0, 15)
  differs = (code != (acc[..., None] >= thresholds).sum(-1)).any(axis=0)
  assert wrong.any()
  np.testing.assert_array_equal(wrong, differs)


def test_no_requantizer_for_more_levels_than_a_byte_holds():
  weights, slope, offset = weights_and_fold(4)
  levels = np.arange(-254, 256)
  reach = find_reach(weights, smallest=0, largest=255)
  arguments = {"slope": slope, "offset": offset, "weights": weights, "reach": reach}
  thresholds = exact_thresholds(slope, offset, levels, bound=10**6)
  found = solve_requantizer(thresholds, levels, max_input=255, zero_point=256, **arguments)
  assert found is None


def test_reach_of_an_image():
  weights = np.array([[2, -1], [-3, -1]], np.int8).reshape(1, 1, 2, 2)
  reach = find_reach(weights, smallest=-73, largest=182)
  assert reach.low.tolist() == [2 * -73 - 3 * 182, -2 * 182]
  assert reach.high.tolist() == [2 * 182 + 3 * 73, 2 * 73]


@pytest.mark.parametrize(
  ("num_bits", "values"),
  [(1, (-1, 1)), (2, (-1, 0, 1)), (3, range(-3, 4)), (4, range(-7, 8)), (8, range(-127, 128))],
)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 64])
def test_packing(num_bits, values, size):
  rng = np.random.default_rng(size)
  codes = rng.choice(np.array(list(values), np.int8), (size, 1))
  packed = pack_codes(codes, num_bits)
  assert packed.dtype == np.uint8
  assert packed.size == -(-size * storage_bits(num_bits) // 8)
  np.testing.assert_array_equal(unpack_codes(packed, num_bits, codes.shape), codes)


def test_packed_bits_by_hand():
  assert pack_codes(np.array([1, -1, -1, 1, 1, -1, -1, -1, 1], np.int8), 1).tolist() == [25, 1]
  assert pack_codes(np.array([-1, 0, 1], np.int8), 2).tolist() == [1 + 4 * 2 + 16 * 3]
  assert pack_codes(np.array([-7, 7], np.int8), 4).tolist() == [1 + 16 * 15]


@pytest.mark.parametrize(("codes", "num_bits"), [([0], 1), ([2], 2), ([8], 4)])
def test_codes_that_do_not_fit_are_refused(codes, num_bits):
  with pytest.raises(ValueError, match="codes must fit"):
    pack_codes(np.array(codes, np.int8), num_bits)


def test_split_int16():
  values = np.array([-32639, -32512, -129, -128, -1, 0, 1, 127, 128, 255, 32639], np.int16)
  high, low = split_int16(values)
  assert high.dtype == low.dtype == np.int8
  np.testing.assert_array_equal(256 * high.astype(np.int32) + low, values)
