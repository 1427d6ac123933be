import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.optim import (
  BinaryRelaxState,
  binary_relax,
  binary_relax_float_params,
  growing_eta,
  relax,
)

INF = float("inf")
project = numerics.make_projection({"kernel": numerics.Binary()})


def make_params(dtype=np.float32):
  rng = np.random.default_rng(0)
  return {
    "kernel": jnp.asarray(rng.normal(size=(5, 4)), dtype),
    "bias": jnp.asarray(rng.normal(size=4), dtype),
  }


def loss_fn(params):
  """A quadratic whose minimiser is far from the binary weights."""
  return jnp.sum((params["kernel"] - 0.3) ** 2) + jnp.sum((params["bias"] + 0.1) ** 2)


def make_step(optimizer):
  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
    return optax.apply_updates(params, updates), state

  return step


def relax_np(y, eta):
  q = np.mean(np.abs(y)) * np.sign(y)
  return q if np.isinf(eta) else (y + eta * q) / (1 + eta)


class BinaryRelaxTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("constant", 2.5, [2.5] * 11),
    ("infinite", INF, [INF] * 11),
    (
      "growing_then_exact",
      growing_eta(1.0, 1.5, steps_per_epoch=2, relax_epochs=3),
      [1.0, 1.0, 1.5, 1.5, 2.25, 2.25] + [INF] * 5,
    ),
  )
  def test_ten_steps_against_numpy(self, eta, etas):
    rate, momentum, decay = 0.1, 0.9, 0.05
    inner = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum=momentum))
    with jax.enable_x64(True):
      optimizer = binary_relax(inner, project, eta)
      params = make_params(np.float64)
      y, b = np.asarray(params["kernel"]), np.asarray(params["bias"])
      state = optimizer.init(params)
      params = relax(params, project, etas[0])
      step = make_step(optimizer)
      w, m, m_b = relax_np(y, etas[0]), 0.0, 0.0
      for t in range(10):
        params, state = step(params, state)
        m = momentum * m + (2 * (w - 0.3) + decay * y)
        m_b = momentum * m_b + (2 * (b + 0.1) + decay * b)
        y, b = y - rate * m, b - rate * m_b
        w = relax_np(y, etas[t + 1])
        floats = binary_relax_float_params(state)
        # Some hundred float64 roundings of numbers of order 1.
        np.testing.assert_allclose(floats["kernel"], y, atol=1e-12)
        np.testing.assert_allclose(params["kernel"], w, atol=1e-12)
        np.testing.assert_allclose(params["bias"], b, atol=1e-12)
        self.assertGreater(np.abs(y).min(), 1e-9)  # no sign within the tolerance

  def test_forward_weights_are_quantized_only_at_infinity(self):
    schedule = growing_eta(1.0, 1.04, steps_per_epoch=1, relax_epochs=150)
    optimizer = binary_relax(optax.sgd(0.01), project, schedule)
    params = make_params()
    state, step = optimizer.init(params), make_step(optimizer)
    params = relax(params, project, schedule(0))
    for t in range(1, 155):
      params, state = step(params, state)
      floats = binary_relax_float_params(state)
      q = project(floats)["kernel"]
      gap = np.abs(params["kernel"] - q).max()
      if t < 150:
        # |w - Q(y)| = |y - Q(y)| / (1 + eta), and eta has reached 1.04^149 = 345.
        expected = np.abs(floats["kernel"] - q).max() / (1 + 1.04**t)
        np.testing.assert_allclose(gap, expected, rtol=1e-2)
        self.assertGreater(gap, 1e-4)
      else:
        self.assertLess(gap, 1e-6)  # the rounding of params + (w - params)
        np.testing.assert_array_equal(relax(floats, project, schedule(t))["kernel"], q)

  def test_untouched_leaves_take_the_inner_updates_bit_for_bit(self):
    inner = optax.sgd(0.01, momentum=0.9)
    params, grads = make_params(), jax.tree.map(jnp.cos, make_params())
    optimizer = binary_relax(inner, project, 1.0)
    got, state = optimizer.update(grads, optimizer.init(params), params)
    expected, _ = inner.update(grads, inner.init(params), params)
    np.testing.assert_array_equal(got["bias"], expected["bias"])
    after = optax.apply_updates(params, got)
    np.testing.assert_array_equal(binary_relax_float_params(state)["bias"], after["bias"])

  def test_untouched_leaves_of_the_state_follow_params(self):
    optimizer = binary_relax(optax.sgd(0.1), project, 1.0)
    params, state = make_params(), optimizer.init(make_params())
    params["bias"] = params["bias"] + 1.0  # as a rounding of the caller's would, but visible
    updates, state = optimizer.update(make_params(), state, params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(binary_relax_float_params(state)["bias"], after["bias"])

  def test_params_do_not_drift_from_the_state(self):
    optimizer = binary_relax(optax.sgd(0.01, momentum=0.9), project, 3.0)
    params = make_params()
    state, step = optimizer.init(params), make_step(optimizer)
    for _ in range(300):
      params, state = step(params, state)
    expected = relax(binary_relax_float_params(state), project, 3.0)
    # One rounding of a number of order 1, not 300.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7), params, expected)

  def test_without_relaxing_first_the_first_gradient_is_at_the_float_weights(self):
    optimizer = binary_relax(optax.sgd(0.1), project, 4.0)
    params = make_params()
    state, step = optimizer.init(params), make_step(optimizer)
    _, state = step(params, state)
    expected = params["kernel"] - 0.1 * 2 * (params["kernel"] - 0.3)
    np.testing.assert_allclose(binary_relax_float_params(state)["kernel"], expected, rtol=1e-6)

  @parameterized.parameters(0, 0.0, 1, 2.5, INF)
  def test_relax(self, eta):
    params = make_params()
    expected = relax_np(np.asarray(params["kernel"]), float(eta))
    for got in (
      relax(params, project, eta),
      jax.jit(relax, static_argnums=1)(params, project, jnp.asarray(eta, jnp.float32)),
    ):
      np.testing.assert_allclose(got["kernel"], expected, rtol=1e-6)
      np.testing.assert_array_equal(got["bias"], params["bias"])
    if eta == 0:
      np.testing.assert_array_equal(got["kernel"], params["kernel"])
    if eta == INF:
      np.testing.assert_array_equal(got["kernel"], project(params)["kernel"])

  def test_state_does_not_alias_params(self):
    optimizer = binary_relax(optax.sgd(0.1), project, 1.0)
    params = make_params()
    kernel = np.asarray(params["kernel"]).copy()
    state = optimizer.init(params)
    step = jax.jit(
      lambda p, s: optimizer.update(jax.tree.map(jnp.zeros_like, p), s, p), donate_argnums=(0, 1)
    )
    first = state
    _, state = step(params, state)
    self.assertTrue(params["kernel"].is_deleted())
    self.assertTrue(first.y["kernel"].is_deleted())
    np.testing.assert_array_equal(binary_relax_float_params(state)["kernel"], kernel)

  @parameterized.named_parameters(
    ("bare", lambda tx: tx),
    ("chain", lambda tx: optax.chain(optax.clip(1.0), tx)),
    ("finite", lambda tx: optax.apply_if_finite(tx, 3)),
    ("multi_steps", lambda tx: optax.MultiSteps(tx, 2)),
    ("partition", lambda tx: optax.partition({"all": tx}, {"kernel": "all", "bias": "all"})),
  )
  def test_float_params_are_found_in(self, wrap):
    params = make_params()
    state = wrap(binary_relax(optax.sgd(0.1), project, 1.0)).init(params)
    jax.tree.map(np.testing.assert_array_equal, binary_relax_float_params(state), params)

  def test_float_params_are_found_under_inject_hyperparams(self):
    make = optax.inject_hyperparams(binary_relax, static_args=("projection",))
    state = make(optax.sgd(0.1), project, INF).init(make_params())
    found = binary_relax_float_params(state)
    jax.tree.map(np.testing.assert_array_equal, found, make_params())

  def test_float_params_need_exactly_one_state(self):
    optimizer = binary_relax(optax.sgd(0.1), project, 1.0)
    with self.assertRaisesRegex(ValueError, "one BinaryRelaxState, got 0"):
      binary_relax_float_params(optax.sgd(0.1).init(make_params()))
    state = optimizer.init(make_params())
    self.assertIsInstance(state, BinaryRelaxState)
    with self.assertRaisesRegex(ValueError, "one BinaryRelaxState, got 2"):
      binary_relax_float_params((state, state))

  @parameterized.parameters(-1.0, float("nan"))
  def test_eta_out_of_range(self, eta):
    with self.assertRaisesRegex(ValueError, "eta must be at least 0, got"):
      binary_relax(optax.sgd(0.1), project, eta)
    with self.assertRaisesRegex(ValueError, "eta must be at least 0, got"):
      relax(make_params(), project, eta)

  def test_eta_of_a_wrong_type(self):
    with self.assertRaisesRegex(TypeError, "eta must be a number or a schedule, got"):
      binary_relax(optax.sgd(0.1), project, "1.0")
    with self.assertRaisesRegex(TypeError, "eta must be a number, got"):
      relax(make_params(), project, lambda count: 1.0)

  def test_missing_params(self):
    optimizer = binary_relax(optax.sgd(0.1), project, 1.0)
    with self.assertRaisesRegex(ValueError, "you are not passing `params`"):
      optimizer.update(make_params(), optimizer.init(make_params()))

  def test_low_precision_weights_are_an_error(self):
    params = make_params(jnp.bfloat16)
    optimizer = binary_relax(optax.sgd(0.1), project, 1.0)
    with self.assertRaisesRegex(TypeError, "got bfloat16 at 'kernel'"):
      optimizer.update(params, optimizer.init(params), params)
