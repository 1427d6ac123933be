"""Convolution and pooling by shape, against the plain operations they replace."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax.models.ops import conv_general_dilated, global_average_pool, max_pool

_NHWC = ("NHWC", "HWIO", "NHWC")


def _draw(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _uses_convolution(fn, *args):
  return "conv_general_dilated" in str(jax.make_jaxpr(fn)(*args))


class ConvTest(parameterized.TestCase):
  # (height, width), kernel, stride, padding, expect the matrix product
  @parameterized.named_parameters(
    ("map_1x1", (1, 1), 3, 1, 1, True),
    ("map_2x2", (2, 2), 3, 1, 1, True),
    ("map_1x5", (1, 5), 3, 1, 1, True),
    ("map_3x2", (3, 2), 3, 1, 1, True),
    ("map_3x3", (3, 3), 3, 1, 1, False),
    ("kernel_5_on_4x4", (4, 4), 5, 1, 2, True),
    ("kernel_5_on_1x1", (1, 1), 5, 1, 2, True),
    ("kernel_7_stride_2", (5, 4), 7, 2, 3, True),
    ("stride_2_to_2x2", (4, 4), 3, 2, 1, True),
    ("stride_2_from_3x3", (3, 3), 3, 2, 1, True),
    ("stride_2_to_4x4", (8, 8), 3, 2, 1, False),
    ("kernel_1_stride_2", (4, 3), 1, 2, 0, True),
    ("same", (2, 2), 3, 2, "SAME", True),
    ("valid", (5, 5), 4, 1, "VALID", True),
    ("uneven_padding", (2, 1), 3, 2, ((0, 2), (4, 1)), True),
    ("tap_gap", (1, 1), 5, 2, 3, True),
  )
  def test_equals_lax_with_gradients(self, size, kernel, stride, padding, as_product):
    x, weights = _draw((3, *size, 5)), _draw((kernel, kernel, 5, 6), seed=1)
    pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    options = {"window_strides": (stride, stride), "padding": pads, "dimension_numbers": _NHWC}
    ours = functools.partial(conv_general_dilated, **options)
    plain = functools.partial(jax.lax.conv_general_dilated, **options)

    @jax.jit
    def compare(x, weights):
      y, pull = jax.vjp(plain, x, weights)
      actual, pull_actual = jax.vjp(ours, x, weights)
      upstream = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
      return (actual, *pull_actual(upstream)), (y, *pull(upstream))

    for actual, expected in zip(*compare(x, weights), strict=True):
      # Sums of at most 245 products of O(1) numbers in another order.
      np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)
    self.assertEqual(_uses_convolution(ours, x, weights), not as_product)

  @parameterized.named_parameters(
    ("grouped", (2, 2), {"feature_group_count": 2}),
    ("dilated", (2, 2), {"kernel_dilation": 2}),
    ("input_dilated", (2, 2), {"input_dilation": 2, "padding": 1}),
    ("empty_output", (2, 2), {"padding": "VALID"}),
    ("one_dimension", (2,), {}),
    ("three_dimensions", (2, 2, 2), {}),
  )
  def test_passes_on_what_it_does_not_cover(self, size, options):
    plain = nn.Conv(4, (3,) * len(size), **options)
    ours = plain.copy(conv_general_dilated=conv_general_dilated)
    x = jax.ShapeDtypeStruct((2, *size, 4), jnp.float32)
    params = jax.eval_shape(plain.init, jax.random.key(0), x)
    traced = jax.make_jaxpr(plain.apply)(params, x)
    self.assertEqual(str(jax.make_jaxpr(ours.apply)(params, x)), str(traced))

  def test_inside_a_flax_convolution(self):
    plain = nn.Conv(6, (3, 3), strides=2, padding=1, dtype=jnp.bfloat16)
    ours = plain.copy(conv_general_dilated=conv_general_dilated)
    x = _draw((2, 3, 4, 4, 5))  # two batch axes
    params = {"params": {"kernel": _draw((3, 3, 5, 6), seed=1), "bias": jnp.zeros(6)}}
    self.assertFalse(_uses_convolution(ours.apply, params, x))
    actual, expected = jax.jit(lambda x: (ours.apply(params, x), plain.apply(params, x)))(x)
    self.assertEqual((actual.shape, actual.dtype), ((2, 3, 2, 2, 6), jnp.bfloat16))
    # Values up to 20, each rounded to bfloat16's 8 bits, some after sums in another order.
    np.testing.assert_allclose(
      np.asarray(actual, np.float32), np.asarray(expected, np.float32), rtol=1e-2, atol=0.1
    )


class MaxPoolTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("even", (4, 6), 2, 2, 0),
    ("odd", (7, 5), 2, 2, 0),
    ("smallest", (2, 3), 2, 2, 0),
    ("imagenet_even", (8, 6), 3, 2, 1),
    ("imagenet_odd", (7, 9), 3, 2, 1),
    ("imagenet_1x1", (1, 1), 3, 2, 1),
  )
  def test_equals_flax_max_pool_without_ties(self, size, window, stride, padding):
    x = _draw((3, *size, 4))
    pads = ((padding, padding),) * 2

    def ours(x):
      return max_pool(x, window=window, stride=stride, padding=padding)

    def plain(x):
      return nn.max_pool(x, (window, window), strides=(stride, stride), padding=pads)

    @jax.jit
    def compare(x):
      y, pull = jax.vjp(plain, x)
      actual, pull_actual = jax.vjp(ours, x)
      upstream = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
      return actual, y, pull_actual(upstream)[0], pull(upstream)[0]

    actual, expected, actual_grad, expected_grad = compare(x)
    np.testing.assert_array_equal(actual, expected)
    # Overlapping windows add up to four upstream values in another order.
    np.testing.assert_allclose(actual_grad, expected_grad, rtol=1e-6, atol=1e-6)

  def test_ties_share_the_whole_gradient(self):
    # Window 0: two of four tie; window 1: all tie; window 2: no tie.
    rows = jnp.array([[3.0, 1.0, 2.0, 2.0, 0.0, 4.0], [3.0, 0.0, 2.0, 2.0, 1.0, 2.0]])
    upstream = jnp.array([1.0, 5.0, 7.0])
    grad = jax.grad(
      lambda x: jnp.sum(max_pool(x[None, :, :, None], window=2, stride=2)[0, 0, :, 0] * upstream)
    )(rows)
    expected = [[0.5, 0.0, 1.25, 1.25, 0.0, 7.0], [0.5, 0.0, 1.25, 1.25, 0.0, 0.0]]
    np.testing.assert_array_equal(grad, np.array(expected))

  @parameterized.named_parameters(("window_2", 2, 0), ("window_3", 3, 1))
  def test_keeps_the_gradient_sum_on_quantized_maps(self, window, padding):
    x = jnp.round(_draw((2, 9, 9, 3)))

    @jax.jit
    def pull_back(x):
      y, pull = jax.vjp(lambda x: max_pool(x, window=window, stride=2, padding=padding), x)
      upstream = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
      return pull(upstream)[0], upstream

    grad, upstream = pull_back(x)
    # Up to 25 numbers a channel, halved and added again in float32.
    np.testing.assert_allclose(np.sum(grad, (1, 2)), np.sum(upstream, (1, 2)), atol=2e-5)

  def test_nan_survives_and_dtype_is_kept(self):
    x = jnp.array([[0.0, jnp.nan], [1.0, 2.0]], jnp.bfloat16)[None, :, :, None]
    pooled = max_pool(x, window=2, stride=2)
    self.assertTrue(bool(jnp.isnan(pooled).all()))
    self.assertEqual(max_pool(x, window=3, stride=2, padding=1).dtype, jnp.bfloat16)

  def test_window_that_does_not_fit_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "window 2 for a map of 1x4"):
      max_pool(jnp.zeros((1, 1, 4, 1)), window=2, stride=2)


class GlobalAveragePoolTest(parameterized.TestCase):
  def test_sums_bfloat16_in_float32(self):
    # 257 ones and a zero-size rest: bfloat16 counts only to 256.
    x = jnp.ones((1, 1, 257, 2), jnp.bfloat16)
    mean = global_average_pool(x)
    self.assertEqual(mean.dtype, jnp.float32)
    np.testing.assert_array_equal(mean, np.ones((1, 2)))
