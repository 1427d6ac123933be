"""Weight quantizers: formulas, corner cases, groups, and the straight-through derivative."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax import numerics

MODES = (("eager", lambda f: f), ("jitted", jax.jit))
QUANTIZERS = (
  ("binary", numerics.Binary()),
  *((rule, numerics.Ternary(rule)) for rule in ("lloyd", "twn", "twn_all", "sort")),
  ("uniform3", numerics.Uniform(3)),
  ("uniform8", numerics.Uniform(8)),
  ("uniform4_lloyd3", numerics.Uniform(4, lloyd_steps=3)),
)
EACH_MODE = tuple(
  (f"{mode}_{name}", transform, q) for mode, transform in MODES for name, q in QUANTIZERS
)
# Relative error of a float32 sum over the 315 weights drawn here: XLA on CPU adds them one by one,
# each with a rounding of 6e-8; those of equal terms all go the same way.
STATISTIC_RTOL = 1e-5


@functools.cache
def _make_encoder(transform, q):
  """One transformed function a quantizer, so that tests on equal shapes share a compilation."""
  return transform(q.encode)


def _draw_weights(shape=(3, 3, 7, 5), seed=0):
  return np.random.default_rng(seed).normal(0.0, 0.3, shape).astype(np.float32)


def _assign_uniform(magnitude, step, max_code):
  """Code of one magnitude, by the bins ((2k-1)d, (2k+1)d], d = step / 2."""
  d = step / 2
  for k in range(max_code, 0, -1):
    if magnitude > (2 * k - 1) * d:
      return k
  return 0


def _reference_uniform(w, num_bits, lloyd_steps):
  """Scalar float64 Uniform: signed codes and scale."""
  flat = [float(v) for v in w.ravel()]
  max_code = 2 ** (num_bits - 1) - 1
  scale = 2 * max(abs(v) for v in flat) / (2**num_bits - 1)
  for _ in range(lloyd_steps):
    codes = [_assign_uniform(abs(v), scale, max_code) for v in flat]
    scale = sum(abs(v) * q for v, q in zip(flat, codes, strict=True)) / sum(q * q for q in codes)
  signed = [q if v > 0 else -q for v, q in zip(flat, codes, strict=True)]
  return np.reshape(signed, w.shape), scale


class FormulaTest(parameterized.TestCase):
  @parameterized.named_parameters(*MODES)
  def test_binary(self, transform):
    w = _draw_weights()
    encoded = transform(numerics.Binary().encode)(w)
    np.testing.assert_array_equal(encoded.codes, np.where(w > 0, 1, -1))
    np.testing.assert_allclose(
      encoded.scale, np.abs(w.astype(np.float64)).mean(keepdims=True), rtol=STATISTIC_RTOL
    )
    self.assertEqual((encoded.codes.dtype, encoded.scale.dtype), (jnp.int8, jnp.float32))

  @parameterized.named_parameters(*MODES)
  def test_binary_codes_are_never_zero(self, transform):
    codes = transform(numerics.Binary().encode)(np.float32([0.0, -0.0, 2.0, -1.0])).codes
    np.testing.assert_array_equal(codes, [1, 1, 1, -1])

  @parameterized.named_parameters(
    (f"{mode}_{bits}_bits_{steps}_steps", transform, bits, steps)
    for mode, transform in MODES
    for bits, steps in ((3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (4, 2), (8, 5))
  )
  def test_uniform(self, transform, bits, steps):
    w = _draw_weights()
    encoded = _make_encoder(transform, numerics.Uniform(bits, lloyd_steps=steps))(w)
    codes, scale = _reference_uniform(w, bits, steps)
    np.testing.assert_array_equal(encoded.codes, codes)
    np.testing.assert_allclose(encoded.scale.item(), scale, rtol=STATISTIC_RTOL)

  @parameterized.named_parameters(
    (f"{mode}_{bits}_bits", transform, bits) for mode, transform in MODES for bits in range(3, 9)
  )
  def test_uniform_ties_go_to_the_lower_level(self, transform, bits):
    # max|w| = 2^bits - 1 makes the first step exactly 2, so that odd weights are ties: 2k+1 -> k.
    top = 2**bits - 1
    w = np.resize(np.arange(-top, top + 1), 511).astype(np.float32)
    codes = _make_encoder(transform, numerics.Uniform(bits))(w).codes
    np.testing.assert_array_equal(codes, np.sign(w) * (np.abs(w) // 2))

  @parameterized.named_parameters(*MODES)
  def test_more_lloyd_steps_reduce_the_error(self, transform):
    w = np.random.default_rng(1).standard_normal(2000).astype(np.float32)
    errors = [
      float(np.mean((transform(numerics.Uniform(4, lloyd_steps=steps))(w) - w) ** 2))
      for steps in (1, 5, 20)
    ]
    self.assertEqual(errors, sorted(errors, reverse=True))
    # Lloyd's optimum for 2000 Gaussian weights is near 0.014; one step stays near the grid that the
    # largest weight sets, far above it.
    self.assertLess(errors[-1], 0.0150)
    self.assertGreater(errors[0], 0.0180)


class CornerCaseTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH_MODE)
  def test_zeros_decode_to_zeros(self, transform, q):
    for axis in (None, -1):
      quantizer = dataclasses.replace(q, channel_axis=axis)
      for zero in (0.0, -0.0):
        encoded = _make_encoder(transform, quantizer)(np.full((3, 3, 7, 5), zero, np.float32))
        np.testing.assert_array_equal(encoded.decode(jnp.float32), 0.0)

  @parameterized.named_parameters(*EACH_MODE)
  def test_non_finite_value_poisons_its_group_only(self, transform, q):
    channelwise = _make_encoder(transform, dataclasses.replace(q, channel_axis=-1))
    for bad in (np.nan, np.inf, -np.inf):
      w = _draw_weights()
      w[1, 1, 2, 3] = bad
      self.assertTrue(np.all(np.isnan(_make_encoder(transform, q)(w).decode(jnp.float32))))
      np.testing.assert_array_equal(
        np.isnan(channelwise(w).decode(jnp.float32)), np.broadcast_to(np.arange(5) == 3, w.shape)
      )

  @parameterized.named_parameters(*EACH_MODE)
  def test_overflow_decodes_to_nan(self, transform, q):
    w = np.full((3, 3, 7, 5), 3e38, np.float32)
    self.assertTrue(np.all(np.isnan(_make_encoder(transform, q)(w).decode(jnp.float32))))

  @parameterized.named_parameters(*EACH_MODE)
  def test_single_weight_is_kept(self, transform, q):
    for value in (0.75, -3.0):
      w = np.full((1, 1), value, np.float32)
      # One weight and its one level: the fit is exact up to the roundings of s = |w| k / k^2.
      np.testing.assert_allclose(
        _make_encoder(transform, q)(w).decode(jnp.float32), w, rtol=3e-7, strict=True
      )

  @parameterized.named_parameters(*EACH_MODE)
  def test_bfloat16_uses_float32_statistics(self, transform, q):
    w = jnp.asarray(_draw_weights(), jnp.bfloat16)
    encoded = _make_encoder(transform, q)(w)
    wide = _make_encoder(transform, q)(w.astype(jnp.float32))
    self.assertEqual(encoded.scale.dtype, jnp.float32)
    np.testing.assert_array_equal(encoded.codes, wide.codes)
    np.testing.assert_array_equal(encoded.scale, wide.scale)
    self.assertEqual(q(w).dtype, jnp.bfloat16)

  @parameterized.named_parameters(*EACH_MODE)
  def test_float64_statistics(self, transform, q):
    with jax.enable_x64(True):
      w = np.random.default_rng(3).standard_normal((3, 3, 7, 5))
      encoded = _make_encoder(transform, q)(w)
      again = _make_encoder(transform, q)(encoded.decode(jnp.float64))
    self.assertEqual((encoded.codes.dtype, encoded.scale.dtype), (jnp.int8, jnp.float64))
    if q != numerics.Ternary("twn_all"):  # shrinks, see test_idempotent
      # As STATISTIC_RTOL, with roundings of 1e-16: float32 anywhere on the way would show.
      np.testing.assert_allclose(again.scale, encoded.scale, rtol=1e-13)

  @parameterized.named_parameters(*EACH_MODE)
  def test_idempotent(self, transform, q):
    for axis in (None, -1):
      quantizer = dataclasses.replace(q, channel_axis=axis)
      first = _make_encoder(transform, quantizer)(_draw_weights())
      again = _make_encoder(transform, quantizer)(first.decode(jnp.float32))
      np.testing.assert_array_equal(again.codes, first.codes)
      # "twn_all" divides by all weights, so that each application shrinks the scale again.
      kept = np.mean(np.abs(first.codes), axis=None if axis is None else (0, 1, 2), keepdims=True)
      shrink = kept if q == numerics.Ternary("twn_all") else 1.0
      np.testing.assert_allclose(again.scale, first.scale * shrink, rtol=STATISTIC_RTOL)


class GroupTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH_MODE)
  def test_channel_axis_equals_one_call_a_channel(self, transform, q):
    w = _draw_weights()
    encoded = _make_encoder(transform, dataclasses.replace(q, channel_axis=-1))(w)
    self.assertEqual(encoded.scale.shape, (1, 1, 1, 5))
    for channel in range(5):
      alone = _make_encoder(transform, q)(w[..., channel : channel + 1])
      self.assertEqual(alone.scale.shape, (1, 1, 1, 1))
      np.testing.assert_array_equal(encoded.codes[..., channel], alone.codes[..., 0])
      np.testing.assert_allclose(
        encoded.scale[..., channel], alone.scale[..., 0], rtol=STATISTIC_RTOL
      )

  @parameterized.named_parameters(*EACH_MODE)
  def test_vmapped_equals_one_call_an_index(self, transform, q):
    w = _draw_weights((2, 2, 3, 3, 7, 5))
    stacked = _make_encoder(transform, numerics.Vmapped(q, num_axes=2))(w)
    self.assertEqual(stacked.scale.shape, (2, 2, 1, 1, 1, 1))
    for index in np.ndindex(2, 2):
      alone = _make_encoder(transform, q)(w[index])
      np.testing.assert_array_equal(stacked.codes[index], alone.codes)
      np.testing.assert_allclose(stacked.scale[index], alone.scale, rtol=STATISTIC_RTOL)

  def test_vmapped_keeps_bits_and_checks_axes(self):
    stacked = numerics.Vmapped(numerics.Uniform(4), num_axes=2)
    self.assertEqual(stacked.num_bits, 4)
    self.assertEqual(stacked, numerics.Vmapped(numerics.Uniform(4), num_axes=2))
    with self.assertRaisesRegex(ValueError, "at least num_axes=2 axes"):
      stacked(np.ones(3, np.float32))
    with self.assertRaisesRegex(ValueError, "num_axes must be at least 1, got 0"):
      numerics.Vmapped(numerics.Binary(), num_axes=0)


class InterfaceTest(parameterized.TestCase):
  @parameterized.named_parameters(*QUANTIZERS)
  def test_static_hashable_protocol(self, q):
    self.assertIsInstance(q, numerics.WeightQuantizer)
    self.assertEqual(hash(q), hash(dataclasses.replace(q)))
    w = _draw_weights()
    encoded = jax.jit(lambda quantizer, w: quantizer.encode(w), static_argnums=0)(q, w)
    expected = _make_encoder(jax.jit, q)(w)
    jax.tree.map(np.testing.assert_array_equal, encoded, expected)

  def test_scalar_weight(self):
    for _, q in QUANTIZERS:
      np.testing.assert_allclose(q(np.float32(-0.5)), -0.5, rtol=3e-7)  # as for a single weight

  def test_num_bits(self):
    self.assertEqual([q.num_bits for _, q in QUANTIZERS], [1, 2, 2, 2, 2, 3, 8, 4])

  def test_encoded_is_a_pytree(self):
    encoded = jax.jit(lambda w: jax.tree.map(lambda a: a, numerics.Binary().encode(w)))(
      np.ones(3, np.float32)
    )
    self.assertIsInstance(encoded, numerics.Encoded)
    self.assertLen(jax.tree.leaves(encoded), 2)
    self.assertEqual(encoded.decode(jnp.bfloat16).dtype, jnp.bfloat16)

  @parameterized.named_parameters(
    ("bits_low", lambda: numerics.Uniform(2), ValueError, "got 2; for 1 bit use Binary"),
    ("bits_high", lambda: numerics.Uniform(9), ValueError, r"num_bits must be in \[3, 8\], got 9"),
    ("bits_float", lambda: numerics.Uniform(4.0), TypeError, "num_bits must be a Python int"),
    ("steps", lambda: numerics.Uniform(4, lloyd_steps=0), ValueError, "lloyd_steps must be at"),
    ("rule", lambda: numerics.Ternary("best"), ValueError, "lloyd, twn, twn_all, sort, got 'best'"),
    ("axis_binary", lambda: numerics.Binary(0), ValueError, "channel_axis must be None"),
    ("axis_ternary", lambda: numerics.Ternary("twn", 1), ValueError, "channel_axis must be None"),
    ("axis_uniform", lambda: numerics.Uniform(3, 1, 2), ValueError, "channel_axis must be None"),
    ("integers", lambda: numerics.Binary()(np.ones(3, np.int32)), TypeError, "int32"),
    ("empty", lambda: numerics.Ternary()(np.ones((0, 3), np.float32)), ValueError, "one element"),
    ("scalar", lambda: numerics.Binary(-1)(np.float32(1.0)), ValueError, "at least one axis"),
  )
  def test_wrong_arguments(self, call, error, message):
    with self.assertRaisesRegex(error, message):
      call()


class StraightThroughTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH_MODE)
  def test_value_is_q_and_derivative_identity(self, transform, q):
    w = _draw_weights()
    upstream = np.random.default_rng(5).standard_normal(w.shape).astype(np.float32)

    def apply(w, cotangent):
      value, vjp = jax.vjp(numerics.straight_through(q), w)
      return value, vjp(cotangent)[0], numerics.straight_through(q)(w)

    value, gradient, plain = transform(apply)(w, upstream)
    expected = _make_encoder(transform, q)(w).decode(jnp.float32)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(gradient, upstream)

  def test_any_function_and_dtype(self):
    w = jnp.asarray([0.2, 1.7], jnp.bfloat16)
    value, vjp = jax.vjp(numerics.straight_through(jnp.round), w)
    np.testing.assert_array_equal(value, jnp.round(w))
    self.assertEqual(vjp(value)[0].dtype, jnp.bfloat16)

  def test_forward_mode_is_refused(self):
    w = np.ones(3, np.float32)
    with self.assertRaises(TypeError):
      jax.jvp(numerics.straight_through(numerics.Binary()), (w,), (w,))
