"""Tests of QuantConv, QuantDense and QuantReLU."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.layers import QuantConv, QuantDense, QuantReLU

_KEY = jax.random.key(0)

_CONVS = (
  ("plain_2d", (2, 6, 5, 4), {"kernel_size": (3, 3)}),
  ("strides_padding", (2, 7, 6, 4), {"kernel_size": (3, 2), "strides": 2, "padding": (2, (1, 3))}),
  ("groups", (2, 6, 5, 4), {"kernel_size": (3, 3), "feature_group_count": 2}),
  ("no_bias", (2, 6, 5, 4), {"kernel_size": (3, 3), "padding": "VALID", "use_bias": False}),
  ("dilated", (2, 7, 7, 4), {"kernel_size": (2, 3), "kernel_dilation": (2, 2)}),
  ("plain_3d", (2, 4, 5, 3, 2), {"kernel_size": (3, 3, 3)}),
  ("groups_3d", (2, 4, 5, 3, 2), {"kernel_size": (2, 3, 1), "feature_group_count": 2}),
)


def _normal(shape, seed=1, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _random_variables(layer, x):
  """Variables of the layer's shapes, filled by NumPy: initialisers compile for every shape."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(layer.init, _KEY, x)
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


def _project_kernels(variables, quantizer):
  """Replaces every kernel by Q(kernel): the plain layer on it is the oracle of the quantized."""

  def project(path, leaf):
    return quantizer(leaf) if path[-1].key == "kernel" else leaf

  return jax.tree_util.tree_map_with_path(project, variables)


def _value_and_gradients(layer, variables, x):
  def loss(variables, x):
    y = layer.apply(variables, x)
    return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(variables, x)


class ConvTest(parameterized.TestCase):
  @parameterized.named_parameters(*_CONVS)
  def test_against_flax_layer(self, shape, options):
    x = _normal(shape)
    quantizer = numerics.Binary(channel_axis=-1)
    flax, floating = nn.Conv(8, **options), QuantConv(8, **options)
    quantized = QuantConv(8, quantizer=quantizer, **options)
    variables = _random_variables(flax, x)
    for layer in (floating, quantized):
      chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(layer.init, _KEY, x), jax.eval_shape(flax.init, _KEY, x)
      )
    chex.assert_trees_all_equal(  # bit for bit
      _value_and_gradients(floating, variables, x), _value_and_gradients(flax, variables, x)
    )
    at = _project_kernels(variables, quantizer)
    chex.assert_trees_all_close(  # 1e-5: sums of some 100 terms, compiled in two programs
      _value_and_gradients(quantized, variables, x),
      _value_and_gradients(flax, at, x),
      rtol=1e-5,
      atol=1e-5,
    )

  def test_initial_values_are_those_of_flax(self):
    x = _normal((1, 4, 4, 3))
    ours = QuantConv(8, (3, 3), quantizer=numerics.Binary()).init(_KEY, x)
    chex.assert_trees_all_equal(ours, nn.Conv(8, (3, 3)).init(_KEY, x))

  def test_positional_arguments_are_those_of_flax(self):
    layer = QuantConv(8, (3, 3), (2, 2), quantizer=numerics.Binary())
    self.assertEqual((layer.features, layer.kernel_size, layer.strides), (8, (3, 3), (2, 2)))

  def test_mask_with_quantizer_is_an_error(self):
    layer = QuantConv(8, (1, 1), mask=jnp.ones((1, 1, 4, 8)), quantizer=numerics.Binary())
    with self.assertRaisesRegex(ValueError, "mask must be None"):
      layer.init(_KEY, _normal((1, 2, 2, 4)))
    layer.clone(quantizer=None).init(_KEY, _normal((1, 2, 2, 4)))


class DenseTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("none", None),
    ("binary", numerics.Binary()),
    ("uniform", numerics.Uniform(4)),
  )
  def test_against_flax_layer(self, quantizer):
    x = _normal((3, 2, 5))
    ours, flax = QuantDense(7, quantizer=quantizer), nn.Dense(7)
    variables = flax.init(_KEY, x)
    chex.assert_trees_all_equal(ours.init(_KEY, x), variables)
    actual = _value_and_gradients(ours, variables, x)
    if quantizer is None:
      chex.assert_trees_all_equal(actual, _value_and_gradients(flax, variables, x))
      return
    at = _project_kernels(variables, quantizer)
    expected = _value_and_gradients(flax, at, x)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)  # two programs

  def test_only_the_kernel_is_quantized(self):
    layer = QuantDense(2, quantizer=numerics.Binary())
    variables = {"params": {"kernel": jnp.zeros((3, 2)), "bias": jnp.array([0.25, -3.0])}}
    np.testing.assert_array_equal(layer.apply(variables, jnp.ones(3)), [0.25, -3.0])


