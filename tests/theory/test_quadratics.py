"""The harness of the blending inequality: its steps by hand, its counts, and that it can fail.

That the inequality holds for every rho and rate is tested in tests/optim/test_optim_descent.py.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.theory import quadratics

PROBLEMS = quadratics.make_quadratics(1, num_problems=30, size=6)


def run(quantizer, *, rho, rate_times_lipschitz=0.05, num_steps=60):
  return quadratics.run_blended(
    PROBLEMS,
    quantizer,
    rho=rho,
    rate_times_lipschitz=rate_times_lipschitz,
    num_steps=num_steps,
  )


def make_runs(losses, *, excess, moved, code_changes):
  return quadratics.BlendedRuns(
    rho=0.1,
    rate_times_lipschitz=0.05,
    losses=np.array(losses),
    excess=np.array(excess),
    moved=np.array(moved),
    code_changes=np.array(code_changes),
  )


class ProblemsTest(parameterized.TestCase):
  def test_hessians(self):
    eigenvalues = np.linalg.eigvalsh(PROBLEMS.hessians)
    np.testing.assert_allclose(eigenvalues[:, -1], PROBLEMS.lipschitz, rtol=1e-12)
    self.assertGreater(eigenvalues.min(), 0.009)
    np.testing.assert_allclose(
      PROBLEMS.hessians, PROBLEMS.hessians.swapaxes(1, 2), rtol=0, atol=1e-12
    )

  @parameterized.parameters(
    (0, 3, r"num_problems must be in \[1, 2\^31\), got 0"),
    (3, 0, r"size must be in \[1, 2\^31\), got 0"),
  )
  def test_bad_sizes(self, num_problems, size, message):
    with self.assertRaisesRegex(ValueError, message):
      quadratics.make_quadratics(0, num_problems=num_problems, size=size)


class RunTest(parameterized.TestCase):
  def test_steps_by_hand(self):
    """In NumPy, in float64, though jax's default here is float32."""
    self.assertEqual(jnp.zeros(2).dtype, jnp.float32)
    rho, share, steps = 0.3, 0.2, 20
    found = run(numerics.Binary(), rho=rho, rate_times_lipschitz=share, num_steps=steps)
    self.assertEqual(found.losses.dtype, np.float64)
    for p in (0, 7):
      hessian, minimiser = PROBLEMS.hessians[p], PROBLEMS.minimisers[p]
      y, weights, losses = PROBLEMS.starts[p], [], []
      for _ in range(steps + 1):
        w = np.mean(np.abs(y)) * np.sign(y)
        weights.append(w)
        losses.append((w - minimiser) @ hessian @ (w - minimiser) / 2)
        gradient = hessian @ (w - minimiser)
        y = (1 - rho) * y + rho * w - share / PROBLEMS.lipschitz[p] * gradient
      np.testing.assert_allclose(found.losses[p], losses, rtol=1e-10)
      moved = np.sum(np.diff(weights, axis=0) ** 2, axis=1)
      np.testing.assert_allclose(found.moved[p], moved, rtol=1e-9, atol=1e-15)
      changes = [(np.sign(a) != np.sign(b)).any() for a, b in itertools.pairwise(weights)]
      np.testing.assert_array_equal(found.code_changes[p], changes)
      bound = losses[:-1] - (rho / share - 1) * PROBLEMS.lipschitz[p] / 2 * moved
      np.testing.assert_allclose(found.excess[p], (losses[1:] - bound) / losses[:-1], atol=1e-12)

  @parameterized.parameters(numerics.Binary(), numerics.Ternary("sort"))
  def test_exact_projection_keeps_the_inequality(self, quantizer):
    blended = run(quantizer, rho=0.1)
    self.assertEqual((blended.num_violations(), blended.num_rises()), (0, 0))
    self.assertGreater(blended.num_code_changes(), 10)
    self.assertGreater(run(quantizer, rho=0.0).num_rises(), 100)

  def test_inexact_projection_breaks_it(self):
    blended = run(numerics.Ternary("twn_all"), rho=0.1)
    self.assertGreater(blended.num_violations(), 100)
    self.assertGreater(blended.num_rises(), 100)

  @parameterized.parameters(
    ({"rho": 1.5}, r"rho must be in \[0, 1\], got 1.5"),
    ({"rho": math.nan}, r"rho must be in \[0, 1\], got nan"),
    (
      {"rho": 0.1, "rate_times_lipschitz": 0.0},
      "rate_times_lipschitz must be above 0 and finite, got 0.0",
    ),
    ({"rho": 0.1, "rate_times_lipschitz": math.inf}, "must be above 0 and finite, got inf"),
    ({"rho": 0.1, "num_steps": 0}, r"num_steps must be in \[1, 2\^31\), got 0"),
  )
  def test_bad_arguments(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      run(numerics.Binary(), **arguments)


class CountsTest(parameterized.TestCase):
  def test_counts(self):
    runs = make_runs(
      [[1.0, 0.5, 0.5 + 1e-14, 0.6], [2.0, 2.0, 2.0, 1.0]],
      excess=[[-0.1, 1e-14, 0.2], [0.0, 0.0, 1e-11]],
      moved=[[1.0, 1e-30, 1.0], [0.0, 0.0, 1.0]],
      code_changes=[[True, False, True], [False, False, True]],
    )
    self.assertEqual(runs.num_violations(), 2)
    self.assertEqual(runs.num_violations(tolerance=1e-3), 1)
    self.assertEqual(runs.num_rises(), 1)
    self.assertEqual(runs.num_rises(tolerance=0.0), 2)
    self.assertEqual(runs.num_code_changes(), 3)
