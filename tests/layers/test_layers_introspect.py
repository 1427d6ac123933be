"""Tests of weight_quantizers: what is read off a model is what the model does."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax.layers import QuantConv, QuantDense, weight_quantizers
from bcgd_jax.numerics import Binary, Ternary, Uniform, Vmapped, make_projection

_KEY = jax.random.key(0)
_STACK = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}


class _Network(nn.Module):
  """Conv, batch norm, dropout and two dense layers, one of them float; `train` is required."""

  quantized: bool = True

  @nn.compact
  def __call__(self, x, train):
    binary, uniform = (Binary(), Uniform(4)) if self.quantized else (None, None)
    x = QuantConv(4, (3, 3), quantizer=binary, name="conv")(x)
    x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    x = x.reshape(x.shape[0], -1)
    x = QuantDense(5, quantizer=uniform, name="hidden")(x)
    return QuantDense(3, quantizer=None, name="last")(x)


class _Step(nn.Module):
  quantizer: Any
  name_in_tree: str = "dense"

  @nn.compact
  def __call__(self, x, _=None):
    return QuantDense(4, quantizer=self.quantizer, name=self.name_in_tree)(x), None


class _Stack(nn.Module):
  """Square layers stacked by scan: along any axis the shapes agree."""

  quantizer: Any = None
  axis: int = 0
  length: int = 4

  @nn.compact
  def __call__(self, x, _=None):
    lift = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}}
    steps = nn.scan(_Step, length=self.length, **lift)(self.quantizer, name="steps")
    return steps(x, None)[0], None


class _StackOfStacks(nn.Module):
  quantizer: Any = None

  @nn.compact
  def __call__(self, x):
    outer = nn.scan(nn.remat(_Stack), length=2, **_STACK)(self.quantizer, name="outer")
    return outer(x, None)[0]


class _Twice(nn.Module):
  """A stack that is used twice."""

  quantizer: Any = None

  @nn.compact
  def __call__(self, x):
    stack = nn.scan(_Step, length=3, **_STACK)(self.quantizer, name="steps")
    x, _ = stack(x, None)
    return stack(x, None)[0]


class _SharedWeightsScan(nn.Module):
  quantizer: Any = None

  @nn.compact
  def __call__(self, x):
    lift = {"variable_broadcast": "params", "split_rngs": {"params": False}}
    return nn.scan(_Step, length=3, **lift)(self.quantizer, name="steps")(x, None)[0]


class _Lanes(nn.Module):
  quantizer: Any = None

  @nn.compact
  def __call__(self, x):
    own = nn.vmap(QuantDense, in_axes=None, axis_size=3, **_STACK)
    x = own(4, quantizer=self.quantizer, name="own")(x)
    lift = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
    return nn.vmap(QuantDense, **lift)(4, quantizer=self.quantizer, name="same")(x)


class _Tied(nn.Module):
  """A module used twice, whose kernel is also read directly, as tied decoders do."""

  quantizer: Any = None

  @nn.compact
  def __call__(self, x):
    dense = nn.remat(QuantDense)(4, quantizer=self.quantizer, name="dense")
    x = dense(dense(x))
    return x @ self.variables["params"]["dense"]["kernel"].T


class _Conflict(nn.Module):
  first: Any
  second: nn.Module

  @nn.compact
  def __call__(self, x):
    first = QuantDense(4, quantizer=self.first, name="first")
    x = first(x)
    nn.share_scope(self.second, first)
    return self.second(x)


class _Mapped(nn.Module):
  """A quantized layer whose parameters are stored in another form than it sees."""

  to_stored: Any
  to_seen: Any

  @nn.compact
  def __call__(self, x):
    mapped = nn.map_variables(
      QuantDense,
      "params",
      trans_in_fn=self.to_seen,
      trans_out_fn=self.to_stored,
      init=True,
      mutable=True,
    )
    return mapped(3, quantizer=Binary(), name="dense")(x)


_LIFTED = (
  ("scan", _Stack, {"steps/dense/kernel": 1}),
  ("nested_scan_of_remat", _StackOfStacks, {"outer/steps/dense/kernel": 2}),
  ("stack_used_twice", _Twice, {"steps/dense/kernel": 1}),
  ("scan_with_shared_weights", _SharedWeightsScan, {"steps/dense/kernel": 0}),
  ("vmap", _Lanes, {"own/kernel": 1, "same/kernel": 0}),
  ("remat_of_shared_module", _Tied, {"dense/kernel": 0}),
)


class WeightQuantizersTest(parameterized.TestCase):
  def test_reads_a_network_with_a_required_flag(self):
    x = jnp.zeros((2, 6, 6, 3))
    rngs = {"params": _KEY, "dropout": jax.random.key(1)}
    expected = {"conv/kernel": Binary(), "hidden/kernel": Uniform(4)}
    self.assertEqual(weight_quantizers(_Network(), x, True, rngs=rngs), expected)
    self.assertEqual(weight_quantizers(_Network(), x, rngs=_KEY, train=False), expected)
    self.assertEqual(weight_quantizers(_Network(quantized=False), x, False, rngs=_KEY), {})

  @parameterized.named_parameters(*_LIFTED)
  def test_lifted_modules(self, module, stacked_axes):
    quantizer = Ternary(channel_axis=-1)
    expected = {
      path: Vmapped(quantizer, num_axes) if num_axes else quantizer
      for path, num_axes in stacked_axes.items()
    }
    self.assertEqual(weight_quantizers(module(quantizer), jnp.ones((3, 4)), rngs=_KEY), expected)

  @parameterized.named_parameters(*(case for case in _LIFTED if case[1] is not _Tied))
  def test_projected_float_twin_is_the_quantized_model(self, module, stacked_axes):
    del stacked_axes
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    model = module(Binary())
    shapes = jax.eval_shape(model.init, _KEY, x)
    variables = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
    project = make_projection(weight_quantizers(model, x, rngs=_KEY))

    @jax.jit
    def apply_both(variables, x):
      projected = {"params": project(variables["params"])}
      return module(None).apply(projected, x), model.apply(variables, x)

    actual, expected = apply_both(variables, x)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)  # fusion may differ

  def test_model_that_is_a_layer(self):
    layer = QuantDense(4, quantizer=Ternary())
    self.assertEqual(weight_quantizers(layer, jnp.ones(3), rngs=_KEY), {"kernel": Ternary()})

  def test_nothing_is_allocated(self):
    layer = QuantDense(2**24, quantizer=Binary())  # a kernel of 2^50 bytes
    x = jax.ShapeDtypeStruct((1, 2**24), jnp.float32)
    self.assertEqual(weight_quantizers(layer, x, rngs=_KEY), {"kernel": Binary()})

  def test_partitioned_parameters(self):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    layer = QuantDense(4, kernel_init=init, quantizer=Binary())
    self.assertEqual(weight_quantizers(layer, jnp.ones(3), rngs=_KEY), {"kernel": Binary()})

  def test_traces_kept_by_nn_jit_do_not_hide_a_layer(self):
    model = nn.jit(_Step)(Binary())
    x = jnp.ones((3, 4))
    model.init(_KEY, x)
    for _ in range(2):
      self.assertEqual(weight_quantizers(model, x, rngs=_KEY), {"dense/kernel": Binary()})

  def test_leaves_the_model_as_it_was(self):
    x = jnp.ones((3, 4))
    model = _Stack(Binary())
    before = jax.eval_shape(model.init, _KEY, x)
    weight_quantizers(model, x, rngs=_KEY)
    chex.assert_trees_all_equal(before, jax.eval_shape(model.init, _KEY, x))

  @parameterized.parameters(1, -1)
  def test_other_stacking_axis_is_an_error(self, axis):
    with self.assertRaisesRegex(ValueError, r"along axis 0, got axes \(\d,\) for 'steps/dense"):
      weight_quantizers(_Stack(Binary(), axis=axis), jnp.ones((3, 4)), rngs=_KEY)

  def test_axis_0_counted_from_the_end(self):
    class Model(nn.Module):
      @nn.compact
      def __call__(self, x):
        lift = {"variable_axes": {"params": -3}, "split_rngs": {"params": True}}
        dense = nn.vmap(QuantDense, in_axes=None, axis_size=4, **lift)
        return dense(4, use_bias=False, quantizer=Binary(), name="dense")(x)

    quantizers = weight_quantizers(Model(), jnp.ones((3, 4)), rngs=_KEY)
    self.assertEqual(quantizers, {"dense/kernel": Vmapped(Binary(), 1)})

  @parameterized.named_parameters(
    ("other", QuantDense(4, quantizer=Ternary()), r"Ternary\(.*\) in QuantDense 'second'"),
    ("none", QuantDense(4), "None in QuantDense 'second'"),
    ("plain", nn.Dense(4), "None in Dense 'second'"),
  )
  def test_two_quantizers_of_one_parameter_are_an_error(self, second, message):
    message = rf"Binary\(.*\) in QuantDense 'first' and {message} for 'first/kernel'"
    with self.assertRaisesRegex(ValueError, message):
      weight_quantizers(_Conflict(Binary(), second), jnp.ones((3, 4)), rngs=_KEY)

  def test_two_equal_quantizers_of_one_parameter(self):
    model = _Conflict(Binary(), QuantDense(4, quantizer=Binary()))
    quantizers = weight_quantizers(model, jnp.ones((3, 4)), rngs=_KEY)
    self.assertEqual(quantizers, {"first/kernel": Binary()})

  def test_kernel_stored_in_another_shape_is_an_error(self):
    def transpose(params):
      return jax.tree.map(lambda leaf: leaf.T, params)

    with self.assertRaisesRegex(ValueError, r"got \(3, 4\) for 'dense/kernel' where .* \(4, 3\)"):
      weight_quantizers(_Mapped(transpose, transpose), jnp.ones((2, 4)), rngs=_KEY)

  def test_kernel_stored_under_another_name_is_an_error(self):
    def store(tree):
      params = tree.get("params", {})
      return {"params": {"k": params["kernel"], "b": params["bias"]}} if params else tree

    def see(tree):
      params = tree.get("params", {})
      return {"params": {"kernel": params["k"], "bias": params["b"]}} if params else tree

    with self.assertRaisesRegex(ValueError, "got none at 'dense/kernel'"):
      weight_quantizers(_Mapped(store, see), jnp.ones((2, 4)), rngs=_KEY)