@dataclasses.dataclass(frozen=True)
class _OnlyFloat32(numerics.Binary):
  """Fails on any other dtype than float32."""

  def __call__(self, w):
    chex.assert_type(w, jnp.float32)
    return super().__call__(w)


class MixedPrecisionTest(parameterized.TestCase):
  @parameterized.named_parameters(("conv", True), ("dense", False))
  def test_quantizer_sees_float32_under_bfloat16_compute(self, conv):
    quantizer = _OnlyFloat32()
    common = {"dtype": jnp.bfloat16}
    if conv:
      ours = QuantConv(8, (3, 3), quantizer=quantizer, **common)
      theirs, x = nn.Conv(8, (3, 3), **common), _normal((2, 5, 5, 3))
    else:
      ours = QuantDense(8, quantizer=quantizer, **common)
      theirs, x = nn.Dense(8, **common), _normal((2, 5))
    variables = _random_variables(ours, x)
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
    (_, output), (grads, _) = _value_and_gradients(ours, variables, x)
    chex.assert_type(output, jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(grads), jnp.float32)
    at = _project_kernels(variables, numerics.Binary())
    (_, expected), _ = _value_and_gradients(theirs, at, x)
    chex.assert_trees_all_equal(output, expected)


class QuantReLUTest(parameterized.TestCase):
  @parameterized.parameters(*range(1, 9))
  def test_owns_one_scalar_with_the_default_step(self, num_bits):
    x = _normal((4, 3))
    variables = QuantReLU(num_bits).init(_KEY, x)
    self.assertEqual(list(variables["params"]), ["alpha"])
    alpha = variables["params"]["alpha"]
    chex.assert_shape(alpha, ())
    chex.assert_type(alpha, jnp.float32)
    self.assertEqual(alpha, np.float32(numerics.DEFAULT_ALPHA[num_bits]))

  def test_alpha_init(self):
    variables = QuantReLU(2, alpha_init=0.75).init(_KEY, _normal((4,)))
    self.assertEqual(variables["params"]["alpha"], 0.75)

  def test_without_bits_is_relu_without_parameter(self):
    x = _normal((4, 3))
    self.assertEqual(QuantReLU(None).init(_KEY, x), {})
    chex.assert_trees_all_equal(QuantReLU(None).apply({}, x), nn.relu(x))

  @parameterized.parameters(
    (1e-4, "relu", "three_valued"), (0.5, "clipped", "exact"), (7.0, "clipped", "three_valued")
  )
  def test_clamp_acts_on_the_value_and_not_on_the_gradient(self, alpha, ste, alpha_proxy):
    x = jnp.linspace(-2.0, 30.0, 41)
    weight = _normal((41,), seed=2)
    layer = QuantReLU(2, ste=ste, alpha_proxy=alpha_proxy)

    def ours(x, alpha):
      return jnp.sum(weight * layer.apply({"params": {"alpha": alpha}}, x))

    def expected(x, alpha):
      y = numerics.quantized_relu(x, alpha, num_bits=2, ste=ste, alpha_proxy=alpha_proxy)
      return jnp.sum(weight * y)

    clamped = jnp.float32(min(max(alpha, 1e-3), 5.0))
    actual = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(x, jnp.float32(alpha))
    # 1e-6: the second program may sum in another order.
    chex.assert_trees_all_close(
      actual, jax.jit(jax.value_and_grad(expected, argnums=(0, 1)))(x, clamped), rtol=1e-6
    )
    self.assertNotEqual(actual[1][1], 0.0, "the gradient must survive the clamp")

  def test_a_callable_estimator_reaches_the_function(self):
    layer = QuantReLU(2, ste=lambda x, alpha, num_levels: jnp.full_like(x, 3.0))
    variables = layer.init(_KEY, jnp.ones(4))
    gradient = jax.grad(lambda x: jnp.sum(layer.apply(variables, x)))(_normal((4,)))
    np.testing.assert_array_equal(gradient, np.full(4, 3.0))

  def test_bfloat16_input(self):
    x = _normal((64,), dtype=jnp.bfloat16)
    layer = QuantReLU(4)
    variables = layer.init(_KEY, x)
    chex.assert_type(variables["params"]["alpha"], jnp.float32)
    chex.assert_type(layer.apply(variables, x), jnp.bfloat16)

  @parameterized.named_parameters(
    ("bits_low", 0, None, r"num_bits must be in \[1, 8\], got 0"),
    ("bits_high", 9, None, r"num_bits must be in \[1, 8\], got 9"),
    ("alpha_low", 2, 1e-4, "alpha_init must be in .* got 0.0001"),
    ("alpha_high", 2, 5.5, "alpha_init must be in .* got 5.5"),
    ("alpha_nan", 2, float("nan"), "alpha_init must be in .* got nan"),
  )
  def test_bad_arguments(self, num_bits, alpha_init, message):
    with self.assertRaisesRegex(ValueError, message):
      QuantReLU(num_bits, alpha_init=alpha_init).init(_KEY, jnp.ones(3))


