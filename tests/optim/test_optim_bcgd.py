import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.optim import bcgd, last_key_is_alpha, last_key_is_kernel

KERNEL = "conv/kernel"
project = numerics.make_projection({KERNEL: numerics.Binary()})


def make_params(alpha=0.5):
  return {
    "conv": {"kernel": jnp.array([0.5, -1.5]), "bias": jnp.array([2.0])},
    "relu": {"alpha": jnp.asarray(alpha)},
  }


def make_grads(alpha=10.0):
  return {
    "conv": {"kernel": jnp.array([0.3, 0.1]), "bias": jnp.array([-50.0])},
    "relu": {"alpha": jnp.asarray(alpha)},
  }


def run(optimizer, *, params, grads, num_steps=1):
  state = optimizer.init(params)
  for _ in range(num_steps):
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


class BcgdTest(parameterized.TestCase):
  def test_two_steps_by_hand_with_defaults(self):
    rate, rho, mu, decay = 0.1, 1e-5, 0.95, 1e-4
    got = run(bcgd(rate, project), params=make_params(), grads=make_grads(), num_steps=2)
    w, m = np.array([0.5, -1.5]), np.zeros(2)
    b, m_b, a, m_a = 2.0, 0.0, 0.5, 0.0
    for _ in range(2):
      w = (1 - rho) * w + rho * np.mean(np.abs(w)) * np.sign(w)
      m = mu * m + (np.array([0.3, 0.1]) + decay * w)
      w = w - rate * m
      m_b = mu * m_b + (-50.0 + decay * b)
      b = b - rate * m_b
      m_a = mu * m_a + (0.01 * 10.0 + decay * a)
      a = a - rate * m_a
    # A few float32 roundings.
    np.testing.assert_allclose(got["conv"]["kernel"], w, rtol=1e-6)
    np.testing.assert_allclose(got["conv"]["bias"], [b], rtol=1e-6)
    np.testing.assert_allclose(got["relu"]["alpha"], a, rtol=1e-6)

  @parameterized.parameters((500.0, -1.0), (-500.0, 1.0), (50.0, -0.5), (np.inf, -1.0))
  def test_alpha_gradient_is_scaled_then_clipped(self, gradient, step):
    optimizer = bcgd(0.1, project, momentum=0.0, weight_decay=0.0)
    got = run(optimizer, params=make_params(), grads=make_grads(gradient))
    np.testing.assert_allclose(got["relu"]["alpha"], 0.5 + 0.1 * step, rtol=1e-6)

  def test_other_gradients_are_not_clipped(self):
    optimizer = bcgd(0.1, project, momentum=0.0, weight_decay=0.0)
    got = run(optimizer, params=make_params(), grads=make_grads())
    np.testing.assert_allclose(got["conv"]["bias"], [2.0 + 5.0], rtol=1e-6)

  @parameterized.parameters((7.0, 5.0), (-2.0, 1e-3), (0.7, 0.7))
  def test_alpha_starts_from_its_clamped_value(self, alpha, clamped):
    rate, decay = 0.1, 0.5
    optimizer = bcgd(rate, project, momentum=0.0, weight_decay=decay)
    got = run(optimizer, params=make_params(alpha), grads=make_grads(10.0))
    expected = clamped - rate * (0.1 + decay * clamped)
    np.testing.assert_allclose(got["relu"]["alpha"], expected, atol=1e-6)

  def test_nan_is_not_hidden_by_the_clip(self):
    got = run(bcgd(0.1, project), params=make_params(), grads=make_grads(np.nan))
    self.assertTrue(np.isnan(got["relu"]["alpha"]))

  def test_is_alpha_chooses_by_path(self):
    seen = []

    def is_alpha(path):
      seen.append(path)
      return path == "conv/bias"

    optimizer = bcgd(0.1, project, momentum=0.0, weight_decay=0.0, is_alpha=is_alpha)
    got = run(optimizer, params=make_params(), grads=make_grads())
    self.assertEqual(set(seen), {"conv/bias", KERNEL, "relu/alpha"})
    np.testing.assert_allclose(got["conv"]["bias"], [2.0 + 0.05], rtol=1e-6)
    np.testing.assert_allclose(got["relu"]["alpha"], 0.5 - 1.0, rtol=1e-6)

  def test_is_decayed_chooses_by_path(self):
    decay = 0.5
    optimizer = bcgd(
      0.1,
      project,
      rho=0.0,
      momentum=0.0,
      weight_decay=decay,
      is_decayed=last_key_is_kernel,
    )
    grads = jax.tree.map(jnp.zeros_like, make_grads())
    got = run(optimizer, params=make_params(), grads=grads)
    kernel = np.array([0.5, -1.5])
    np.testing.assert_allclose(got["conv"]["kernel"], kernel - 0.1 * decay * kernel, rtol=1e-6)
    np.testing.assert_array_equal(got["conv"]["bias"], [2.0])
    np.testing.assert_array_equal(got["relu"]["alpha"], 0.5)

  def test_decay_acts_on_the_blended_kernel(self):
    optimizer = bcgd(
      0.1, project, rho=1.0, momentum=0.0, weight_decay=0.5, is_decayed=last_key_is_kernel
    )
    grads = jax.tree.map(jnp.zeros_like, make_grads())
    got = run(optimizer, params=make_params(), grads=grads)
    np.testing.assert_allclose(got["conv"]["kernel"], 0.95 * np.array([1.0, -1.0]), rtol=1e-6)

  @parameterized.parameters(
    ("kernel", True),
    ("a/b/kernel", True),
    ("kernel/scale", False),
    ("a/my_kernel", False),
    ("a/bias", False),
  )
  def test_last_key_is_kernel(self, path, expected):
    self.assertEqual(last_key_is_kernel(path), expected)

  @parameterized.parameters(
    ("alpha", True),
    ("a/b/alpha", True),
    ("alpha/kernel", False),
    ("a/my_alpha", False),
    ("", False),
  )
  def test_last_key_is_alpha(self, path, expected):
    self.assertEqual(last_key_is_alpha(path), expected)

  def test_rho_zero_without_alphas_is_decayed_sgd_bit_for_bit(self):
    params, grads = ({"conv": tree["conv"]} for tree in (make_params(), make_grads()))
    plain = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.95))
    got, expected = (
      run(optimizer, params=params, grads=grads, num_steps=3)
      for optimizer in (bcgd(0.1, project, rho=0.0), plain)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)

  def test_learning_rate_schedule_counts_updates(self):
    rates = (0.5, 0.0, 0.25)
    optimizer = bcgd(
      lambda count: jnp.asarray(rates)[count], project, rho=0.0, momentum=0.0, weight_decay=0.0
    )
    got = run(optimizer, params=make_params(), grads=make_grads(), num_steps=3)
    np.testing.assert_allclose(got["conv"]["bias"], [2.0 + 0.75 * 50], rtol=1e-6)

  @parameterized.named_parameters(
    ("learning_rate", {"learning_rate": -0.1}, "learning_rate must be at least 0"),
    ("rho", {"rho": 1.5}, r"rho must be in \[0, 1\]"),
    ("momentum", {"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
    ("weight_decay", {"weight_decay": -1e-4}, "weight_decay must be at least 0"),
    ("alpha_rate", {"alpha_rate": float("nan")}, "alpha_rate must be at least 0"),
    ("alpha_clip", {"alpha_clip": 0.0}, "alpha_clip must be above 0"),
    ("alpha_range_order", {"alpha_range": (5.0, 1.0)}, "alpha_range must be"),
    ("alpha_range_sign", {"alpha_range": (0.0, 1.0)}, "alpha_range must be"),
    ("alpha_range_length", {"alpha_range": (0.1, 1.0, 2.0)}, "alpha_range must be"),
  )
  def test_value_errors(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      bcgd(**({"learning_rate": 0.1, "projection": project} | change))

  @parameterized.parameters("momentum", "weight_decay", "alpha_rate", "alpha_clip")
  def test_schedules_are_for_learning_rate_and_rho(self, name):
    with self.assertRaisesRegex(TypeError, f"{name} must be a number, got"):
      bcgd(0.1, project, **{name: lambda count: 0.1})

  def test_low_precision_alpha_is_an_error(self):
    params = make_params() | {"relu": {"alpha": jnp.asarray(0.5, jnp.bfloat16)}}
    optimizer = bcgd(0.1, project)
    with self.assertRaisesRegex(TypeError, "got bfloat16 at 'relu/alpha'"):
      optimizer.update(params, optimizer.init(params), params)
