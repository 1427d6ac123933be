"""The transformations inside what optax and jax wrap around them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.optim import bcgd, binary_relax, blend

QUANTIZERS = {"conv/kernel": numerics.Binary(), "dense/kernel": numerics.Ternary("twn")}
project = numerics.make_projection(QUANTIZERS)

OPTIMIZERS = {
  "blend": lambda: blend(optax.sgd(0.1, momentum=0.9), project, 0.1),
  "blend_scheduled": lambda: blend(
    optax.sgd(0.1), project, lambda t: 0.1 / (1.0 + t.astype(jnp.float32))
  ),
  "blend_off": lambda: blend(optax.sgd(0.1, momentum=0.9), project, 0.0),
  "bcgd": lambda: bcgd(0.1, project, rho=0.1, weight_decay=0.01),
  "binary_relax": lambda: binary_relax(optax.sgd(0.1, momentum=0.9), project, 2.0),
}
EACH = parameterized.named_parameters((name, name) for name in OPTIMIZERS)
KINDS = parameterized.named_parameters((name, name) for name in ("blend", "bcgd", "binary_relax"))


def make_tree(seed, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return {
    "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 8, 16)), jnp.float32)},
    "dense": {
      "kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
      "bias": jnp.asarray(rng.normal(size=8), dtype),
    },
    "relu": {"alpha": jnp.asarray(0.5 + 0.1 * seed, jnp.float32)},
  }


def run(optimizer, num_steps, *, update=None):
  update = update or jax.jit(optimizer.update)
  params = make_tree(0)
  state = optimizer.init(params)
  for k in range(num_steps):
    updates, state = update(make_tree(k + 1), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


@functools.cache
def make_update(name):
  return jax.jit(OPTIMIZERS[name]().update)


def run_bare(name, num_steps):
  """Params and state without the wrapper; one compilation an optimizer serves all tests."""
  return run(OPTIMIZERS[name](), num_steps, update=make_update(name))


def get_bare_updates(name, grads):
  params = make_tree(0)
  return make_update(name)(grads, OPTIMIZERS[name]().init(params), params)[0]


def assert_close(got, expected):
  # Fusion may reorder a handful of float32 operations on numbers below 10.
  chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def describe(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


class WrapperTest(parameterized.TestCase):
  @EACH
  def test_one_trace_for_two_calls(self, name):
    optimizer, traces = OPTIMIZERS[name](), []

    def update(*args):
      traces.append(args)
      return optimizer.update(*args)

    got, _ = run(optimizer, 3, update=jax.jit(update))
    self.assertLen(traces, 1)
    assert_close(got, run(optimizer, 3, update=optimizer.update)[0])

  @EACH
  def test_state_and_updates_keep_shapes_and_dtypes(self, name):
    optimizer = OPTIMIZERS[name]()
    params, grads = make_tree(0, jnp.bfloat16), make_tree(1, jnp.bfloat16)
    state = optimizer.init(params)
    updates, new_state = optimizer.update(grads, state, params)
    self.assertEqual(describe(new_state), describe(state))
    self.assertEqual(describe(updates), describe(params))

  @EACH
  def test_init_from_shapes_alone(self, name):
    optimizer, params = OPTIMIZERS[name](), make_tree(0)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    abstract = jax.eval_shape(optimizer.init, shapes)
    expected = optimizer.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, expected)
    if name != "binary_relax":  # its state holds the values of params
      chex.assert_trees_all_equal(optimizer.init(shapes), expected)

  @EACH
  def test_inside_scan(self, name):
    optimizer = OPTIMIZERS[name]()
    params = make_tree(0)

    def step(carry, grads):
      params, state = carry
      updates, state = optimizer.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    grads = jax.tree.map(lambda *g: jnp.stack(g), *(make_tree(k + 1) for k in range(4)))
    got, _ = jax.jit(lambda c: jax.lax.scan(step, c, grads))((params, optimizer.init(params)))
    assert_close(got, run_bare(name, 4))

  @KINDS
  def test_extra_args(self, name):
    optimizer = OPTIMIZERS[name]()
    expected, _ = run_bare(name, 2)
    update = jax.jit(functools.partial(optimizer.update, value=1.0, other="x"))
    got, _ = run(optimizer, 2, update=update)
    chex.assert_trees_all_equal(got, expected)

  @parameterized.named_parameters(
    ("blend", lambda inner: blend(inner, project, 0.1)),
    ("binary_relax", lambda inner: binary_relax(inner, project, 2.0)),
  )
  def test_extra_args_reach_the_inner_optimizer(self, wrap):
    def update(updates, state, params=None, *, factor, **extra_args):
      del params, extra_args
      return optax.tree.scale(factor, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    update = jax.jit(functools.partial(wrap(inner).update, factor=-0.1))
    got, _ = run(wrap(inner), 2, update=update)
    assert_close(got, run(wrap(optax.sgd(0.1)), 2)[0])

  @KINDS
  def test_chain(self, name):
    optimizer = OPTIMIZERS[name]()
    got, _ = run(optax.chain(optax.clip(0.5), optimizer), 3)
    clip = optax.clip(0.5)
    expected, _ = run(
      optimizer,
      3,
      update=jax.jit(lambda g, s, p: optimizer.update(clip.update(g, clip.init(p))[0], s, p)),
    )
    assert_close(got, expected)

  @KINDS
  def test_masked_leaves_are_left_alone(self, name):
    optimizer = OPTIMIZERS[name]()
    mask = {
      "conv": {"kernel": True},
      "dense": {"kernel": False, "bias": True},
      "relu": {"alpha": True},
    }
    params, grads = make_tree(0), make_tree(1)
    masked = optax.masked(optimizer, mask)
    got, _ = jax.jit(masked.update)(grads, masked.init(params), params)
    expected = get_bare_updates(name, grads)
    assert_close(got["conv"], expected["conv"])
    assert_close(got["dense"]["bias"], expected["dense"]["bias"])
    np.testing.assert_array_equal(got["dense"]["kernel"], grads["dense"]["kernel"])

  @KINDS
  def test_partition(self, name):
    optimizer = OPTIMIZERS[name]()
    labels = {
      "conv": "quantized",
      "dense": {"kernel": "quantized", "bias": "frozen"},
      "relu": "quantized",
    }
    both = {"quantized": optimizer, "frozen": optax.set_to_zero()}
    got, _ = run(optax.partition(both, labels), 3)
    expected, _ = run_bare(name, 3)
    expected["dense"]["bias"] = make_tree(0)["dense"]["bias"]
    assert_close(got, expected)

  @KINDS
  def test_multi_steps_takes_one_step_with_the_mean_gradient(self, name):
    optimizer, params = OPTIMIZERS[name](), make_tree(0)
    accumulated = optax.MultiSteps(optimizer, every_k_schedule=2)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, make_tree(1), make_tree(2))
    expected = get_bare_updates(name, mean)
    state = accumulated.init(params)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps multiplies floats by a bool
      update = jax.jit(accumulated.update)
      updates, state = update(make_tree(1), state, params)
      chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
      updates, state = update(make_tree(2), state, params)
    assert_close(updates, expected)
    self.assertEqual(int(state.gradient_step), 1)

  @KINDS
  def test_apply_if_finite(self, name):
    optimizer, params = OPTIMIZERS[name](), make_tree(0)
    guarded = optax.apply_if_finite(optimizer, max_consecutive_errors=3)
    start = guarded.init(params)
    bad = make_tree(1)
    bad["relu"]["alpha"] = jnp.asarray(jnp.nan)
    update = jax.jit(guarded.update)
    updates, state = update(bad, start, params)
    chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
    chex.assert_trees_all_equal(state.inner_state, start.inner_state)
    got, _ = update(make_tree(1), state, params)
    assert_close(got, get_bare_updates(name, make_tree(1)))

  def test_adam_inside(self):
    with jax.numpy_dtype_promotion("standard"):  # adam raises a float to an integer power
      params, state = run(blend(optax.adamw(0.01), project, 0.1), 5)
    self.assertEqual(int(state.step_count), 5)
    chex.assert_tree_all_finite(params)

  @KINDS
  def test_sharded_parameters(self, name):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.P("x"))
    last = jax.sharding.NamedSharding(mesh, jax.P(None, None, None, "x"))
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    shardings = {
      "conv": {"kernel": last},
      "dense": {"kernel": split, "bias": split},
      "relu": {"alpha": whole},
    }
    optimizer = OPTIMIZERS[name]()
    params, grads = (jax.device_put(make_tree(k), shardings) for k in (0, 1))
    state = optimizer.init(params)
    updates, new_state = jax.jit(optimizer.update)(grads, state, params)
    for got, sharding in zip(jax.tree.leaves(updates), jax.tree.leaves(shardings), strict=True):
      self.assertTrue(got.sharding.is_equivalent_to(sharding, got.ndim))
    for new, old in zip(jax.tree.leaves(new_state), jax.tree.leaves(state), strict=True):
      if old.ndim:
        self.assertTrue(new.sharding.is_equivalent_to(old.sharding, old.ndim))
        self.assertFalse(new.sharding.is_fully_replicated)
    assert_close(updates, get_bare_updates(name, make_tree(1)))


class InjectHyperparamsTest(parameterized.TestCase):
  @parameterized.named_parameters(("number", 0.1), ("schedule", lambda t: 0.1), ("zero", 0.0))
  def test_blend(self, rho):
    make = optax.inject_hyperparams(blend, static_args=("projection",))
    inner = optax.sgd(0.1, momentum=0.9)
    got, state = run(optimizer := make(inner, project, rho), 3)
    self.assertIn("rho", state.hyperparams)
    expected, _ = run_bare("blend_off" if rho == 0.0 else "blend", 3)
    assert_close(got, expected)
    state.hyperparams["rho"] = jnp.asarray(1.0, jnp.float32)
    updates, _ = jax.jit(optimizer.update)(make_tree(4), state, got)
    chex.assert_tree_all_finite(updates)

  def test_bcgd_traces_every_hyperparameter(self):
    make = optax.inject_hyperparams(bcgd, static_args=("projection", "is_alpha"))
    settings = {"rho": 0.2, "momentum": 0.8, "weight_decay": 0.01, "alpha_rate": 0.3}
    got, state = run(make(0.1, project, **settings), 3)
    self.assertContainsSubset([*settings, "learning_rate", "alpha_clip"], state.hyperparams)
    assert_close(got, run(bcgd(0.1, project, **settings), 3)[0])

  @parameterized.parameters(0.0, 2.0, float("inf"))
  def test_binary_relax(self, eta):
    make = optax.inject_hyperparams(binary_relax, static_args=("projection",))
    got, _ = run(make(optax.sgd(0.1), project, eta), 3)
    assert_close(got, run(binary_relax(optax.sgd(0.1), project, eta), 3)[0])
