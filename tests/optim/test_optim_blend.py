import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.optim import BlendState, blend

INT32_MAX = np.iinfo(np.int32).max


def project_kernel(params):
  """Binary at "kernel"; the bias comes back as the same object."""
  return {**params, "kernel": numerics.Binary()(params["kernel"])}


def rebuild_all(params):
  """The same projection by one that hands out new arrays for every leaf."""
  return jax.tree.map(lambda x: x + 0, project_kernel(params))


def make_params():
  return {"kernel": jnp.array([[0.5, -1.0], [0.25, 0.75]]), "bias": jnp.array([0.1, -0.2])}


def make_grads():
  return {"kernel": jnp.array([[0.3, 0.1], [-0.2, 0.4]]), "bias": jnp.array([1.0, -2.0])}


def run(optimizer, num_steps):
  """Updates and params of a few steps with gradients that change from step to step."""
  params, history = make_params(), []
  state = optimizer.init(params)
  for k in range(num_steps):
    grads = jax.tree.map(functools.partial(jnp.multiply, 1.0 - 0.3 * k), make_grads())
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    history.append((updates, params))
  return history


class BlendTest(parameterized.TestCase):
  @parameterized.named_parameters(("eager", lambda f: f), ("jit", jax.jit))
  def test_one_step_by_hand(self, wrap):
    rho, rate, decay = 0.2, 0.1, 0.5
    inner = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))
    optimizer = blend(inner, project_kernel, rho)
    params = make_params()
    updates, state = wrap(optimizer.update)(make_grads(), optimizer.init(params), params)
    scale = (0.5 + 1.0 + 0.25 + 0.75) / 4
    for i in range(2):
      for j in range(2):
        w, g = float(params["kernel"][i, j]), float(make_grads()["kernel"][i, j])
        pull = rho * ((scale if w >= 0 else -scale) - w)
        expected = pull - rate * (g + decay * (w + pull))
        # One rounding of float32 to each of half a dozen operations on numbers below 1.
        self.assertAlmostEqual(float(updates["kernel"][i, j]), expected, delta=5e-7)
    expected = [-rate * (1.0 + decay * 0.1), -rate * (-2.0 + decay * -0.2)]
    np.testing.assert_allclose(updates["bias"], expected, rtol=1e-6)
    self.assertEqual(int(state.step_count), 1)

  def test_rho_zero_is_the_inner_optimizer_bit_for_bit(self):
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))

    def project_to_nan(params):
      return {**params, "kernel": params["kernel"] * jnp.nan}

    for projection in (project_kernel, project_to_nan):
      for got, expected in zip(run(blend(inner, projection, 0.0), 4), run(inner, 4), strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, expected)

  def test_rho_zero_still_reports_a_wrong_projection(self):
    projection = numerics.make_projection({"weight": numerics.Binary()})
    optimizer = blend(optax.sgd(0.1), projection, 0.0)
    with self.assertRaisesRegex(ValueError, "kernel"):
      optimizer.update(make_grads(), optimizer.init(make_params()), make_params())

  @parameterized.parameters(1, 1.0, np.float32(1.0))
  def test_rho_one_hands_exactly_the_projection_to_the_inner_optimizer(self, rho):
    seen = []
    spy = optax.stateless(lambda g, p: seen.append(p) or g)

    def project_to_third(params):
      return {**params, "kernel": jnp.sign(params["kernel"]) * (1 / 3)}

    optimizer = blend(spy, project_to_third, rho)
    kernel = np.random.default_rng(0).normal(size=64).astype(np.float32)
    params = make_params() | {"kernel": jnp.asarray(kernel)}
    optimizer.update(params, optimizer.init(params), params)
    q = project_to_third(params)["kernel"]
    np.testing.assert_array_equal(seen[0]["kernel"], q)
    # The sum in two roundings would miss some of these weights.
    self.assertFalse(np.array_equal(params["kernel"] + (q - params["kernel"]), q))

  def test_untouched_leaves_are_the_inner_optimizers_in_any_dtype(self):
    params = make_params() | {"bias": jnp.array([0.1, -0.2], jnp.bfloat16), "none": None}
    grads = make_grads() | {"bias": jnp.array([1.0, -2.0], jnp.bfloat16), "none": None}
    inner = optax.sgd(0.1, momentum=0.9)
    got, state = (tx := blend(inner, project_kernel, 0.5)).update(grads, tx.init(params), params)
    expected, inner_state = inner.update(grads, inner.init(params), params)
    self.assertEqual(got["bias"].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(got["bias"], expected["bias"])
    # Plain SGD does not look at params: momentum is that of the inner optimizer everywhere.
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, inner_state)

  def test_weights_on_the_quantized_set_are_not_pulled(self):
    params = make_params() | {"kernel": jnp.array([[0.5, -0.5], [0.5, 0.5]])}
    for projection in (project_kernel, rebuild_all):
      optimizer = blend(optax.sgd(0.1), projection, 0.7)
      got, _ = optimizer.update(make_grads(), optimizer.init(params), params)
      expected, _ = optax.sgd(0.1).update(make_grads(), optax.sgd(0.1).init(params))
      jax.tree.map(np.testing.assert_array_equal, got, expected)

  @parameterized.parameters(0.0, 0.3, 1.0)
  def test_projection_may_rebuild_untouched_leaves(self, rho):
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01, momentum=0.9))
    one, other = (run(blend(inner, p, rho), 4) for p in (project_kernel, rebuild_all))
    for got, expected in zip(one, other, strict=True):
      jax.tree.map(np.testing.assert_array_equal, got, expected)

  def test_schedule_sees_the_number_of_updates(self):
    values = (0.0, 0.5, 0.1)
    optimizer = blend(optax.sgd(0.1), project_kernel, lambda count: jnp.asarray(values)[count])
    params, state = make_params(), optimizer.init(make_params())
    for rho in values:
      constant = blend(optax.sgd(0.1), project_kernel, rho)
      expected, _ = constant.update(make_grads(), constant.init(params), params)
      updates, state = optimizer.update(make_grads(), state, params)
      # rho is a float32 on one side and a double rounded to float32 on the other: equal.
      jax.tree.map(np.testing.assert_array_equal, updates, expected)
      params = optax.apply_updates(params, updates)

  def test_long_run_forgets_as_documented(self):
    rho, num_steps = 0.01, 100
    params = {"w": jnp.array([0.5, -1.5])}
    optimizer = blend(optax.sgd(0.0), lambda p: {"w": jnp.sign(p["w"])}, rho)

    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update({"w": jnp.zeros(2)}, state, params)
      return (optax.apply_updates(params, updates), state), None

    (final, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)
    left = (1 - rho) ** num_steps
    # 100 float32 additions near 1, each off by at most 6e-8.
    np.testing.assert_allclose(final["w"], [1 - 0.5 * left, -1 - 0.5 * left], atol=1e-5)

  def test_counter_stops_at_its_maximum(self):
    optimizer = blend(optax.sgd(0.1), project_kernel, 0.1)
    state = optimizer.init(make_params())._replace(step_count=jnp.asarray(INT32_MAX, jnp.int32))
    _, state = optimizer.update(make_grads(), state, make_params())
    self.assertEqual(int(state.step_count), INT32_MAX)

  def test_small_pull_survives_bfloat16_updates(self):
    # An inner optimizer may hand out bfloat16 updates; 1e-5 beside 1 would vanish in that dtype.
    inner = optax.stateless(lambda g, _: optax.tree.cast(g, jnp.bfloat16))
    optimizer = blend(inner, lambda p: {"w": p["w"] + 1.0}, 1e-5)
    params = {"w": jnp.zeros(1)}
    updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init(params), params)
    self.assertEqual(updates["w"].dtype, jnp.float32)
    self.assertAlmostEqual(float(updates["w"][0]), 1.00001, delta=1e-7)

  def test_float64(self):
    with jax.enable_x64(True):
      params = {"kernel": jnp.array([0.3, -0.7])}
      optimizer = blend(optax.sgd(0.1), project_kernel, 0.3)
      updates, _ = optimizer.update({"kernel": jnp.zeros(2)}, optimizer.init(params), params)
      self.assertEqual(updates["kernel"].dtype, jnp.float64)
      np.testing.assert_allclose(updates["kernel"], [0.3 * 0.2, 0.3 * 0.2], rtol=1e-14)


