"""Closed forms of the two-layer network held against samples of it, on fixed problems."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.theory import monte_carlo, two_layer

Problem = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # v, w, v_star, w_star

ESTIMATOR_NAMES: Mapping[str, str] = {
  "identity": "identity",
  "relu": "ReLU",
  "clipped": "clipped ReLU",
}
# Its spurious minimum exists, and there the identity estimator does not vanish: the sum is not 0.
V_STAR = (1.0, -0.6, 0.8, 0.5)
TRAINABLE_V = (0.8, 0.3, 0.2, 0.9)
ANGLES = tuple(math.pi * k / 10 for k in range(1, 10))

_BATCH_SIZE = 2**13  # fits a CPU's cache: up to twice as fast as 2^17


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
  """A closed form against samples, over all components of one or more problems.

  Attributes:
    name: of the quantity and the setting.
    deviations: [k]; (sample mean - closed form) / standard error.
    largest_error: the largest standard error of a component; the quantities are of order 1.
  """

  name: str
  deviations: np.ndarray
  largest_error: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
  """The sampled coarse gradient against the true gradient in w, at angles and by estimator.

  Attributes:
    v: the second layer.
    theta: [k], radians between w and w_star; |w| is 1.
    inner, inner_error: each [k] by estimator; inner product and its standard error.
    cosine, cosine_error: each [k] by estimator; the error is an upper bound on the standard error.
  """

  v: tuple[float, ...]
  theta: np.ndarray
  inner: Mapping[str, np.ndarray]
  inner_error: Mapping[str, np.ndarray]
  cosine: Mapping[str, np.ndarray]
  cosine_error: Mapping[str, np.ndarray]


@functools.partial(jax.jit, static_argnames="ste")
def inner_product(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array, *, ste: str
) -> jax.Array:
  """Closed form of (expected coarse gradient) . (true gradient in w); it is never negative.

    "identity":  sin(theta) (v . v_star)^2 / ((2 pi)^(3/2) |w|)
    "relu":      half of it
    "clipped":   half of it times erf(1 / (sqrt(2) |w| sin(theta)))

  Args:
    v, v_star: [m]; w, w_star: [n], not zero; float32 or float64.
    ste: "identity", "relu" or "clipped".
  Returns:
    [].
  Raises:
    ValueError: if ste is none of the three.
  Source: Yin et al. 2019 (arXiv 1903.05662) for identity and relu; clipped derived.
  """
  two_layer.check_choice("ste", ste, two_layer.ESTIMATORS)
  sine, norm = two_layer.sine_and_norm(w, w_star)
  product = sine * jnp.sum(v * v_star) ** 2 / ((2 * math.pi) ** 1.5 * norm)
  if ste == "identity":
    return product
  if ste == "relu":
    return product / 2
  sine = jnp.maximum(sine, jnp.finfo(sine.dtype).eps)
  return product / 2 * jax.lax.erf(1 / (math.sqrt(2) * norm * sine))


def make_problem(seed: int, *, num_hidden: int, size: int, norm: float) -> Problem:
  """Gaussian v and v_star [num_hidden], w [size] of the given norm, a unit w_star; float32."""
  rng = np.random.default_rng(seed)
  v, v_star = rng.normal(size=(2, num_hidden))
  w, w_star = rng.normal(size=(2, size))
  w *= norm / np.linalg.norm(w)
  w_star /= np.linalg.norm(w_star)
  return _to_arrays(v, w, v_star, w_star)


def make_problem_at(theta: float, v: Sequence[float]) -> Problem:
  """w the first of 5 coordinates, w_star at angle theta to it; the true gradient is the second."""
  w = np.eye(5)[0]
  w_star = math.cos(theta) * w + math.sin(theta) * np.eye(5)[1]
  return _to_arrays(np.asarray(v), w, np.asarray(V_STAR), w_star)


def make_spurious_problem() -> Problem:
  """The spurious minimum for V_STAR: w = -w_star."""
  spurious = two_layer.critical_points(jnp.asarray(V_STAR, jnp.float32)).spurious_minimum
  if spurious is None:
    raise AssertionError("V_STAR has a spurious minimum")
  return (spurious.v, *make_problem_at(math.pi, V_STAR)[1:])


def compare_closed_forms(key: jax.Array, num_samples: int) -> tuple[Comparison, ...]:
  """Loss, gradient in v and coarse gradients against samples, in three settings.

  Trainable v at |w| = 0.1, 1 and 8; v = v_star, where the formulas are simpler; and the spurious
  minimum, where the ReLU's coarse gradient vanishes.

  Args:
    key: of jax.random.
    num_samples: inputs drawn for each of the six problems, at least 2.
  """
  trainable = [
    make_problem(0, num_hidden=4, size=5, norm=1.0),
    make_problem(1, num_hidden=3, size=4, norm=0.1),
    make_problem(2, num_hidden=6, size=3, norm=8.0),
  ]
  fixed = [
    (v_star, w, v_star, w_star)
    for _, w, v_star, w_star in (
      make_problem(3, num_hidden=4, size=5, norm=0.5),
      make_problem(4, num_hidden=3, size=4, norm=2.0),
    )
  ]
  settings: list[tuple[str, Sequence[Problem], Callable[..., dict[str, jax.Array]]]] = [
    ("v trainable", trainable, _closed_forms),
    ("v = v*", fixed, _closed_forms_of_fixed_v),
    ("spurious minimum", [make_spurious_problem()], _closed_forms),
  ]
  comparisons = []
  for setting, problems, closed_forms in settings:
    found: dict[str, list[tuple[np.ndarray, float]]] = {}
    for problem in problems:
      key, own = jax.random.split(key)
      estimates = _sample(own, problem, num_samples)
      expected = jax.jit(closed_forms)(*problem)
      for name in estimates:  # in this order: that of a dictionary out of jit is the alphabet's
        if name in expected:
          found.setdefault(name, []).append(_compare(estimates[name], expected[name]))
    comparisons += [
      Comparison(
        name=f"{name}, {setting}",
        deviations=np.concatenate([deviations for deviations, _ in parts]),
        largest_error=max(error for _, error in parts),
      )
      for name, parts in found.items()
    ]
  return tuple(comparisons)


def compare_wrong_form(key: jax.Array, num_samples: int) -> Comparison:
  """A control that must deviate: the clipped ReLU's samples against the ReLU's closed form."""
  problem = make_problem(5, num_hidden=4, size=5, norm=2.0)
  estimates = _sample(key, problem, num_samples)
  wrong = two_layer.coarse_grad(*problem, ste="relu")
  deviations, error = _compare(estimates[_coarse_name("clipped")], wrong)
  return Comparison(
    name="clipped ReLU against ReLU's formula", deviations=deviations, largest_error=error
  )


def measure_correlation(key: jax.Array, num_samples: int, *, v: tuple[float, ...]) -> Correlation:
  """Samples coarse gradients at ANGLES, and correlates their means with the true gradient.

  Args:
    key: of jax.random.
    num_samples: inputs drawn at each angle, at least 2.
    v: as long as V_STAR.
  """
  columns: dict[str, dict[str, list[float]]] = {
    kind: {ste: [] for ste in two_layer.ESTIMATORS}
    for kind in ("inner", "inner_error", "cosine", "cosine_error")
  }
  for theta in ANGLES:
    key, own = jax.random.split(key)
    problem = make_problem_at(theta, v)
    estimates = _sample(own, problem, num_samples)
    true = np.asarray(two_layer.population_grad(*problem)[1], np.float64)
    for ste in two_layer.ESTIMATORS:
      found = _correlate(estimates[_coarse_name(ste)], true)
      for kind, value in found.items():
        columns[kind][ste].append(value)
  arrays = {
    kind: {ste: np.array(values) for ste, values in by_ste.items()}
    for kind, by_ste in columns.items()
  }
  return Correlation(v=v, theta=np.array(ANGLES), **arrays)


def compare_correlation(correlation: Correlation, name: str) -> Comparison:
  """Sampled inner products, of all estimators and angles, against `inner_product`."""
  deviations = [
    (correlation.inner[ste][i] - float(inner_product(*problem, ste=ste)))
    / correlation.inner_error[ste][i]
    for i, problem in enumerate(make_problem_at(t, correlation.v) for t in correlation.theta)
    for ste in two_layer.ESTIMATORS
  ]
  largest = max(float(errors.max()) for errors in correlation.inner_error.values())
  return Comparison(name=name, deviations=np.array(deviations), largest_error=largest)


def _to_arrays(*vectors: np.ndarray) -> Problem:
  v, w, v_star, w_star = (jnp.asarray(vector, jnp.float32) for vector in vectors)
  return v, w, v_star, w_star


def _coarse_name(ste: str) -> str:
  return f"coarse gradient ({ESTIMATOR_NAMES[ste]})"


def _closed_forms(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array
) -> dict[str, jax.Array]:
  problem = (v, w, v_star, w_star)
  return {
    "loss": two_layer.population_loss(*problem),
    "gradient in v": two_layer.population_grad(*problem)[0],
  } | {_coarse_name(ste): two_layer.coarse_grad(*problem, ste=ste) for ste in two_layer.ESTIMATORS}


def _closed_forms_of_fixed_v(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array
) -> dict[str, jax.Array]:
  energy = jnp.sum(v * v)
  identity = energy / math.sqrt(2 * math.pi) * (w / jnp.linalg.norm(w) - w_star)
  return {
    "loss": energy * two_layer.angle(w, w_star) / (2 * math.pi),
    _coarse_name("identity"): identity,
    _coarse_name("relu"): identity / 2,
    _coarse_name("clipped"): two_layer.coarse_grad(v, w, v_star, w_star, ste="clipped"),
  }


def _sample(key: jax.Array, problem: Problem, num_samples: int) -> dict[str, monte_carlo.Estimate]:
  run = functools.partial(monte_carlo.estimate, num_samples=num_samples, batch_size=_BATCH_SIZE)
  estimates = run(key, *problem)
  return {"loss": estimates.loss, "gradient in v": estimates.grad_v} | {
    _coarse_name(ste): estimates.coarse_grad[ste] for ste in two_layer.ESTIMATORS
  }


def _compare(found: monte_carlo.Estimate, expected: jax.Array) -> tuple[np.ndarray, float]:
  deviations = np.asarray(_compute_deviations(found, expected), np.float64)
  return deviations.reshape(-1), float(np.max(found.standard_error))


@jax.jit
def _compute_deviations(found: monte_carlo.Estimate, expected: jax.Array) -> jax.Array:
  return found.compute_deviations(expected)


def _correlate(found: monte_carlo.Estimate, true: np.ndarray) -> dict[str, float]:
  mean = np.asarray(found.mean, np.float64)
  error = np.asarray(found.standard_error, np.float64)
  size = np.linalg.norm(true)
  direction, norm = true / size, np.linalg.norm(mean)
  cosine = mean @ direction / norm
  # By the derivative of the cosine in the mean; components add up as if fully correlated.
  slope = (direction - cosine * mean / norm) / norm
  return {
    "inner": mean @ true,
    # true has one entry that is not 0, so that no covariance enters
    "inner_error": float(np.abs(true) @ error),
    "cosine": cosine,
    "cosine_error": float(np.abs(slope) @ error),
  }
