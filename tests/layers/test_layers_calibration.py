"""Tests of calibrate and of the least-squares fit behind it."""

import math
import statistics

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.layers import QuantConv, QuantDense, QuantReLU, calibrate
from bcgd_jax.layers.staircase import fit_alpha

_KEY = jax.random.key(0)

# Least-squares steps of the ceil staircase on half-Gaussian data, by numerical integration of
# -2 a sum_k pdf(k a) + a^2 sum_k (2k + 1) (1 - cdf(k a)).
_HALF_GAUSSIAN = {1: 0.79788, 2: 0.48657, 3: 0.28931, 4: 0.16664}


def _gaussian_quantiles(num_points):
  """Midpoint quantiles of N(0, 1): sums over them are integrals without sampling noise."""
  normal = statistics.NormalDist()
  return np.array([normal.inv_cdf((i + 0.5) / num_points) for i in range(num_points)], np.float32)


def _staircase(x, alpha, num_bits):
  """Scalar Python oracle: thresholds are float32 products."""
  num_levels = 2**num_bits - 1
  return alpha * sum(x > np.float32(k) * np.float32(alpha) for k in range(num_levels))


def _squared_error(x, alpha, num_bits):
  return sum((max(float(v), 0.0) - float(_staircase(v, alpha, num_bits))) ** 2 for v in x)


class FitAlphaTest(parameterized.TestCase):
  @parameterized.parameters(*_HALF_GAUSSIAN.items())
  def test_half_gaussian_optima(self, num_bits, expected):
    x = _gaussian_quantiles(2**16)
    # 2e-3: around the optimum the error of a finite set is jagged, by more than a change of
    # alpha by 1e-3 makes in the integral.
    np.testing.assert_allclose(fit_alpha(x, num_bits=num_bits), expected, rtol=2e-3)

  def test_one_bit_is_the_mean_of_the_positive_values(self):
    x = np.array([-3.0, 0.0, 0.5, 1.0, 3.0], np.float32)
    np.testing.assert_allclose(fit_alpha(x, num_bits=1), 1.5, rtol=1e-6)  # search resolution

  @parameterized.parameters(2, 3, 6)
  def test_no_worse_than_a_brute_force_search(self, num_bits):
    x = np.random.default_rng(num_bits).gamma(1.5, 0.4, 30).astype(np.float32)
    alpha = fit_alpha(x, num_bits=num_bits)
    best = min(_squared_error(x, a, num_bits) for a in np.geomspace(2e-3, 5.0, 150))
    self.assertLessEqual(_squared_error(x, alpha, num_bits), best)

  @parameterized.parameters((1e-5, 1e-3), (1e3, 5.0))
  def test_result_stays_in_the_range_of_the_clamp(self, value, expected):
    alpha = fit_alpha(np.full(10, value, np.float32), num_bits=2)
    self.assertEqual(np.float32(alpha), np.float32(expected))

  @parameterized.parameters(1, 2, 4, 8)
  def test_values_on_a_grid_are_met_exactly(self, num_bits):
    step = np.float32(0.37)
    x = step * np.arange(2**num_bits, dtype=np.float32)
    np.testing.assert_allclose(fit_alpha(x, num_bits=num_bits), step, rtol=1e-6)

  def test_a_value_on_a_threshold_falls_below_it(self):
    # Exact at the end of the range only, where no larger step can make up for a wrong side.
    x = np.array([5.0, 10.0, 15.0], np.float32)
    self.assertEqual(fit_alpha(x, num_bits=2), 5.0)

  @parameterized.parameters((np.zeros(4),), (-np.ones(4),), (np.zeros(0),))
  def test_without_positive_values_there_is_no_optimum(self, x):
    self.assertIsNone(fit_alpha(x, num_bits=2))


class _Chain(nn.Module):
  """Activations in a row, without layers between: each sees what the last one returns."""

  num_bits: tuple

  @nn.compact
  def __call__(self, x):
    for i, num_bits in enumerate(self.num_bits):
      x = QuantReLU(num_bits, name=f"relu{i}")(x)
    return x


