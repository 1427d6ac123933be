"""Sufficient descent of blending on random quadratics, in float64.

For f with an L-Lipschitz gradient, Q an exact projection, w_t = Q(y_t) and the float weights y
moved by y <- y + rho * (Q(y) - y) - eta * grad f(Q(y)), the two projection inequalities give

  f(w_{t+1}) <= f(w_t) - (rho / eta - L) / 2 * |w_{t+1} - w_t|^2

so eta < rho / L makes f fall, while rho = 0 promises nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.optim import blend

NUM_PROBLEMS, NUM_STEPS, SIZE = 400, 60, 12
EXACT = {"binary": numerics.Binary(), "ternary": numerics.Ternary("sort")}
QUANTIZERS = EXACT | {"inexact": numerics.Ternary("twn_all")}


@functools.cache
def make_problems():
  """Returns Hessians [P, n, n] of spread spectra, minimisers [P, n], starts [P, n], L [P]."""
  rng = np.random.default_rng(3)
  rotations = np.linalg.qr(rng.normal(size=(NUM_PROBLEMS, SIZE, SIZE)))[0]
  spectra = 10 ** rng.uniform(-2, 1, size=(NUM_PROBLEMS, 1, SIZE))
  hessians = (rotations * spectra) @ rotations.swapaxes(1, 2)
  minimisers, starts = rng.normal(size=(2, NUM_PROBLEMS, SIZE))
  return hessians, minimisers, starts, spectra.max(axis=(1, 2))


@functools.cache
def make_runner(name):
  """Returns (rho, rate_times_lipschitz) -> f [P, T+1] at the quantized weights and the weights."""
  projection = numerics.make_projection({"w": QUANTIZERS[name]})

  def evaluate(w, hessian, minimiser):
    return (w - minimiser) @ hessian @ (w - minimiser) / 2

  def run_one(rho, rate, hessian, minimiser, start):
    optimizer = blend(optax.sgd(rate), projection, rho)

    def step(carry, _):
      params, state = carry
      w = projection(params)["w"]
      f, g = jax.value_and_grad(evaluate)(w, hessian, minimiser)
      updates, state = optimizer.update({"w": g}, state, params)
      return (optax.apply_updates(params, updates), state), (f, w)

    params = {"w": start}
    _, trace = jax.lax.scan(step, (params, optimizer.init(params)), length=NUM_STEPS + 1)
    return trace

  return jax.jit(jax.vmap(run_one, in_axes=(None, 0, 0, 0, 0)))


def run(name, *, rho, rate_times_lipschitz):
  *problems, lipschitz = make_problems()
  with jax.enable_x64(True):
    rates = jnp.asarray(rate_times_lipschitz / lipschitz)
    f, w = make_runner(name)(jnp.asarray(rho), rates, *map(jnp.asarray, problems))
    return np.asarray(f), np.asarray(w)


def measure_excess(f, w, *, rho, rate_times_lipschitz):
  """Returns f(w_{t+1}) minus its bound, relative to f(w_t), and |w_{t+1} - w_t|^2: [P, T]."""
  moved = np.sum(np.diff(w, axis=1) ** 2, axis=2)
  lipschitz = make_problems()[3][:, None]
  bound = f[:, :-1] - (rho / rate_times_lipschitz - 1) * lipschitz / 2 * moved
  return (f[:, 1:] - bound) / f[:, :-1], moved


class DescentTest(parameterized.TestCase):
  @parameterized.product(name=sorted(EXACT), rho=(0.05, 0.3, 1.0), share=(0.2, 0.5, 0.99))
  def test_never_violated(self, name, rho, share):
    steps = {"rho": rho, "rate_times_lipschitz": share * rho}
    excess, moved = measure_excess(*run(name, **steps), **steps)
    # Sums of some hundred float64 products: rounding is a few 1e-14 of f.
    self.assertLess(excess.max(), 1e-12)
    self.assertGreater(np.mean(moved > 1e-6), 0.1)

  @parameterized.parameters(*sorted(EXACT))
  def test_bound_is_not_idle(self, name):
    # Beyond eta = rho / L the right side allows a rise, and f takes it.
    f, _ = run(name, rho=0.05, rate_times_lipschitz=1.0)
    self.assertGreater(np.mean(np.diff(f) > 1e-6 * f[:, :-1]), 0.01)

  @parameterized.parameters(*sorted(EXACT))
  def test_rises_without_blending(self, name):
    f, _ = run(name, rho=0.0, rate_times_lipschitz=0.05)
    self.assertGreater(np.mean(np.diff(f) > 1e-6 * f[:, :-1]), 0.01)

  def test_inexact_projection_breaks_it(self):
    steps = {"rho": 0.3, "rate_times_lipschitz": 0.15}
    excess, _ = measure_excess(*run("inexact", **steps), **steps)
    self.assertGreater(np.mean(excess > 1e-6), 0.1)
