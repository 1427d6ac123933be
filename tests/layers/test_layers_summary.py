"""Tests of summarize_layers: shapes, bytes and multiply-accumulates against hand counts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl.testing import parameterized

from bcgd_jax.layers import (
  LayerRow,
  QuantConv,
  QuantDense,
  QuantReLU,
  summarize_layers,
  totals,
  weight_quantizers,
)
from bcgd_jax.numerics import Binary, Ternary, Uniform, quantize_params

_KEY = jax.random.key(0)


class _Network(nn.Module):
  """A layer of each kind; `train` is required."""

  activation_bits: int | None = 4

  @nn.compact
  def __call__(self, x, train):
    conv = QuantConv(8, (3, 3), strides=2, quantizer=Binary(), name="conv")
    x = conv(x)
    x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    x = QuantReLU(self.activation_bits, name="relu")(x)
    quantizer = Ternary(channel_axis=-1)
    x = QuantConv(
      6, (3, 1), feature_group_count=2, padding="VALID", use_bias=False, quantizer=quantizer,
      name="grouped",
    )(x)  # fmt: skip
    x = x + self.param("shift", nn.initializers.zeros, (1, 1, 1, 6))
    x = x.reshape(x.shape[0], -1)
    x = QuantDense(5, quantizer=Uniform(4), name="hidden")(x)
    return nn.Dense(3, name="last")(x)


class _Step(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    x = QuantDense(4, quantizer=Binary(), name="dense")(x)
    return QuantReLU(2, name="relu")(x), None


class _Scan(nn.Module):
  """A stack of 5, or 5 uses of one layer; the whole used `uses` times."""

  shared: bool
  uses: int = 1

  @nn.compact
  def __call__(self, x):
    if self.shared:
      lift = {"variable_broadcast": "params", "split_rngs": {"params": False}}
    else:
      lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    stack = nn.scan(nn.remat(_Step), length=5, **lift)(name="stack")
    for _ in range(self.uses):
      x, _ = stack(x, None)
    return x


class SummarizeLayersTest(parameterized.TestCase):
  @parameterized.parameters(4, None)
  def test_rows_of_a_network(self, activation_bits):
    x = jax.ShapeDtypeStruct((1, 8, 6, 4), jnp.float32)
    rows = summarize_layers(_Network(activation_bits), x, rngs=_KEY, train=True)
    alpha_bytes = 0 if activation_bits is None else 4
    expected = (
      # 3*3*4*8 = 288 weights of one bit, one scale, 8 biases; 4*3 pixels.
      LayerRow(
        path="conv", kind="conv", shape=(3, 3, 4, 8), output_shape=(1, 4, 3, 8), weight_bits=1,
        activation_bits=None, float_bytes=(288 + 8) * 4, quantized_bytes=288 // 8 + 4 + 8 * 4,
        macs=4 * 3 * 3 * 3 * 4 * 8,
      ),
      LayerRow(
        path="norm", kind="norm", shape=(8,), output_shape=(1, 4, 3, 8), weight_bits=None,
        activation_bits=None, float_bytes=2 * 8 * 4, quantized_bytes=2 * 8 * 4, macs=0,
      ),
      LayerRow(
        path="relu", kind="activation", shape=(), output_shape=(1, 4, 3, 8), weight_bits=None,
        activation_bits=activation_bits, float_bytes=alpha_bytes, quantized_bytes=alpha_bytes,
        macs=0,
      ),
      # 3*1*(8/2)*6 = 72 weights of two bits, six scales; 2*3 pixels.
      LayerRow(
        path="grouped", kind="conv", shape=(3, 1, 4, 6), output_shape=(1, 2, 3, 6), weight_bits=2,
        activation_bits=None, float_bytes=72 * 4, quantized_bytes=18 + 6 * 4,
        macs=2 * 3 * 3 * 1 * (8 // 2) * 6,
      ),
      # 36 * 5 weights of four bits, one scale, 5 biases.
      LayerRow(
        path="hidden", kind="dense", shape=(36, 5), output_shape=(1, 5), weight_bits=4,
        activation_bits=None, float_bytes=185 * 4, quantized_bytes=90 + 4 + 5 * 4, macs=36 * 5,
      ),
      LayerRow(
        path="last", kind="dense", shape=(5, 3), output_shape=(1, 3), weight_bits=None,
        activation_bits=None, float_bytes=18 * 4, quantized_bytes=18 * 4, macs=15,
      ),
      LayerRow(
        path="", kind="other", shape=(1, 1, 1, 6), output_shape=(), weight_bits=None,
        activation_bits=None, float_bytes=24, quantized_bytes=24, macs=0,
      ),
    )  # fmt: skip
    self.assertEqual(rows, expected)
    self.assertEqual(totals(rows).macs, sum(row.macs for row in expected))

  @parameterized.named_parameters(
    ("network", _Network(), (2, 8, 6, 4), {"train": False}),
    ("stack", _Scan(shared=False), (2, 4), {}),
    ("root", QuantDense(7, quantizer=Ternary()), (2, 3), {}),
  )
  def test_bytes_are_those_of_the_parameters(self, model, shape, kwargs):
    x = jnp.ones(shape)
    params = jax.eval_shape(lambda: model.init(_KEY, x, **kwargs))["params"]
    quantizers = weight_quantizers(model, x, rngs=_KEY, **kwargs)
    total = totals(summarize_layers(model, x, rngs=_KEY, **kwargs))
    self.assertEqual(total.float_bytes, sum(4 * leaf.size for leaf in jax.tree.leaves(params)))
    stored = []
    jax.eval_shape(lambda p: stored.append(quantize_params(p, quantizers).num_bytes), params)
    self.assertEqual([total.quantized_bytes], stored)
    self.assertLess(total.quantized_bytes, total.float_bytes)

  @parameterized.parameters((False, 1), (False, 2), (True, 1), (True, 3))
  def test_every_trip_and_use_counts_for_macs(self, shared, uses):
    rows = summarize_layers(_Scan(shared, uses), jnp.ones((1, 4)), rngs=_KEY)
    self.assertEqual([row.path for row in rows], ["stack/dense", "stack/relu"])
    copies = 1 if shared else 5
    self.assertEqual(rows[0].macs, uses * 5 * 4 * 4)
    self.assertEqual(rows[0].shape, (4, 4) if shared else (5, 4, 4))
    self.assertEqual(rows[0].float_bytes, copies * 20 * 4)
    # 16 bits of codes, a scale and 4 biases for each copy
    self.assertEqual(rows[0].quantized_bytes, copies * (2 + 4 + 16))
    self.assertEqual(rows[1].activation_bits, 2)

  def test_macs_of_a_batch_and_of_extra_axes(self):
    model = QuantDense(5, quantizer=Binary())
    for shape, macs in (((3,), 15), ((2, 3), 30), ((2, 7, 3), 14 * 15)):
      (row,) = summarize_layers(model, jnp.ones(shape), rngs=_KEY)
      self.assertEqual(row.macs, macs)
      self.assertEqual(row.output_shape, (*shape[:-1], 5))

  def test_lanes_of_vmap(self):
    class Model(nn.Module):
      @nn.compact
      def __call__(self, x):
        lift = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
        return nn.vmap(QuantDense, **lift)(5, name="dense")(x)

    (row,) = summarize_layers(Model(), jnp.ones((7, 3)), rngs=_KEY)
    self.assertEqual((row.macs, row.float_bytes), (7 * 15, 20 * 4))

  def test_three_dimensional_convolution(self):
    model = QuantConv(6, (3, 3, 2), use_bias=False, quantizer=Binary())
    (row,) = summarize_layers(model, jnp.ones((1, 4, 5, 6, 2)), rngs=_KEY)
    self.assertEqual(row.macs, 4 * 5 * 6 * 3 * 3 * 2 * 2 * 6)

  def test_traces_kept_by_nn_jit_do_not_hide_a_layer(self):
    model, x = nn.jit(_Step)(), jnp.ones((1, 4))
    model.init(_KEY, x)
    for _ in range(2):
      rows = summarize_layers(model, x, rngs=_KEY)
      self.assertEqual([(r.path, r.macs) for r in rows], [("dense", 16), ("relu", 0)])

  def test_nothing_is_allocated(self):
    x = jax.ShapeDtypeStruct((1, 2**24), jnp.float32)
    (row,) = summarize_layers(QuantDense(2**24, quantizer=Binary()), x, rngs=_KEY)
    self.assertEqual(row.macs, 2**48)
    self.assertEqual(row.quantized_bytes, 2**45 + 4 + 4 * 2**24)