class BlendErrorTest(parameterized.TestCase):
  @parameterized.parameters(-0.1, 1.1, float("nan"), 2, np.float64(-1e-9))
  def test_rho_out_of_range(self, rho):
    with self.assertRaisesRegex(ValueError, r"rho must be in \[0, 1\], got"):
      blend(optax.sgd(0.1), project_kernel, rho)

  @parameterized.parameters("0.1", None, 1j)
  def test_rho_of_a_wrong_type(self, rho):
    with self.assertRaisesRegex(TypeError, "rho must be a number or a schedule, got"):
      blend(optax.sgd(0.1), project_kernel, rho)

  @parameterized.parameters(0.0, 0.1)
  def test_missing_params_raise_optax_own_message(self, rho):
    optimizer = blend(optax.sgd(0.1), project_kernel, rho)
    state = optimizer.init(make_params())
    self.assertIsInstance(state, BlendState)
    with self.assertRaises(ValueError) as theirs:
      optax.keep_params_nonnegative().update(make_grads(), optax.EmptyState(), None)
    with self.assertRaises(ValueError) as ours:
      optimizer.update(make_grads(), state)
    self.assertEqual(str(ours.exception), str(theirs.exception))

  @parameterized.product(rho=(0.0, 0.1), dtype=("bfloat16", "float16", "int32"))
  def test_projected_leaf_of_a_low_precision(self, rho, dtype):
    params = {"layer": {"kernel": jnp.ones(3, dtype), "bias": jnp.ones(3)}}

    def projection(params):
      return {"layer": {**params["layer"], "kernel": -params["layer"]["kernel"]}}

    optimizer = blend(optax.sgd(0.1), projection, rho)
    with self.assertRaisesRegex(TypeError, f"float32 or float64, got {dtype} at 'layer/kernel'"):
      jax.jit(optimizer.update)(params, optimizer.init(params), params)

  @parameterized.named_parameters(
    ("shape", lambda w: w[:1], ValueError, "keep shape"),
    ("dtype", lambda w: w.astype(jnp.bfloat16), TypeError, "keep dtype float32"),
    ("structure", lambda w: (w, w), ValueError, "keep the tree structure"),
  )
  def test_projection_that_changes(self, change, error, message):
    optimizer = blend(optax.sgd(0.1), lambda p: {**p, "kernel": change(p["kernel"])}, 0.1)
    with self.assertRaisesRegex(error, message):
      optimizer.update(make_grads(), optimizer.init(make_params()), make_params())
