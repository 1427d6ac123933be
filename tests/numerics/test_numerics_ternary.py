"""The four ternary rules against scalar float64 references, brute force, and the exact error."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.numerics import ternary_rules

MODES = (("eager", lambda f: f), ("jitted", jax.jit))
NUM_WEIGHTS = 1_000_000
DISTRIBUTIONS = {
  "gaussian": lambda rng: rng.standard_normal(NUM_WEIGHTS),
  "laplace": lambda rng: rng.laplace(size=NUM_WEIGHTS),
  "uniform": lambda rng: rng.uniform(-1.0, 1.0, NUM_WEIGHTS),
}


def _draw(name, seed):
  return DISTRIBUTIONS[name](np.random.default_rng(seed)).astype(np.float32)


def _exact_error(w):
  """Smallest possible squared error of ternary weights, in float64."""
  ordered = np.sort(np.abs(w.astype(np.float64)))[::-1]
  sums = np.cumsum(ordered)
  return np.sum(ordered**2) - np.max(sums**2 / np.arange(1, w.size + 1))


def _measure_error(w, encoded):
  decoded = np.asarray(encoded.codes, np.float64) * np.asarray(encoded.scale, np.float64)
  return np.sum((w.astype(np.float64) - decoded) ** 2)


def _reference(rule, w):
  """Threshold rules in scalar Python: signed codes and scale."""
  magnitudes = [abs(float(v)) for v in w]
  threshold = 0.7 * sum(magnitudes) / len(magnitudes)
  if rule == "twn_all":
    threshold = min(threshold, 100.0)
    kept = [a >= threshold for a in magnitudes]
    scale = sum(a for a, k in zip(magnitudes, kept, strict=True) if k) / len(magnitudes)
  else:
    for _ in range(5 if rule == "lloyd" else 0):
      selected = [a for a in magnitudes if a > threshold]
      threshold = sum(selected) / len(selected) / 2
    selected = [a for a in magnitudes if a > threshold]
    kept = [a > threshold for a in magnitudes]
    scale = sum(selected) / len(selected)
  return [(1 if v > 0 else -1) if k else 0 for v, k in zip(w, kept, strict=True)], scale


def _enumerate_patterns(num_weights):
  patterns = np.array(list(itertools.product((-1, 0, 1), repeat=num_weights)), np.float64)
  return patterns[np.any(patterns != 0, axis=1)]  # [3^N - 1, N]


class ThresholdRuleTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f"{mode}_{rule}", transform, rule)
    for mode, transform in MODES
    for rule in ("lloyd", "twn", "twn_all")
  )
  def test_matches_scalar_reference(self, transform, rule):
    # Large weights reach the cap of 100 in "twn_all".
    for seed, deviation in ((0, 0.3), (1, 1e-3), (2, 400.0)):
      w = np.random.default_rng(seed).normal(0.0, deviation, 777).astype(np.float32)
      encoded = transform(numerics.Ternary(rule).encode)(w)
      codes, scale = _reference(rule, w)
      np.testing.assert_array_equal(encoded.codes, codes)
      # Float32 sums of 777 terms: a few roundings of 6e-8.
      np.testing.assert_allclose(encoded.scale.item(), scale, rtol=1e-6)

  @parameterized.named_parameters(*MODES)
  def test_scale_of_twn_all_is_shrunk_by_the_kept_fraction(self, transform):
    w = _draw("gaussian", 0)
    kept = np.abs(np.asarray(transform(numerics.Ternary("twn_all").encode)(w).codes)).mean()
    scale = transform(numerics.Ternary("twn_all").encode)(w).scale.item()
    # Closed forms for a standard normal: d = 0.7 E|w|, P(|w| > d) and E|w| 1{|w| > d}; 57.6 % and
    # 0.683. The standard error of 10^6 draws is below 1e-3.
    threshold = 0.7 * math.sqrt(2 / math.pi)
    self.assertAlmostEqual(kept, math.erfc(threshold / math.sqrt(2)), delta=2e-3)
    partial_mean = math.sqrt(2 / math.pi) * math.exp(-(threshold**2) / 2)
    self.assertAlmostEqual(scale, partial_mean, delta=2e-3)


class LloydErrorTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f"{mode}_{name}", transform, name) for mode, transform in MODES for name in DISTRIBUTIONS
  )
  def test_within_stated_error_of_exact(self, transform, name):
    w = _draw(name, 0)
    error = _measure_error(w, transform(numerics.Ternary("lloyd").encode)(w))
    exact = _exact_error(w)
    self.assertLessEqual(error / exact - 1.0, 7e-5)  # the figure in Ternary's docstring
    # The error of the least-squares optimum cannot be beaten, rounding (1e-7) aside.
    self.assertGreaterEqual(error / exact - 1.0, -1e-6)


class SortTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f"{mode}_{size}", transform, size) for mode, transform in MODES for size in range(1, 8)
  )
  def test_equals_brute_force(self, transform, size):
    w = np.random.default_rng(size).standard_normal((300, size)).astype(np.float32)
    encoded = transform(numerics.Vmapped(numerics.Ternary("sort"), 1).encode)(w)
    patterns = _enumerate_patterns(size)
    products = w.astype(np.float64) @ patterns.T  # [300, 3^N - 1]
    counts = np.sum(patterns**2, axis=1)
    gains = np.where(products > 0, products**2 / counts, 0.0)
    best = np.argmax(gains, axis=1)
    # Two patterns closer than this are a tie in float32; the draws have none.
    ordered = np.sort(gains, axis=1)
    self.assertGreater(np.min(1.0 - ordered[:, -2] / ordered[:, -1]), 1e-6)
    np.testing.assert_array_equal(encoded.codes, patterns[best])
    scales = products[np.arange(300), best] / counts[best]
    np.testing.assert_allclose(encoded.scale[:, 0], scales, rtol=3e-7)  # two float32 roundings

  @parameterized.named_parameters(*MODES)
  def test_ties_lose_nothing(self, transform):
    # Integer weights have equal magnitudes and equal objectives: compare errors, not codes.
    w = np.random.default_rng(9).integers(-3, 4, (500, 6)).astype(np.float32)
    encoded = transform(numerics.Vmapped(numerics.Ternary("sort"), 1).encode)(w)
    patterns = _enumerate_patterns(6)
    gains = np.maximum(w.astype(np.float64) @ patterns.T, 0.0) ** 2 / np.sum(patterns**2, axis=1)
    exact = np.sum(w.astype(np.float64) ** 2, axis=1) - gains.max(axis=1)
    decoded = np.asarray(encoded.decode(jnp.float32), np.float64)
    # Magnitudes up to 3 in float32: the squares carry an absolute error of about 1e-6 each.
    np.testing.assert_allclose(np.sum((w - decoded) ** 2, axis=1), exact, atol=1e-5)
    for row, codes in zip(w, np.asarray(encoded.codes), strict=True):
      kept = np.abs(row[codes != 0])
      self.assertEqual(np.sum(np.abs(row) >= kept.min()) if kept.size else 0, kept.size)

  @parameterized.named_parameters(
    (f"{mode}_{name}", transform, name)
    for mode, transform in MODES
    for name in ("gaussian", "laplace")
  )
  def test_accurate_for_many_weights(self, transform, name):
    w = _draw(name, 4)
    encoded = transform(numerics.Ternary("sort").encode)(w)
    # The objective is flat at its maximum: float32 (6e-8 of 5 times the error) may pick a
    # neighbouring count, which costs no more than that.
    self.assertLess(abs(_measure_error(w, encoded) / _exact_error(w) - 1.0), 1e-6)
    kept = np.abs(w.astype(np.float64))[np.asarray(encoded.codes) != 0]
    np.testing.assert_allclose(encoded.scale.item(), kept.mean(), rtol=2e-7)

  @parameterized.named_parameters(*MODES)
  def test_prefix_sums_are_compensated(self, transform):
    values = np.random.default_rng(0).uniform(0.1, 0.9, (100_003, 2)).astype(np.float32)
    sums = np.asarray(transform(ternary_rules.sum_prefixes)(values))
    exact = np.cumsum(values.astype(np.float64), axis=0)
    # Correct rounding is off by half a unit in the last place; without the compensation some of
    # these sums are off by more than one unit.
    self.assertLess(np.max(np.abs(sums - exact) / np.spacing(sums)), 0.501)
    for size in (1, 2, 3, 4, 5):  # around the powers of two that bound the number of passes
      np.testing.assert_array_equal(
        transform(ternary_rules.sum_prefixes)(np.ones((size, 1), np.float32))[:, 0],
        np.arange(1, size + 1),
      )