class _Block(nn.Module):
  """One quantized layer of width 4, as a body for lifted transformations."""

  quantizer: numerics.WeightQuantizer | None

  @nn.compact
  def __call__(self, x, _=None):
    x = QuantDense(4, quantizer=self.quantizer, name="dense")(x)
    return QuantReLU(3, name="relu")(x), None


class _Lifted(nn.Module):
  """A block under a lifted transformation; under vmap, lanes have their own parameters."""

  how: str
  quantizer: numerics.WeightQuantizer | None

  @nn.compact
  def __call__(self, x):
    lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    if self.how == "scan":
      block = nn.scan(_Block, length=3, **lift)
    elif self.how == "scan_of_remat":
      block = nn.scan(nn.remat(_Block), length=3, **lift)
    elif self.how == "vmap":
      block = nn.vmap(_Block, in_axes=None, axis_size=3, **lift)
    else:
      block = nn.remat(_Block) if self.how == "remat" else _Block
    block = block(self.quantizer, name="block")
    x, _ = block(x, None) if self.how != "vmap" else block(x)
    return block(x, None)[0] if self.how == "shared" else x


class LiftedTest(parameterized.TestCase):
  """Layers under lifted transformations against a loop over the plain layer."""

  def _loop(self, params, x, how):
    def block(params, x):
      kernel = numerics.Binary()(params["dense"]["kernel"])
      x = x @ kernel + params["dense"]["bias"][None, :]
      return numerics.quantized_relu(x, params["relu"]["alpha"], num_bits=3)

    if how in ("remat", "shared"):
      x = block(params, x)
      return block(params, x) if how == "shared" else x
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(3)]
    if how == "vmap":
      return jnp.stack([block(layer, x) for layer in layers])
    for layer in layers:
      x = block(layer, x)
    return x

  @parameterized.parameters("scan", "scan_of_remat", "vmap", "remat", "shared")
  def test_values_and_gradients(self, how):
    x = _normal((2, 4))
    model = _Lifted(how, numerics.Binary())
    variables = _random_variables(model, x)
    block = variables["params"]["block"]
    block["relu"]["alpha"] = jnp.full_like(block["relu"]["alpha"], 0.4)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      variables, jax.eval_shape(_Lifted(how, None).init, _KEY, x)
    )
    (_, output), (grads, _) = _value_and_gradients(model, variables, x)
    # 1e-6: a compiled loop may fuse a product and a sum.
    expected = jax.jit(self._loop, static_argnums=2)(block, x, how)
    np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-6)
    quantizer = numerics.Binary()
    if block["dense"]["kernel"].ndim == 3:
      quantizer = jax.vmap(quantizer)
    at = _project_kernels(variables, quantizer)
    _, (expected, _) = _value_and_gradients(_Lifted(how, None), at, x)
    chex.assert_trees_all_close(grads, expected, rtol=1e-6, atol=1e-6)
    self.assertTrue(np.any(grads["params"]["block"]["dense"]["kernel"]))
