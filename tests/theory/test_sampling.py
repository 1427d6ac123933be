"""Correlations and comparisons by samples against closed forms, and a wrong form that is found."""

import jax
import numpy as np
from absl.testing import parameterized

from bcgd_jax.theory import sampling, two_layer


class ComparisonsTest(parameterized.TestCase):
  """One compilation: all its problems have 4 rows of 5 numbers."""

  NUM_SAMPLES = 2**17

  def test_wrong_formula_is_found(self):
    comparison = sampling.compare_wrong_form(jax.random.key(0), self.NUM_SAMPLES)
    self.assertGreater(np.abs(comparison.deviations).max(), 100)

  @parameterized.parameters(sampling.V_STAR, sampling.TRAINABLE_V)
  def test_correlation_agrees_with_its_closed_form(self, *v):
    correlation = sampling.measure_correlation(jax.random.key(1), self.NUM_SAMPLES, v=v)
    comparison = sampling.compare_correlation(correlation, "inner product")
    self.assertEqual(comparison.deviations.shape, (27,))
    self.assertLess(np.abs(comparison.deviations).max(), 4)
    # standard errors as they should be: the sum of squares of 27 is about 27
    self.assertBetween(np.sum(comparison.deviations**2), 8, 60)
    for ste in two_layer.ESTIMATORS:
      problems = [sampling.make_problem_at(theta, v) for theta in correlation.theta]
      for i, problem in enumerate(problems):
        coarse = np.asarray(two_layer.coarse_grad(*problem, ste=ste))
        true = np.asarray(two_layer.population_grad(*problem)[1])
        cosine = coarse @ true / np.linalg.norm(coarse) / np.linalg.norm(true)
        gap = abs(correlation.cosine[ste][i] - cosine)
        self.assertLess(gap, 4 * correlation.cosine_error[ste][i] + 1e-6)

  @parameterized.parameters(*two_layer.ESTIMATORS)
  def test_inner_product_is_that_of_the_closed_forms(self, ste):
    for seed, norm in ((0, 0.1), (1, 1.0), (2, 20.0)):
      problem = sampling.make_problem(seed, num_hidden=4, size=5, norm=norm)
      coarse = two_layer.coarse_grad(*problem, ste=ste)
      true = two_layer.population_grad(*problem)[1]
      scale = np.linalg.norm(coarse) * np.linalg.norm(true)
      product = sampling.inner_product(*problem, ste=ste)
      np.testing.assert_allclose(product, coarse @ true, atol=1e-5 * scale)
      self.assertGreaterEqual(float(product), 0)

  @parameterized.product(ste=two_layer.ESTIMATORS, norm=(1e-25, 1.0, 1e15))
  def test_inner_product_at_the_edges(self, ste, norm):
    v, w, v_star, _ = map(np.asarray, sampling.make_problem_at(1.0, sampling.V_STAR))
    w = np.float32(norm) * w
    for w_star in (w, -w):
      product = float(sampling.inner_product(v, w, v_star, w_star, ste=ste))
      self.assertEqual(product, 0)
    across = np.eye(5, dtype=np.float32)[1]
    product = float(sampling.inner_product(v, w, v_star, across, ste=ste))
    coarse, true = (
      np.asarray(x, np.float64)
      for x in (
        two_layer.coarse_grad(v, w, v_star, across, ste=ste),
        two_layer.population_grad(v, w, v_star, across)[1],
      )
    )
    np.testing.assert_allclose(product, coarse @ true, rtol=2e-5)

  def test_unknown_estimator(self):
    with self.assertRaisesRegex(ValueError, "ste must be one of identity, relu, clipped"):
      sampling.inner_product(*sampling.make_problem_at(1.0, sampling.V_STAR), ste="sign")
