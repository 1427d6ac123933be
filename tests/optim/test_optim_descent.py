"""Sufficient descent of blending on random quadratics, over rho and learning rate.

The inequality, and what runs it, are those of `bcgd_jax.theory.quadratics`, whose own tests hold
its steps against NumPy: eta < rho / L makes f fall, while rho = 0 promises nothing.
"""

import functools

import numpy as np
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.theory import quadratics

NUM_STEPS = 60
EXACT = {"binary": numerics.Binary(), "ternary": numerics.Ternary("sort")}
QUANTIZERS = EXACT | {"inexact": numerics.Ternary("twn_all")}


@functools.cache
def make_problems():
  return quadratics.make_quadratics(3, num_problems=400, size=12)


def run(name, *, rho, rate_times_lipschitz):
  return quadratics.run_blended(
    make_problems(),
    QUANTIZERS[name],
    rho=rho,
    rate_times_lipschitz=rate_times_lipschitz,
    num_steps=NUM_STEPS,
  )


class DescentTest(parameterized.TestCase):
  @parameterized.product(name=sorted(EXACT), rho=(0.05, 0.3, 1.0), share=(0.2, 0.5, 0.99))
  def test_never_violated(self, name, rho, share):
    found = run(name, rho=rho, rate_times_lipschitz=share * rho)
    # Sums of some hundred float64 products: rounding is a few 1e-14 of f.
    self.assertLess(found.excess.max(), 1e-12)
    self.assertGreater(np.mean(found.moved > 1e-6), 0.1)

  @parameterized.parameters(*sorted(EXACT))
  def test_bound_is_not_idle(self, name):
    # Beyond eta = rho / L the right side allows a rise, and f takes it.
    f = run(name, rho=0.05, rate_times_lipschitz=1.0).losses
    self.assertGreater(np.mean(np.diff(f) > 1e-6 * f[:, :-1]), 0.01)

  @parameterized.parameters(*sorted(EXACT))
  def test_rises_without_blending(self, name):
    f = run(name, rho=0.0, rate_times_lipschitz=0.05).losses
    self.assertGreater(np.mean(np.diff(f) > 1e-6 * f[:, :-1]), 0.01)

  def test_inexact_projection_breaks_it(self):
    excess = run("inexact", rho=0.3, rate_times_lipschitz=0.15).excess
    self.assertGreater(np.mean(excess > 1e-6), 0.1)
