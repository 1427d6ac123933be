"""Coarse gradient descent: steps by hand, and where each estimator ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from theory_problems import evaluate, in_float64, make_problem, make_problem_at

from bcgd_jax.theory import descent, monte_carlo, two_layer

NUM_STARTS = 24
CHOICES = (*two_layer.ESTIMATORS, "true")


def run_all(problems, **settings):
  """Descends from every problem at once, in float64; fields are [P, T + 1, ...]."""
  run = functools.partial(descent.coarse_gradient_descent, **settings)
  columns = [np.stack(column) for column in zip(*problems, strict=True)]
  return in_float64(jax.vmap(run), *columns)


class StepsTest(parameterized.TestCase):
  @parameterized.product(ste=CHOICES, train_and_normalize=(False, True))
  def test_steps_by_hand(self, ste, train_and_normalize):
    v, w, v_star, w_star = make_problem(0)
    settings = {"ste": ste, "learning_rate": 0.25, "num_steps": 2}
    settings |= {"train_v": train_and_normalize, "normalize_w": train_and_normalize}
    trajectory = descent.coarse_gradient_descent(v, w, v_star, w_star, **settings)
    second, first = v, w
    tolerance = {"rtol": 2e-5, "atol": 1e-6}
    for step in range(3):
      values = evaluate(second, first, v_star, w_star)
      np.testing.assert_allclose(trajectory.v[step], second, **tolerance)
      np.testing.assert_allclose(trajectory.w[step], first, **tolerance)
      np.testing.assert_allclose(trajectory.loss[step], values["loss"], **tolerance)
      np.testing.assert_allclose(trajectory.theta[step], values["angle"], **tolerance)
      np.testing.assert_allclose(trajectory.norm_w[step], np.linalg.norm(first), **tolerance)
      distance = np.linalg.norm(second - v_star)
      np.testing.assert_allclose(trajectory.distance_v[step], distance, **tolerance)
      first = first - np.float32(0.25) * values["grad_w" if ste == "true" else ste]
      if train_and_normalize:
        first = first / np.linalg.norm(first)
        second = second - np.float32(0.25) * values["grad_v"]
    self.assertEqual(trajectory.loss.shape, (3,))
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(trajectory)}, {jnp.float32.dtype})
    # The same compiled loop at w = 0, where no direction is left to normalise.
    flat = descent.coarse_gradient_descent(v, 0 * w, v_star, w_star, **settings)
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(flat)))

  def test_a_sampled_step_is_the_sampled_gradient(self):
    args, key, ste = make_problem(1), jax.random.key(5), "clipped"
    trajectory = descent.coarse_gradient_descent(
      *args, ste=ste, learning_rate=0.5, num_steps=2, train_v=True, key=key, batch_size=64
    )

    @jax.jit
    def differentiate(v, w, step):
      z = jax.random.normal(jax.random.fold_in(key, step), (64, 4, 5))

      def loss(v, w):
        return jnp.mean(monte_carlo.sample_loss(v, w, *args[2:], z, ste=ste))

      return jax.grad(loss, argnums=(0, 1))(v, w)

    for step in range(2):
      v, w = trajectory.v[step], trajectory.w[step]
      grad_v, grad_w = differentiate(v, w, step)
      np.testing.assert_allclose(trajectory.v[step + 1], v - grad_v / 2, atol=1e-5)
      np.testing.assert_allclose(trajectory.w[step + 1], w - grad_w / 2, atol=1e-5)
    # The recorded loss is the expectation all the same.
    values = evaluate(trajectory.v[2], trajectory.w[2], *args[2:])
    np.testing.assert_allclose(trajectory.loss[2], values["loss"], rtol=1e-5)


class FixedSecondLayerTest(parameterized.TestCase):
  """v = v_star: every estimator turns w towards w_star."""

  def make_starts(self):
    problems = [make_problem(seed, size=10) for seed in range(NUM_STARTS)]
    scale = np.sqrt(1.5)
    stars = [scale * v_star / np.linalg.norm(v_star) for _, _, v_star, _ in problems]
    return [
      (star, w, star, w_star) for star, (_, w, _, w_star) in zip(stars, problems, strict=True)
    ]

  @parameterized.product(ste=two_layer.ESTIMATORS, normalize_w=(False, True))
  def test_angle_never_grows(self, ste, normalize_w):
    trajectory = run_all(
      self.make_starts(),
      ste=ste,
      learning_rate=0.05,
      num_steps=1500,
      train_v=False,
      normalize_w=normalize_w,
    )
    self.assertLess(np.diff(trajectory.theta).max(), 1e-14)
    self.assertLess(np.diff(trajectory.loss).max(), 1e-14)
    self.assertGreater(trajectory.theta[:, 0].min(), 0.9)
    self.assertLess(trajectory.theta[:, -1].max(), 1e-6)
    np.testing.assert_array_equal(trajectory.v[:, -1], trajectory.v[:, 0])
    if normalize_w:
      np.testing.assert_allclose(trajectory.norm_w, 1, atol=1e-12)

  def test_identity_is_relu_at_twice_the_rate(self):
    settings = {"num_steps": 1500, "train_v": False}
    relu = run_all(self.make_starts(), ste="relu", learning_rate=0.1, **settings)
    identity = run_all(self.make_starts(), ste="identity", learning_rate=0.05, **settings)
    np.testing.assert_allclose(relu.w, identity.w, atol=1e-12)

  def test_true_gradient_overshoots_the_kink(self):
    trajectory = run_all(
      self.make_starts(), ste="true", learning_rate=0.05, num_steps=1500, train_v=False
    )
    self.assertGreater(np.diff(trajectory.theta).max(), 1e-4)

  def test_samples_follow_the_expectation(self):
    start = self.make_starts()[0]
    settings = {"ste": "identity", "learning_rate": 0.1, "num_steps": 50, "train_v": False}
    expected = run_all([start], **settings)
    narrow = [np.float32(x) for x in start]
    run = functools.partial(descent.coarse_gradient_descent, *narrow, **settings)
    sampled, again, other = (run(key=jax.random.key(seed), batch_size=4096) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, sampled, again)
    self.assertGreater(np.abs(sampled.w - other.w).max(), 1e-4)
    self.assertGreater(expected.theta[0, 0] - expected.theta[0, -1], 0.2)
    # One step's noise is about 0.1 * 2 / sqrt(4096) = 3e-3; fifty make 0.02.
    np.testing.assert_allclose(sampled.w, expected.w[0], atol=0.06)


class TrainedSecondLayerTest(parameterized.TestCase):
  @parameterized.parameters(("relu", 6.0), ("clipped", 3.0))
  def test_converges_to_a_minimum(self, ste, norm):
    # The theorem wants |w| away from 0; on the way it falls by 5 under relu, 0.4 under clipped.
    problems = [make_problem(seed, norm=norm, size=3) for seed in range(NUM_STARTS)]
    trajectory = run_all(problems, ste=ste, learning_rate=0.05, num_steps=6000, train_v=True)
    self.assertLess(np.diff(trajectory.loss).max(), 1e-14)
    self.assertGreater(trajectory.norm_w.min(), 1)
    kinds = []
    for row, (_, _, v_star, _) in enumerate(problems):
      theta = trajectory.theta[row, -1]
      points = in_float64(two_layer.critical_points, v_star)
      kinds.append("global" if theta < np.pi / 2 else "spurious")
      target = v_star if kinds[-1] == "global" else points.spurious_minimum.v
      np.testing.assert_allclose(theta, 0.0 if kinds[-1] == "global" else np.pi, atol=0.1)
      np.testing.assert_allclose(trajectory.v[row, -1], target, atol=0.1)
    self.assertEqual(set(kinds), {"global", "spurious"})

  def start_near_the_spurious_minimum(self):
    """Returns a start 0.05 and 0.02 away, the minimum's v and its loss."""
    v_star = np.asarray([1.0, -0.5, 2.0, 0.3])
    point = in_float64(two_layer.critical_points, v_star).spurious_minimum
    _, w, _, w_star = make_problem_at(np.pi - 0.05, dtype=np.float64)
    loss = in_float64("loss", point.v, -w_star, v_star, w_star)
    return (point.v + 0.02 * np.asarray([1, -1, 0.5, -0.3]), w, v_star, w_star), point.v, loss

  @parameterized.parameters("relu", "clipped")
  def test_spurious_minimum_holds(self, ste):
    start, v, loss = self.start_near_the_spurious_minimum()
    trajectory = run_all([start], ste=ste, learning_rate=0.02, num_steps=4000, train_v=True)
    self.assertLess(np.diff(trajectory.loss).max(), 1e-14)
    self.assertLess(np.pi - trajectory.theta[0, -1], 1e-5)
    np.testing.assert_allclose(trajectory.v[0, -1], v, atol=1e-4)
    np.testing.assert_allclose(trajectory.loss[0, -1], loss, rtol=1e-4)
    self.assertGreater(trajectory.norm_w.min(), 0.99)

  def test_identity_is_driven_off_it(self):
    start, v, loss = self.start_near_the_spurious_minimum()
    settings = {"ste": "identity", "learning_rate": 0.02, "num_steps": 400, "train_v": True}
    trajectory = run_all([start], **settings)
    # The identity's gradient along w does not vanish there: |w| shrinks until w changes sides.
    self.assertLess(trajectory.norm_w.min(), 0.02)
    self.assertGreater(np.diff(trajectory.loss).max(), 0.5)
    self.assertGreater(np.linalg.norm(trajectory.v[0, -1] - v), 0.5)
    # On the sphere that part of the gradient has no effect.
    normalized = run_all([start], **settings, normalize_w=True)
    self.assertLess(np.diff(normalized.loss).max(), 1e-14)
    np.testing.assert_allclose(normalized.loss[0, -1], loss, rtol=1e-2)


class ArgumentsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("ste", {"ste": "sign"}, ValueError, "ste must be one of identity, .*, true, got 'sign'"),
    ("rate", {"learning_rate": 0.0}, ValueError, "learning_rate must be > 0 and finite, got 0.0"),
    ("steps", {"num_steps": 0}, ValueError, r"num_steps must be in \[1, 2\^31\), got 0"),
    ("float", {"num_steps": 3.0}, TypeError, "num_steps must be a Python int, got 3.0"),
    ("key", {"batch_size": 8}, ValueError, "key and batch_size must be given both or neither"),
    ("shape", {"w": np.zeros(3)}, ValueError, "w_star must have w's shape"),
    (
      "true",
      {"ste": "true", "key": "a key", "batch_size": 8},
      ValueError,
      "ste must be one of identity, relu, clipped with sampled inputs, got 'true'",
    ),
    (
      "batch",
      {"key": "a key", "batch_size": 0},
      ValueError,
      r"batch_size must be in \[1, 2\^31\), got 0",
    ),
  )
  def test_refuses(self, change, error, message):
    v, w, v_star, w_star = make_problem(0)
    good = {"v": v, "w": w, "v_star": v_star, "w_star": w_star}
    good |= {"ste": "relu", "learning_rate": 0.1, "num_steps": 2, "train_v": True}
    with self.assertRaisesRegex(error, message):
      descent.coarse_gradient_descent(**good | change)
