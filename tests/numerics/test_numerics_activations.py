"""The quantized ReLU against scalar Python: values, coarse derivatives, residuals, errors."""

import bisect
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax import numerics

MODES = (("eager", lambda f: f), ("jitted", jax.jit))
BITS = tuple((f"{bits}_bits", bits) for bits in range(1, 9))
EACH_MODE = tuple(
  (f"{mode}_{name}", transform, bits) for mode, transform in MODES for name, bits in BITS
)
ESTIMATORS = ("clipped", "relu", "identity")
PROXIES = ("three_valued", "two_valued", "exact")
# The smallest normal float32: XLA on CPU flushes the subnormal neighbours of 0 to 0.
TINY = np.float32(np.finfo(np.float32).tiny)
# As many as 8 bits need: 4 at 0, 256 thresholds, 2 * 255 neighbours, 2 * 256 between, 4 beyond.
NUM_PROBES = 4 + 256 + 2 * 255 + 2 * 256 + 4


def _draw_alphas(count=24):
  """Steps over the whole clamping range, none of them special, and a few that are."""
  low, high = np.log(numerics.ALPHA_RANGE)
  drawn = np.exp(np.random.default_rng(0).uniform(low, high, count))
  special = [*numerics.ALPHA_RANGE, 0.1, 1 / 3, 1.0, *numerics.DEFAULT_ALPHA.values()]
  return np.concatenate([drawn, special]).astype(np.float32)


def _list_thresholds(alpha, bits):
  """fl32(k * alpha) for k = 0..L; code counts those below L, the last one bounds the clipping."""
  return np.arange(2**bits, dtype=np.float32) * np.float32(alpha)


def _list_probes(alpha, bits):
  """Zero, each threshold and its float32 neighbours, points between and beyond.

  Repeated up to one length for all bit widths, so that eager runs share their compilations.
  """
  thresholds = _list_thresholds(alpha, bits)
  neighbours = [np.nextafter(thresholds[1:], np.float32(side)) for side in (-np.inf, np.inf)]
  between = thresholds + np.float32(alpha) * np.float32(0.5)
  beyond = thresholds[-1] * np.float32([1.5, 1e3])
  probes = np.concatenate(
    [
      [np.float32(0.0), -np.float32(0.0), TINY, -TINY],
      thresholds,
      *neighbours,
      between,
      -between,
      beyond,
      [np.float32(np.inf), np.float32(-np.inf)],
    ]
  ).astype(np.float32)
  return np.resize(probes, NUM_PROBES)


def _compute_code(x, thresholds):
  """Number of thresholds k = 0..L-1 below x; bisect_left counts the entries < x."""
  return bisect.bisect_left(thresholds, x, hi=len(thresholds) - 1)


def _differentiate_input(x, thresholds, ste):
  if ste == "identity":
    return 1.0
  if ste == "relu":
    return 1.0 if x > 0 else 0.0
  return 1.0 if 0 < x <= thresholds[-1] else 0.0


def _differentiate_alpha(x, thresholds, proxy):
  top = len(thresholds) - 1
  if x <= 0:
    return 0.0
  if x > thresholds[-1]:
    return float(top)
  inside = {"three_valued": (top + 1) / 2, "two_valued": 0.0, "exact": _compute_code(x, thresholds)}
  return float(inside[proxy])


def _differentiate_each(x, alpha, **options):
  """d sum / dx and d y_i / d alpha for every element i: alpha's sum undone by vmap."""

  def apply(x_i, alpha):
    return numerics.quantized_relu(x_i, alpha, **options)

  return jax.vmap(jax.grad(apply, argnums=(0, 1)), in_axes=(0, None))(x, alpha)


class ValueTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH_MODE)
  def test_exact_at_every_threshold_and_idempotent(self, transform, bits):
    def apply(x, alpha):
      once = numerics.quantized_relu(x, alpha, num_bits=bits)
      return once, numerics.quantized_relu(once, alpha, num_bits=bits)

    apply_all = transform(jax.vmap(apply))
    alphas = _draw_alphas()
    probes = np.stack([_list_probes(alpha, bits) for alpha in alphas])
    once, twice = apply_all(probes, alphas)
    for alpha, xs, ys in zip(alphas, probes, np.asarray(once), strict=True):
      thresholds = _list_thresholds(alpha, bits)
      codes = [_compute_code(x, thresholds.tolist()) for x in xs.tolist()]
      np.testing.assert_array_equal(ys, thresholds[codes])
    np.testing.assert_array_equal(twice, once)

  @parameterized.named_parameters(*EACH_MODE)
  def test_differentiation_leaves_the_value_unchanged(self, transform, bits):
    x = np.random.default_rng(1).normal(0.5, 1.0, 5000).astype(np.float32)
    alpha = np.float32(numerics.DEFAULT_ALPHA[bits])

    def apply(x):
      return numerics.quantized_relu(x, alpha, num_bits=bits)

    np.testing.assert_array_equal(transform(apply)(x), transform(lambda x: jax.vjp(apply, x)[0])(x))

  @parameterized.named_parameters(
    (f"{mode}_{bits}_bits", transform, bits) for mode, transform in MODES for bits in (1, 4, 8)
  )
  def test_bfloat16_is_compared_in_float32(self, transform, bits):
    every = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16.dtype)
    wide = every.astype(np.float32)
    normal = np.isfinite(wide) & ((np.abs(wide) >= TINY) | (wide == 0))
    every, wide = every[normal], wide[normal]
    alpha = np.float32(0.1)  # not a bfloat16
    thresholds = _list_thresholds(alpha, bits)
    y = transform(lambda x: numerics.quantized_relu(x, alpha, num_bits=bits))(every)
    expected = thresholds[np.searchsorted(thresholds[:-1], wide, side="left")]
    self.assertEqual(y.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16.dtype))

  @parameterized.named_parameters(*MODES)
  def test_float64_is_compared_in_float64(self, transform):
    with jax.enable_x64(True):
      alpha = np.float64(np.float32(0.1))
      thresholds = np.arange(16) * alpha
      x = np.concatenate([np.nextafter(thresholds[1:], s) for s in (-np.inf, np.inf)])
      # A float32 alpha beside float64 x: widened, and its cotangent is rounded back.
      apply = transform(
        jax.value_and_grad(
          lambda a, x: jnp.sum(numerics.quantized_relu(x, a, num_bits=4) * jnp.cos(x))
        )
      )
      value, gradient = apply(np.float32(0.1), x)
      y = thresholds[np.searchsorted(thresholds[:-1], x, side="left")]
      # Sums of 30 float64 terms; a float32 step anywhere would show at 1e-8.
      np.testing.assert_allclose(value, np.sum(y * np.cos(x)), rtol=1e-13)
      self.assertEqual((value.dtype, gradient.dtype), (jnp.float64, jnp.float32))

  @parameterized.named_parameters(*MODES)
  def test_nan_and_single_element(self, transform):
    apply = transform(lambda x: numerics.quantized_relu(x, jnp.float32(0.5), num_bits=2))
    np.testing.assert_array_equal(apply(np.float32([np.nan, 0.7])), [np.nan, 1.0])
    np.testing.assert_array_equal(apply(np.float32(9.0)), 1.5)
    self.assertTrue(np.isnan(apply(jnp.full((1,), jnp.nan, jnp.bfloat16))[0]))
    gradient = transform(jax.grad(lambda x: jnp.nansum(apply(x))))(np.float32([np.nan, 0.7]))
    np.testing.assert_array_equal(gradient, [0.0, 1.0])


class DerivativeTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH_MODE)
  def test_every_estimator_and_proxy(self, transform, bits):
    pairs = [(ste, proxy) for ste in ESTIMATORS for proxy in PROXIES]

    def differentiate(x, alpha):
      return {
        pair: _differentiate_each(x, alpha, num_bits=bits, ste=pair[0], alpha_proxy=pair[1])
        for pair in pairs
      }

    differentiate = transform(differentiate)
    for alpha in (np.float32(numerics.DEFAULT_ALPHA[bits]), np.float32(1 / 3)):
      probes = _list_probes(alpha, bits)
      thresholds = _list_thresholds(alpha, bits).tolist()
      for (ste, proxy), (in_x, in_alpha) in differentiate(probes, alpha).items():
        with self.subTest(ste=ste, proxy=proxy, alpha=alpha):
          np.testing.assert_array_equal(
            in_x, [_differentiate_input(x, thresholds, ste) for x in probes.tolist()]
          )
          np.testing.assert_array_equal(
            in_alpha, [_differentiate_alpha(x, thresholds, proxy) for x in probes.tolist()]
          )

  @parameterized.named_parameters(*EACH_MODE)
  def test_callables(self, transform, bits):
    top = 2**bits - 1
    seen = []

    def ste(x, alpha, num_levels):
      seen.append((num_levels, alpha.shape))
      return jnp.exp(-jnp.abs(x)) * alpha

    def proxy(code, num_levels):
      seen.append((num_levels, code.dtype))
      return code * code

    alpha = np.float32(0.3)
    probes = _list_probes(alpha, bits)
    probes = np.where(np.isinf(probes), TINY, probes)  # exp(-inf) times a cotangent is no test
    thresholds = _list_thresholds(alpha, bits).tolist()
    in_x, in_alpha = transform(
      functools.partial(_differentiate_each, num_bits=bits, ste=ste, alpha_proxy=proxy)
    )(probes, alpha)
    self.assertEqual(seen, [(top, ()), (top, jnp.float32)])
    # One exp and one product in float32 each: a few roundings of 6e-8.
    np.testing.assert_allclose(in_x, np.exp(-np.abs(probes)) * alpha, rtol=1e-6)
    codes = [
      top + 1 if x > thresholds[-1] else _compute_code(x, thresholds) for x in probes.tolist()
    ]
    np.testing.assert_array_equal(in_alpha, np.square(codes))

  @parameterized.named_parameters(
    (f"{mode}_{dtype.__name__}", transform, dtype)
    for mode, transform in MODES
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  def test_alpha_cotangent_is_the_plain_float32_sum(self, transform, dtype):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(0.5, 1.0, (8, 16, 16, 8)), dtype)
    upstream = jnp.asarray(rng.standard_normal(x.shape), dtype)

    def pull_back(x, alpha, upstream):
      _, vjp = jax.vjp(lambda x, a: numerics.quantized_relu(x, a, num_bits=2), x, alpha)
      return vjp(upstream)

    in_x, in_alpha = transform(pull_back)(x, jnp.float32(0.65), upstream)
    self.assertEqual((in_x.dtype, in_alpha.dtype), (dtype, jnp.float32))
    wide = np.asarray(x, np.float64)
    proxy = np.where(wide <= 0, 0.0, np.where(wide > np.float32(0.65) * np.float32(3), 3.0, 2.0))
    terms = np.asarray(upstream, np.float64) * proxy
    # 16384 terms added in float32; in bfloat16 the sum would be off by a per cent of its terms.
    np.testing.assert_allclose(in_alpha, terms.sum(), atol=1e-6 * np.abs(terms).sum())

  @parameterized.named_parameters(
    ("three_bits", 3, jnp.uint8), ("seven_bits", 7, jnp.uint8), ("eight_bits", 8, jnp.uint16)
  )
  def test_backward_pass_keeps_one_small_code(self, bits, dtype):
    x = np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32)
    for ste in ESTIMATORS:
      _, vjp = jax.vjp(
        lambda x, a, ste=ste: numerics.quantized_relu(x, a, num_bits=bits, ste=ste),
        x,
        jnp.float32(0.1),
      )
      kept = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(vjp)]
      self.assertEqual(kept, [((4, 5), dtype)])

  def test_only_a_callable_estimator_keeps_x(self):
    x = np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32)
    _, vjp = jax.vjp(
      lambda x, a: numerics.quantized_relu(x, a, num_bits=2, ste=lambda x, a, n: jnp.cos(x)),
      x,
      jnp.float32(0.1),
    )
    kept = {(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(vjp)}
    self.assertEqual(kept, {((4, 5), "uint8"), ((4, 5), "float32"), ((), "float32")})

  def test_forward_mode_is_refused(self):
    x = np.ones(3, np.float32)
    with self.assertRaises(TypeError):
      jax.jvp(lambda x: numerics.quantized_relu(x, jnp.float32(1.0), num_bits=2), (x,), (x,))


class ArgumentTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("bits_low", {"num_bits": 0}, ValueError, r"num_bits must be in \[1, 8\], got 0"),
    ("bits_high", {"num_bits": 9}, ValueError, "use jax.nn.relu"),
    ("bits_float", {"num_bits": 2.0}, TypeError, "num_bits must be a Python int, got 2.0"),
    ("ste", {"ste": "pwl"}, ValueError, "ste must be one of clipped, relu, identity or a callable"),
    ("proxy", {"alpha_proxy": "mean"}, ValueError, "three_valued, two_valued, exact or a callable"),
    ("alpha_shape", {"alpha": np.ones(3, np.float32)}, ValueError, r"alpha must be a scalar.*\(3,"),
    ("alpha_dtype", {"alpha": np.int32(1)}, TypeError, "alpha must be floating-point"),
    ("x_dtype", {"x": np.ones(3, np.int32)}, TypeError, "x must be floating-point, got dtype int3"),
  )
  def test_wrong_arguments(self, changes, error, message):
    arguments = {"x": np.ones(3, np.float32), "alpha": np.float32(1.0), "num_bits": 2, **changes}
    with self.assertRaisesRegex(error, message):
      numerics.quantized_relu(arguments.pop("x"), arguments.pop("alpha"), **arguments)

  @parameterized.named_parameters(*BITS)
  def test_default_alpha_minimises_the_rounding_error_of_half_gaussian_data(self, bits):
    # Midpoint rule on (0, 8); the density beyond is below 1e-14.
    x = (np.arange(200_000) + 0.5) * (8.0 / 200_000)
    density = np.exp(-(x**2) / 2)
    top = 2**bits - 1

    def measure(alpha):
      codes = np.clip(np.round(x / alpha), 0, top)
      return np.sum(density * (x - alpha * codes) ** 2)

    alpha = numerics.DEFAULT_ALPHA[bits]
    low, high = measure(alpha * 0.98), measure(alpha * 1.02)
    # The published constants of 1, 2 and 4 bits lie up to 0.8 % beside the optimum.
    self.assertLess(measure(alpha), min(low, high))