class _Network(nn.Module):
  """Weights, batch norm, dropout and a rematerialised block around three activations."""

  remat: bool = True

  @nn.compact
  def __call__(self, x, train=False):
    x = QuantConv(8, (3, 3), quantizer=numerics.Binary(), name="conv")(x)
    x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    x = QuantReLU(4, name="a_second_by_name")(x)
    x = QuantReLU(None, name="float")(x)
    x = (nn.remat(_Block) if self.remat else _Block)(name="block")(x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return QuantReLU(2, name="a_first_by_name")(x)


class _Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = QuantDense(5, quantizer=numerics.Binary(), name="dense")(x)
    return QuantReLU(3, name="relu")(x)


class _Shared(nn.Module):
  @nn.compact
  def __call__(self, x):
    relu = QuantReLU(2, name="relu")
    return relu(3.0 * relu(x))


class _Stacked(nn.Module):
  @nn.compact
  def __call__(self, x):
    lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    relus = nn.vmap(QuantReLU, **lift)
    return relus(2, name="relus")(x)


def _init_network(x):
  """Variables of `_Network` filled by NumPy: initialisers compile for every shape."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(_Network().init, _KEY, x)

  def fill(path, leaf):
    value = {"alpha": 0.5, "var": 1.0, "mean": 0.0}.get(path[-1].key)
    value = rng.normal(size=leaf.shape) if value is None else np.full(leaf.shape, value)
    return jnp.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _alphas(variables):
  flat, _ = jax.tree_util.tree_flatten_with_path(variables["params"])
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
  return {n: float(a) for n, (_, a) in zip(names, flat, strict=True) if n.endswith("alpha")}


class CalibrateTest(parameterized.TestCase):
  def test_half_gaussian_inputs(self):
    x = _gaussian_quantiles(2**14)
    for num_bits, expected in _HALF_GAUSSIAN.items():
      model = QuantReLU(num_bits)
      variables = calibrate(model, model.init(_KEY, x[:2]), [x])
      # 5e-3: as above, with fewer values.
      np.testing.assert_allclose(variables["params"]["alpha"], expected, rtol=5e-3)

  def test_later_activations_see_calibrated_earlier_ones(self):
    x = np.random.default_rng(0).uniform(-1.0, 2.0, (64, 8)).astype(np.float32)
    model = _Chain((2, 1))
    variables = calibrate(model, model.init(_KEY, x), [x])
    first = fit_alpha(x, num_bits=2)
    after_first = np.asarray(numerics.quantized_relu(jnp.asarray(x), first, num_bits=2))
    second = fit_alpha(after_first, num_bits=1)
    self.assertEqual(_alphas(variables), {"relu0/alpha": first, "relu1/alpha": second})
    # Fitted to the float or to the uncalibrated input, the second would come out otherwise.
    uncalibrated = numerics.quantized_relu(jnp.asarray(x), numerics.DEFAULT_ALPHA[2], num_bits=2)
    for other in (x, np.asarray(uncalibrated)):
      self.assertGreater(abs(fit_alpha(other, num_bits=1) - second), 0.01)

  def test_fixed_point_of_a_network(self):
    """Each alpha is the fit to its input under the final alphas; order of use, not of names."""
    rng = np.random.default_rng(1)
    batches = [rng.normal(size=(4, 6, 6, 3)).astype(np.float32) for _ in range(2)]
    model = _Network()
    variables = _init_network(batches[0])
    calibrated = calibrate(model, variables, iter(batches), train=False)
    inputs = {}

    def keep(next_fn, args, kwargs, context):
      if isinstance(context.module, QuantReLU) and context.method_name == "__call__":
        name = "/".join(context.module.path)
        inputs.setdefault(name, []).append(np.asarray(args[0]))
      return next_fn(*args, **kwargs)

    with nn.intercept_methods(keep):
      for batch in batches:
        _Network(remat=False).apply(calibrated, batch)
    expected = {
      f"{name}/alpha": fit_alpha(np.concatenate([a.ravel() for a in arrays]), num_bits=num_bits)
      for (name, arrays), num_bits in zip(inputs.items(), (4, None, 3, 2), strict=True)
      if num_bits is not None
    }
    # 1e-5: the oracle's forward pass is compiled op by op.
    chex.assert_trees_all_close(_alphas(calibrated), expected, rtol=1e-5)

  def test_discards_batch_statistics_and_keeps_other_leaves(self):
    x = np.random.default_rng(1).normal(size=(4, 6, 6, 3)).astype(np.float32)
    model = _Network()
    variables = _init_network(x)
    rngs = {"dropout": jax.random.key(5)}
    calibrated = calibrate(model, variables, [x], train=True, rngs=rngs)
    chex.assert_trees_all_equal_structs(variables, calibrated)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, calibrated)
    changed = jax.tree.map(lambda a, b: a is not b, variables, calibrated)
    changed = [p for p, c in jax.tree_util.tree_flatten_with_path(changed)[0] if c]
    self.assertLen(changed, 3)
    self.assertTrue(all(path[-1].key == "alpha" for path in changed))
    # Batch statistics were used: with the running ones (0 and 1) the result is another.
    other = calibrate(model, variables, [x], train=False)
    self.assertNotEqual(_alphas(calibrated), _alphas(other))

  def test_shared_activation_is_fitted_to_all_uses_together(self):
    x = np.random.default_rng(2).uniform(0.0, 1.0, (50,)).astype(np.float32)
    model = _Shared()
    variables = model.init(_KEY, x)
    old = numerics.quantized_relu(jnp.asarray(x), numerics.DEFAULT_ALPHA[2], num_bits=2)
    expected = fit_alpha(np.concatenate([x, 3.0 * np.asarray(old)]), num_bits=2)
    self.assertEqual(_alphas(calibrate(model, variables, [x])), {"relu/alpha": expected})

  def test_batches_count_together(self):
    x = np.random.default_rng(3).uniform(0.0, 1.0, (30, 4)).astype(np.float32)
    model = _Chain((3, 2))
    variables = model.init(_KEY, x)
    parts = calibrate(model, variables, [x[:20], jnp.asarray(x[20:])])
    chex.assert_trees_all_equal(parts, calibrate(model, variables, [x]))

  def test_deterministic_and_independent_of_devices(self):
    x = np.random.default_rng(4).normal(size=(8, 6, 6, 3)).astype(np.float32)
    model = _Network()
    variables = _init_network(x)
    expected = calibrate(model, variables, [x])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.sharding.NamedSharding(mesh, jax.P())
    split = jax.sharding.NamedSharding(mesh, jax.P("data"))
    actual = calibrate(model, jax.device_put(variables, replicated), [jax.device_put(x, split)])
    chex.assert_trees_all_equal(actual, expected)
    for leaf in jax.tree.leaves(actual):
      self.assertEqual(leaf.sharding, replicated)

  def test_large_inputs_are_sampled_over_all_channels(self):
    # Channels differ 100-fold: a stride that meets only some of them would show. 1-bit alpha is
    # the mean of the inputs.
    channels = np.geomspace(0.01, 1.0, 16).astype(np.float32)
    x = np.broadcast_to(channels, (2**15, 16))
    model = QuantReLU(1)
    variables = calibrate(model, model.init(_KEY, x[:1]), [x])
    # 1e-3: 2^16 samples hold each of 16 values equally often, up to one.
    np.testing.assert_allclose(variables["params"]["alpha"], channels.mean(), rtol=1e-3)

  def test_negative_inputs_keep_alpha(self):
    model = QuantReLU(2, alpha_init=0.75)
    x = -np.ones((3, 3), np.float32)
    variables = calibrate(model, model.init(_KEY, x), [x])
    self.assertEqual(variables["params"]["alpha"], 0.75)

  def test_traces_kept_by_nn_jit_do_not_hide_an_activation(self):
    x = np.random.default_rng(0).uniform(0.0, 1.0, (20,)).astype(np.float32)
    model = nn.jit(_Chain)((2, 1))
    variables = model.init(_KEY, x)
    model.apply(variables, x)
    expected = calibrate(_Chain((2, 1)), variables, [x])
    chex.assert_trees_all_equal(calibrate(model, variables, [x]), expected)

  @parameterized.parameters(math.nan, math.inf, -math.inf)
  def test_input_that_is_not_finite_is_an_error(self, value):
    x = np.ones((2**17,), np.float32)
    x[1] = value  # beside the sample
    model = _Chain((2, 1))
    variables = model.init(_KEY, x)
    with self.assertRaisesRegex(ValueError, "NaN or infinity in QuantReLU 'relu0'"):
      calibrate(model, variables, [x])

  def test_stacked_alpha_is_an_error(self):
    model, x = _Stacked(), np.ones((3, 4), np.float32)
    with self.assertRaisesRegex(ValueError, "QuantReLU 'relus' inside nn.scan or nn.vmap"):
      calibrate(model, model.init(_KEY, x), [x])

  def test_no_batch_is_an_error(self):
    model = QuantReLU(2)
    with self.assertRaisesRegex(ValueError, "at least one batch"):
      calibrate(model, model.init(_KEY, jnp.ones(3)), [])

  def test_mutable_is_an_error(self):
    model = QuantReLU(2)
    with self.assertRaisesRegex(TypeError, "mutable"):
      calibrate(model, model.init(_KEY, jnp.ones(3)), [jnp.ones(3)], mutable=["batch_stats"])

  def test_model_without_quantized_activations(self):
    model, x = QuantReLU(None), jnp.ones(3)
    self.assertEqual(calibrate(model, model.init(_KEY, x), [x]), {})
