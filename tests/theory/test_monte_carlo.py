"""Sampled estimates of the two-layer network against its closed forms and against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from theory_problems import evaluate, make_problem, make_problem_at

from bcgd_jax.theory import monte_carlo, two_layer

BATCH = 2**14
LIMIT = 4.0  # standard errors


def list_estimates(estimates):
  return {"loss": estimates.loss, "grad_v": estimates.grad_v} | estimates.coarse_grad


def sample_with_numpy(z, v, w, v_star, w_star):
  """Loss, gradient in v and coarse gradients in w of each input, from their definitions."""
  hidden = z @ w
  steps = (hidden > 0).astype(np.float64)
  residual = steps @ v - (z @ w_star > 0) @ v_star
  slopes = {
    "identity": np.ones_like(hidden),
    "relu": steps,
    "clipped": steps * (hidden <= 1),
  }
  coarse = {
    ste: residual[:, None] * np.einsum("bm,bmn->bn", slope * v, z) for ste, slope in slopes.items()
  }
  return {"loss": residual**2 / 2, "grad_v": residual[:, None] * steps} | coarse


class ClosedFormsTest(parameterized.TestCase):
  def assert_agree(self, args, *, num_samples, batch_size=BATCH, seed=0):
    key = jax.random.key(seed)
    estimates = monte_carlo.estimate(key, *args, num_samples=num_samples, batch_size=batch_size)
    closed = evaluate(*args)
    for name, estimate in list_estimates(estimates).items():
      self.assertEqual(estimate.mean.shape, closed[name].shape)
      deviations = np.abs(estimate.compute_deviations(closed[name]))
      self.assertLess(deviations.max(), LIMIT, f"{name}: {deviations}")
    return estimates

  @parameterized.product(shape=((1, 3), (4, 5), (7, 2)), norm=(0.05, 1.0, 8.0))
  def test_within_four_standard_errors(self, shape, norm):
    num_hidden, size = shape
    args = make_problem(num_hidden, num_hidden=num_hidden, size=size, norm=norm)
    self.assert_agree(args, num_samples=2**18)

  @parameterized.parameters(0.02, np.pi / 2, np.pi - 0.02)
  def test_at_flat_angles(self, theta):
    self.assert_agree(make_problem_at(theta, norm=0.7), num_samples=2**18)

  @parameterized.parameters(1.0, -1.0, 0.0, 1e-30)
  def test_at_theta_0_and_pi_and_for_no_or_tiny_w(self, scale):
    v, _, v_star, w_star = make_problem(3)
    self.assert_agree((v, scale * w_star, v_star, w_star), num_samples=2**18)

  def test_float32_at_ten_million_samples(self):
    args = make_problem(5, num_hidden=2, size=1, norm=0.7)
    self.assert_agree(args, num_samples=10**7, batch_size=10**5)

  def test_float64(self):
    with jax.enable_x64(True):
      args = make_problem(6, dtype=np.float64)
      estimates = self.assert_agree(args, num_samples=2**16)
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(estimates)}, {jnp.dtype("float64")})

  def test_standard_error_is_that_of_the_mean(self):
    args = make_problem(2)
    run = functools.partial(monte_carlo.estimate, num_samples=1024, batch_size=256)
    estimates = jax.vmap(run, in_axes=(0, None, None, None, None))(
      jax.random.split(jax.random.key(1), 400), *args
    )
    closed = evaluate(*args)
    for name, estimate in list_estimates(estimates).items():
      deviations = estimate.compute_deviations(closed[name][None])
      # 400 squares of standard normal values: their mean is 1 +- 0.07.
      np.testing.assert_allclose(np.mean(deviations**2, axis=0), 1, atol=0.35, err_msg=name)


class SamplingTest(parameterized.TestCase):
  @parameterized.parameters((35, 8), (5, 8))
  def test_means_and_errors_of_exactly_these_samples(self, num_samples, batch_size):
    key, args = jax.random.key(3), make_problem(4, norm=0.6)
    estimates = monte_carlo.estimate(key, *args, num_samples=num_samples, batch_size=batch_size)
    sizes = [batch_size] * (num_samples // batch_size)
    sizes += [num_samples % batch_size] if num_samples % batch_size else []
    z = np.concatenate(
      [
        jax.random.normal(jax.random.fold_in(key, index), (size, 4, 5))
        for index, size in enumerate(sizes)
      ]
    )
    expected = sample_with_numpy(z.astype(np.float64), *args)
    for name, estimate in list_estimates(estimates).items():
      samples = expected[name]
      self.assertEqual(len(samples), num_samples)
      errors = samples.std(axis=0, ddof=1) / np.sqrt(num_samples)
      np.testing.assert_allclose(estimate.mean, samples.mean(axis=0), atol=2e-6, err_msg=name)
      np.testing.assert_allclose(estimate.standard_error, errors, atol=2e-6, err_msg=name)

  @parameterized.parameters(*two_layer.ESTIMATORS)
  def test_sampled_gradient_is_the_chain_rule_with_the_estimator(self, ste):
    args = make_problem(7, norm=0.6)
    z = np.random.default_rng(0).normal(size=(16, 4, 5)).astype(np.float32)
    compute = functools.partial(monte_carlo.sample_loss, ste=ste)
    losses = compute(*args, z)
    grad = jax.grad(lambda *weights: jnp.sum(compute(*weights, z)), argnums=(0, 1))
    grad_v, grad_w = grad(*args)
    expected = sample_with_numpy(z, *args)
    np.testing.assert_allclose(losses, expected["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad_v, expected["grad_v"].sum(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_w, expected[ste].sum(axis=0), rtol=1e-4, atol=1e-5)

  def test_depends_on_the_key(self):
    args = make_problem(0)
    run = functools.partial(monte_carlo.estimate, num_samples=5, batch_size=8)
    first, again, other = (run(jax.random.key(seed), *args) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    self.assertNotEqual(first.loss.mean, other.loss.mean)

  def test_memory_is_that_of_one_batch(self):
    args, batch_size = make_problem(0), 2**12
    run = functools.partial(monte_carlo.estimate, num_samples=2**22, batch_size=batch_size)
    compiled = jax.jit(run).lower(jax.random.key(0), *args).compile()
    inputs = batch_size * 4 * 5 * np.dtype(np.float32).itemsize
    self.assertLess(compiled.memory_analysis().temp_size_in_bytes, 10 * inputs)


class MomentsTest(parameterized.TestCase):
  @parameterized.product(offset=(0.0, 1000.0), batch_size=(1000, 2**15))
  def test_long_float32_sums_of_few_values(self, offset, batch_size):
    # Values for which a running float32 sum rounds the same way again and again.
    values = np.float32([0.1, 0.3127, 0.77, 1.01]) + np.float32(offset)
    num_batches = 2**21 // batch_size
    index = np.random.default_rng(0).integers(0, 4, size=(num_batches, batch_size, 2))
    batches = values[index]

    @jax.jit
    def run(batches):
      def step(moments, batch):
        return moments.merge(monte_carlo.Moments.measure(batch)), None

      nothing = monte_carlo.Moments(
        num_rows=jnp.zeros([], jnp.int32), mean=jnp.zeros(2), squares=jnp.zeros(2)
      )
      return jax.lax.scan(step, nothing, batches)[0]

    moments = run(batches)
    rows = batches.reshape(-1, 2).astype(np.float64)
    error = rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
    self.assertEqual(moments.num_rows, len(rows))
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=3e-6)
    np.testing.assert_allclose(moments.compute_standard_error(), error, rtol=1e-5)

  def test_deviations_of_constants(self):
    estimate = monte_carlo.Estimate(
      mean=jnp.asarray([1.0, 1.0, 1.0, 1.0]), standard_error=jnp.asarray([0.0, 0.0, 0.0, 0.5])
    )
    deviations = estimate.compute_deviations(jnp.asarray([1.0, 0.5, 2.0, 0.0]))
    np.testing.assert_array_equal(deviations, [0.0, np.inf, -np.inf, 2.0])


class ArgumentsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("one", {"num_samples": 1}, ValueError, r"num_samples must be in \[2, 2\^31\), got 1"),
    ("many", {"num_samples": 2**31}, ValueError, "num_samples must be in .*, got 2147483648"),
    ("batch", {"batch_size": 0}, ValueError, r"batch_size must be in \[1, 2\^31\), got 0"),
    ("float", {"num_samples": 1e6}, TypeError, "num_samples must be a Python int, got 1000000.0"),
    ("shape", {"v": np.zeros(3)}, ValueError, "v_star must have v's shape"),
  )
  def test_refuses(self, change, error, message):
    v, w, v_star, w_star = make_problem(0)
    good = {"v": v, "w": w, "v_star": v_star, "w_star": w_star, "num_samples": 8, "batch_size": 4}
    with self.assertRaisesRegex(error, message):
      monte_carlo.estimate(jax.random.key(0), **good | change)
