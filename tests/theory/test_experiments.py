"""The measurements that have no sampling error."""

import numpy as np
from absl.testing import absltest

from bcgd_jax.theory import experiments, sampling, two_layer


class ExperimentsTest(absltest.TestCase):
  def test_spurious_minimum_is_one(self):
    v, loss = experiments.spurious_minimum()
    problem = sampling.make_spurious_problem()
    np.testing.assert_allclose(v, problem[0], rtol=1e-6)
    np.testing.assert_allclose(loss, two_layer.population_loss(*problem), rtol=1e-6)
    grad_v, _ = two_layer.population_grad(*problem)
    np.testing.assert_allclose(grad_v, np.zeros(4), atol=1e-6)

  def test_gradient_gaps(self):
    gaps = experiments.measure_gradient_gaps(20)
    self.assertEqual(gaps.shape, (20,))
    self.assertLess(gaps.max(), 1e-13)
    self.assertGreater(gaps.max(), 0)

  def test_norm_ratios(self):
    identity, relu = (experiments.measure_norm_ratios(ste) for ste in ("identity", "relu"))
    # the bracket falls like the distance, the identity's gradient stays
    np.testing.assert_allclose(identity[1] / identity[0], 100, rtol=0.05)
    self.assertLess(relu.max(), 1)
