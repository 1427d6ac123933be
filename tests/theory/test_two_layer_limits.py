"""The two-layer network's closed forms at critical points, at theta = 0 and pi, and for tiny w."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from theory_problems import FUNCTIONS, evaluate, in_float64, make_problem, make_problem_at

from bcgd_jax.theory import two_layer


@jax.jit
def differentiate(v, w, v_star, w_star):
  """Returns the derivatives of all values but grad_w in each argument.

  That one's derivative in w grows as 1 / |w|^2 and, being infinite, would spoil the others'.
  """

  def evaluate_most(*args):
    return {name: value for name, value in evaluate(*args).items() if name != "grad_w"}

  return jax.jacrev(evaluate_most, argnums=(0, 1, 2, 3))(v, w, v_star, w_star)


@jax.jit
def differentiate_true_gradient(v, w, v_star, w_star):
  return jax.jacrev(FUNCTIONS["grad_w"], argnums=(0, 1, 2, 3))(v, w, v_star, w_star)


class SpecialPointsTest(parameterized.TestCase):
  def test_loss_at_the_right_second_layer(self):
    for theta in (0.0, 0.5, 3.0):
      _, w, v_star, w_star = make_problem_at(theta, dtype=np.float64)
      loss = in_float64("loss", v_star, w, v_star, w_star)
      np.testing.assert_allclose(loss, v_star @ v_star * theta / (2 * np.pi), atol=1e-15)

  @parameterized.parameters(2, 4, 7)
  def test_spurious_minimum(self, num_hidden):
    v_star = np.random.default_rng(5).normal(size=num_hidden)
    v_star -= 0.8 * v_star.mean()  # The sum has to be small beside the length.
    total = v_star.sum()
    self.assertLess(total**2, (num_hidden + 1) / 2 * v_star @ v_star)
    point = in_float64(two_layer.critical_points, v_star).spurious_minimum
    self.assertEqual(point.theta, np.pi)
    inverse = np.linalg.inv(np.eye(num_hidden) + 1)
    np.testing.assert_allclose(point.v, inverse @ (total - v_star), atol=1e-14)
    w_star = np.array([0.6, 0.8, 0.0])
    args = (point.v, -2 * w_star, v_star, w_star)
    np.testing.assert_allclose(in_float64("grad_v", *args), 0, atol=1e-14)
    for ste in ("relu", "clipped"):
      np.testing.assert_allclose(in_float64(ste, *args), 0, atol=1e-14)
    expected = 2 * (num_hidden - 1) * total**2 / (np.sqrt(2 * np.pi) * (num_hidden + 1) ** 2)
    identity = np.linalg.norm(in_float64("identity", *args))
    np.testing.assert_allclose(identity, expected, rtol=1e-12)
    self.assertGreater(self.changes_around(*args).min(), 0)

  def test_saddle(self):
    v_star = make_problem(1, num_hidden=8)[2].astype(np.float64)
    point = in_float64(two_layer.critical_points, v_star).saddle
    np.testing.assert_allclose(point.v @ v_star, 0, atol=1e-14)
    self.assertTrue(np.pi / 2 < point.theta < np.pi)
    _, w, _, w_star = make_problem_at(point.theta, num_hidden=8, dtype=np.float64)
    args = (point.v, w, v_star, w_star)
    np.testing.assert_allclose(in_float64("grad_v", *args), 0, atol=1e-14)
    np.testing.assert_allclose(in_float64("grad_w", *args), 0, atol=1e-14)
    changes = self.changes_around(*args)
    self.assertLess(changes.min(), -1e-6)
    self.assertGreater(changes.max(), 1e-6)

  def changes_around(self, v, w, v_star, w_star):
    rng = np.random.default_rng(0)
    start = in_float64("loss", v, w, v_star, w_star)
    # f is a paraboloid in v and at a saddle bilinear in the two: v has to move less than w.
    moved_v = v + 0.002 * rng.normal(size=(200, v.size))
    moved_w = w + 0.02 * rng.normal(size=(200, w.size))
    batched = jax.jit(jax.vmap(two_layer.population_loss, in_axes=(0, 0, None, None)))
    return in_float64(batched, moved_v, moved_w, v_star, w_star) - start

  def test_points_exist_only_where_the_sum_is_small(self):
    for v_star in ([1.0, 1.0, 1.0], [2.0], [0.0, 0.0]):
      points = two_layer.critical_points(jnp.asarray(v_star))
      self.assertIsNone(points.saddle)
      self.assertIsNone(points.spurious_minimum)
    # (sum)^2 = 9 below and at (m + 1) / 2 |v_star|^2 = 18, 9.25, 9.
    for last, exists in ((0.0, True), (1.25, True), (1.5, False)):
      points = two_layer.critical_points(jnp.asarray([3.0 - last, last, 0.0]))
      self.assertEqual(points.saddle is not None, exists)


class LimitsTest(parameterized.TestCase):
  @parameterized.parameters(1e-38, 1e-30, 1e-3, 1.0, 1e15, 1e37)
  def test_finite_with_finite_derivatives(self, norm):
    v, _, v_star, w_star = map(jnp.asarray, make_problem(2))
    for w in (w_star, -w_star, 0 * w_star):
      args = (v, w * jnp.float32(norm), v_star, w_star)
      for leaf in jax.tree.leaves((evaluate(*args), differentiate(*args))):
        self.assertTrue(np.isfinite(leaf).all())

  @parameterized.parameters(1e-15, 1.0, 1e15)
  def test_finite_derivatives_of_the_true_gradient(self, norm):
    v, _, v_star, w_star = map(jnp.asarray, make_problem(2))
    for w in (w_star, -w_star, 0 * w_star):
      for leaf in differentiate_true_gradient(v, w * jnp.float32(norm), v_star, w_star):
        self.assertTrue(np.isfinite(leaf).all())

  @parameterized.parameters("identity", "relu", "clipped")
  def test_fixed_second_layer_at_both_ends(self, ste):
    _, _, v, w_star = make_problem(3)
    scale = v @ v / np.sqrt(2 * np.pi) * (1 if ste == "identity" else 0.5)
    # At |w| = 0.01 the clipped estimator is the relu one.
    zero = evaluate(v, 0.01 * w_star, v, w_star)[ste]
    np.testing.assert_allclose(zero, 0 * w_star, atol=1e-6)
    opposite = evaluate(v, -0.01 * w_star, v, w_star)[ste]
    np.testing.assert_allclose(opposite, -2 * scale * w_star, rtol=1e-5)

  def test_zero_weights_are_the_zero_network(self):
    v, w, v_star, w_star = map(jnp.asarray, make_problem(4))
    args = (v, 0 * w, v_star, w_star)
    expected = (v_star @ v_star + v_star.sum() ** 2) / 8
    np.testing.assert_allclose(two_layer.population_loss(*args), expected, rtol=1e-6)
    np.testing.assert_allclose(two_layer.angle(0 * w, w_star), np.pi / 2, rtol=1e-7)
    for name in ("grad_v", "grad_w", "relu", "clipped"):
      np.testing.assert_array_equal(evaluate(*args)[name], 0 * evaluate(v, w, v_star, w_star)[name])
    np.testing.assert_allclose(
      evaluate(*args)["identity"], -(v @ v_star) * w_star / np.sqrt(2 * np.pi), rtol=1e-6
    )

  @parameterized.parameters(0.0, 0.5, np.pi / 2, 3.0, np.pi)
  def test_clipped_tends_to_relu(self, theta):
    gaps = []
    for norm in (0.5, 0.3, 0.2, 1e-3, 1e-30):
      args = make_problem_at(theta, norm=norm, dtype=np.float64)
      relu, clipped = (in_float64(ste, *args) for ste in ("relu", "clipped"))
      gaps.append(np.linalg.norm(relu - clipped))
    self.assertLess(gaps[1], gaps[0])
    self.assertLess(gaps[2], 1e-4)
    self.assertLess(max(gaps[3:]), 1e-14)

  def test_no_dependence_on_norm_but_of_clipped(self):
    for name, power in (("loss", 0), ("grad_v", 0), ("grad_w", -1), ("identity", 0), ("relu", 0)):
      v, w, v_star, w_star = make_problem(5)
      expected = evaluate(v, w, v_star, w_star)[name]
      for scale in (2.0**-100, 2.0**100):
        scaled = evaluate(v, w * np.float32(scale), v_star, w_star)[name]
        np.testing.assert_array_equal(scaled * np.float32(scale ** (-power)), expected)

  def test_clipped_vanishes_for_long_w(self):
    v, w, v_star, w_star = make_problem(6, dtype=np.float64)
    near, far = (in_float64("clipped", v, w * s, v_star, w_star) for s in (1e3, 1e6))
    # Only the strip 0 < Z.w < 1 of width 1 / |w| contributes.
    self.assertLess(np.linalg.norm(far * 1e3 - near), 1e-2 * np.linalg.norm(near))
    self.assertGreater(np.linalg.norm(far), 0)

  @parameterized.parameters(1e-1, 1e-3, 1e-5, 1e-7)
  def test_angle_is_exact_near_its_ends(self, gap):
    w_star = jnp.asarray([1.0, 0.0], jnp.float32)
    for length in (1e-25, 1.0, 1e25):
      w = jnp.float32(length) * jnp.asarray([1.0, gap], jnp.float32)
      np.testing.assert_allclose(two_layer.angle(w, w_star), np.arctan(gap), rtol=5e-7)
      back = two_layer.angle(-w, w_star)
      np.testing.assert_allclose(back, np.pi - np.arctan(gap), rtol=3e-7)
      self.assertLessEqual(back, jnp.float32(np.pi))

  @parameterized.parameters(1e-3, 1e-4, np.pi - 1e-3, np.pi - 1e-4)
  def test_true_gradient_is_orthogonal_to_w_near_the_kinks(self, theta):
    for seed in range(20):
      v, w, v_star, w_star = make_problem_at(theta, seed=seed)
      grad_w = np.asarray(evaluate(v, w, v_star, w_star)["grad_w"], np.float64)
      # u_star - cos(theta) u, formed as it stands, is off by up to 2e-3 here.
      self.assertLess(abs(grad_w @ w), 3e-7 * np.linalg.norm(grad_w))

  def test_angle_at_its_ends(self):
    _, _, _, w_star = make_problem(7)
    self.assertEqual(two_layer.angle(4 * w_star, w_star), 0)
    self.assertEqual(two_layer.angle(-4 * w_star, w_star), jnp.float32(np.pi))
    # Three times a float32 vector is its direction only to rounding: the kink must not show.
    _, grad_w = two_layer.population_grad(*make_problem(7)[:1], 3 * w_star, *make_problem(7)[2:])
    np.testing.assert_array_equal(grad_w, 0 * w_star)
