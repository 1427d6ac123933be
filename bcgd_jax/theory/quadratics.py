"""Sufficient descent of blending, put to the test on random quadratics in float64.

Let f have an L-Lipschitz gradient, Q be an exact projection, w_t = Q(y_t), and the float weights y
move by y <- y + rho (Q(y) - y) - eta grad f(Q(y)). Then

  f(w_{t+1}) <= f(w_t) - (rho / eta - L) / 2 |w_{t+1} - w_t|^2

so that f never rises while eta <= rho / L. Without blending, rho = 0, nothing of the kind holds.

Source: the claim, abstract of Yin et al. 2019 (BCGD, arXiv 1808.05240); the inequality, derived.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bcgd_jax import numerics
from bcgd_jax.optim import blend
from bcgd_jax.theory import monte_carlo


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quadratics:
  """Functions f(w) = (w - minimiser)^T hessian (w - minimiser) / 2 and where to start, float64.

  Attributes:
    hessians: [P, n, n], symmetric positive definite; minimisers, starts: [P, n].
    lipschitz: [P]; L of each, its hessian's largest eigenvalue.
  """

  hessians: np.ndarray
  minimisers: np.ndarray
  starts: np.ndarray
  lipschitz: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlendedRuns:
  """T steps of blended descent on each of P problems, float64.

  Attributes:
    rho: share of the blend a step; rate_times_lipschitz: eta L, the same for all problems.
    losses: [P, T+1]; f at the quantized weights.
    excess: [P, T]; f after a step less what the inequality allows, relative to f before it: at
      most 0 but for rounding where the inequality holds.
    moved: [P, T]; |w_{t+1} - w_t|^2.
    code_changes: [P, T]; whether a code, the sign of a quantized weight, changed.
  """

  rho: float
  rate_times_lipschitz: float
  losses: np.ndarray
  excess: np.ndarray
  moved: np.ndarray
  code_changes: np.ndarray

  def num_violations(self, tolerance: float = 1e-12) -> int:
    """Steps that break the inequality by more than `tolerance` of f, a bound on its rounding."""
    return int(np.sum(self.excess > tolerance))

  def num_code_changes(self) -> int:
    """Steps at which a code changed: at the others the scale alone moves, and by little."""
    return int(np.sum(self.code_changes))

  def num_rises(self, tolerance: float = 1e-12) -> int:
    """Steps at which f rose by more than `tolerance` of itself."""
    return int(np.sum(np.diff(self.losses, axis=1) > tolerance * self.losses[:, :-1]))


def make_quadratics(seed: int, *, num_problems: int, size: int) -> Quadratics:
  """Draws problems with eigenvalues spread over three decades, Gaussian minimisers and starts.

  Args:
    seed: of NumPy's generator.
    num_problems: P; size: n, dimensions. At least 1 each.
  Raises:
    ValueError: if num_problems or size is below 1.
    TypeError: if one is not an int.
  """
  for name, value in (("num_problems", num_problems), ("size", size)):
    monte_carlo.check_count(name, value, minimum=1)
  rng = np.random.default_rng(seed)
  rotations = np.linalg.qr(rng.normal(size=(num_problems, size, size)))[0]
  spectra = 10 ** rng.uniform(-2, 1, size=(num_problems, 1, size))
  minimisers, starts = rng.normal(size=(2, num_problems, size))
  return Quadratics(
    hessians=(rotations * spectra) @ rotations.swapaxes(1, 2),
    minimisers=minimisers,
    starts=starts,
    lipschitz=spectra.max(axis=(1, 2)),
  )


def run_blended(
  problems: Quadratics,
  quantizer: numerics.WeightQuantizer,
  *,
  rho: float,
  rate_times_lipschitz: float,
  num_steps: int,
) -> BlendedRuns:
  """Runs `optim.blend` around SGD on every problem, the gradient taken at the quantized weights.

  Computed in float64 whatever jax's default.

  Args:
    problems: P of them.
    quantizer: the inequality is for exact projections, `Binary()` and `Ternary("sort")`.
    rho: in [0, 1].
    rate_times_lipschitz: > 0, finite; the learning rate is this over the problem's L.
    num_steps: T, at least 1.
  Raises:
    ValueError: if rho, rate_times_lipschitz or num_steps breaks its rule.
    TypeError: if num_steps is not an int.
  """
  if not 0 <= rho <= 1:
    raise ValueError(f"rho must be in [0, 1], got {rho}")
  if not 0 < rate_times_lipschitz < float("inf"):
    raise ValueError(f"rate_times_lipschitz must be above 0 and finite, got {rate_times_lipschitz}")
  monte_carlo.check_count("num_steps", num_steps, minimum=1)
  with jax.enable_x64(True):
    losses, weights = _run(
      jnp.asarray(rho, jnp.float64),
      jnp.asarray(rate_times_lipschitz / problems.lipschitz),
      jnp.asarray(problems.hessians),
      jnp.asarray(problems.minimisers),
      jnp.asarray(problems.starts),
      quantizer=quantizer,
      num_steps=num_steps,
    )
    f, w = np.asarray(losses), np.asarray(weights)
  moved = np.sum(np.diff(w, axis=1) ** 2, axis=2)
  gain = (rho / rate_times_lipschitz - 1) * problems.lipschitz[:, None] / 2 * moved
  return BlendedRuns(
    rho=rho,
    rate_times_lipschitz=rate_times_lipschitz,
    losses=f,
    excess=(np.diff(f, axis=1) + gain) / f[:, :-1],
    moved=moved,
    code_changes=np.any(np.diff(np.sign(w), axis=1) != 0, axis=2),
  )


@functools.partial(jax.jit, static_argnames=("quantizer", "num_steps"))
def _run(
  rho: jax.Array,
  rates: jax.Array,
  hessians: jax.Array,
  minimisers: jax.Array,
  starts: jax.Array,
  *,
  quantizer: numerics.WeightQuantizer,
  num_steps: int,
) -> tuple[jax.Array, jax.Array]:
  projection = numerics.make_projection({"w": quantizer})

  def evaluate(w: jax.Array, hessian: jax.Array, minimiser: jax.Array) -> jax.Array:
    away = w - minimiser
    return away @ jnp.matmul(hessian, away, precision="highest") / 2

  def run_one(
    rate: jax.Array, hessian: jax.Array, minimiser: jax.Array, start: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    optimizer = blend(optax.sgd(rate), projection, rho)

    def step(
      carry: tuple[optax.Params, optax.OptState], _: None
    ) -> tuple[tuple[optax.Params, optax.OptState], tuple[jax.Array, jax.Array]]:
      params, state = carry
      w = projection(params)["w"]
      f, gradient = jax.value_and_grad(evaluate)(w, hessian, minimiser)
      updates, state = optimizer.update({"w": gradient}, state, params)
      return (optax.apply_updates(params, updates), state), (f, w)

    params = {"w": start}
    _, trace = jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps + 1)
    return trace

  return jax.vmap(run_one)(rates, hessians, minimisers, starts)
