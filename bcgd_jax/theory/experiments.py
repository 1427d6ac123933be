"""All measurements behind the checks and the figures, each made once for both.

The samples follow the seed. Problems and starts are fixed: some claims hold under a condition (a
spurious minimum exists, the filter stays away from 0). What is not sampled is computed in float64.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax import numerics
from bcgd_jax.theory import descent, monte_carlo, multiclass, quadratics, sampling, two_layer

MULTICLASS_ESTIMATORS: Mapping[str, numerics.InputEstimator] = {
  "vanilla ReLU": multiclass.vanilla_relu,
  "log-tailed ReLU": multiclass.log_tailed,
  "reverse exponential": multiclass.reverse_exponential,
}
# The exact projections: the inequality of blending is about these.
QUANTIZERS: Mapping[str, numerics.WeightQuantizer] = {
  "binary": numerics.Binary(),
  "ternary": numerics.Ternary("sort"),
}
NUM_STARTS = 64
NUM_INPUTS = 10  # length of w
LEARNING_RATE = 0.02
SPURIOUS_LEARNING_RATE = 0.01
START_DISTANCE = 0.1  # from the spurious minimum, in v and in radians
NUM_TRAIN = 4000
NUM_TEST = 2000  # at each step
CLASSIFIER_DIM = 12
BLEND_RHO = 0.1
BLEND_RATE = 0.05  # learning rate times L; monotone descent is promised below BLEND_RHO
SWEEP_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5)

FREE_NORM = 6.0  # where w starts without normalisation: long enough to stay away from 0

# Samples at an angle of a correlation, as a share of those for a closed form: 18 angles in all.
_CORRELATION_SHARE = 10
_MIN_CORRELATION_SAMPLES = 10_000  # means of fewer are not yet Gaussian enough

_Tree = TypeVar("_Tree")
_Trajectories = Mapping[str, descent.Trajectory]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
  """What `run_experiments` measured; trajectories hold NumPy arrays.

  Attributes:
    comparisons: closed forms against samples.
    control: a wrong formula against samples.
    correlations: at v = v_star and at another v.
    gradient_gaps: [problems]; see `measure_gradient_gaps`.
    fixed_v, fixed_v_normalized: descent in w alone by estimator, [starts, T+1], float64; without
      and with w brought to length 1 after each step.
    fixed_v_sampled: the same from samples, one start, [T+1], float32.
    trainable_v: descent in v and in w, normalized, by estimator, [starts, T+1], float64.
    trainable_v_free: the same from |w| = FREE_NORM, not normalized.
    spurious: descent from START_DISTANCE of the spurious minimum by estimator, [T+1], float64.
    norm_ratios: norm control near the spurious minimum by estimator; see `measure_norm_ratios`.
    classifiers: training on subspace data by estimator.
    blended, unblended: by quantizer, at BLEND_RATE; with BLEND_RHO and with 0.
    rising_shares: by quantizer; share of steps that raise f for each of SWEEP_SHARES, which are rho
      in units of BLEND_RATE.
  """

  comparisons: tuple[sampling.Comparison, ...]
  control: sampling.Comparison
  correlations: tuple[sampling.Correlation, sampling.Correlation]
  gradient_gaps: np.ndarray
  fixed_v: _Trajectories
  fixed_v_normalized: _Trajectories
  fixed_v_sampled: _Trajectories
  trainable_v: _Trajectories
  trainable_v_free: _Trajectories
  spurious: _Trajectories
  norm_ratios: Mapping[str, np.ndarray]
  classifiers: Mapping[str, multiclass.TrainingHistory]
  blended: Mapping[str, quadratics.BlendedRuns]
  unblended: Mapping[str, quadratics.BlendedRuns]
  rising_shares: Mapping[str, np.ndarray]


def run_experiments(
  num_samples: int, seed: int, *, announce: Callable[[str], None] = lambda _: None
) -> Evidence:
  """Runs everything; the time grows with num_samples beyond about a minute on two cores.

  Args:
    num_samples: inputs drawn for each problem, at least 2.
    seed: of the samples.
    announce: called with the name of each part before it begins.
  Raises:
    ValueError, TypeError: if num_samples is not an int of at least 2, before anything is measured.
  """
  monte_carlo.check_count("num_samples", num_samples, minimum=2)
  keys = jax.random.split(jax.random.key(seed), 5)
  announce("descents")
  fixed_v = _descend_in_float64(train_v=False, normalize_w=False, num_steps=2000)
  normalized = _descend_in_float64(train_v=False, normalize_w=True, num_steps=2000)
  trainable = _descend_in_float64(train_v=True, normalize_w=True, num_steps=5000)
  free = _descend_in_float64(train_v=True, normalize_w=False, num_steps=2000, norm=FREE_NORM)
  spurious = descend_from_spurious_minimum(num_steps=4000)
  announce("sampled descents")
  sampled = _descend_by_samples(keys[0])
  announce("blending on quadratics")
  problems = quadratics.make_quadratics(3, num_problems=400, size=12)
  blended = {name: _run_blended(problems, name, BLEND_RHO) for name in QUANTIZERS}
  unblended = {name: _run_blended(problems, name, 0.0) for name in QUANTIZERS}
  rising_shares = {name: _measure_rising_shares(problems, name) for name in QUANTIZERS}
  announce("the multi-class network")
  classifiers = {name: _train_classifier(g) for name, g in MULTICLASS_ESTIMATORS.items()}
  announce("correlations")
  num_less = max(num_samples // _CORRELATION_SHARE, _MIN_CORRELATION_SAMPLES)
  correlations = (
    sampling.measure_correlation(keys[1], num_less, v=sampling.V_STAR),
    sampling.measure_correlation(keys[2], num_less, v=sampling.TRAINABLE_V),
  )
  announce("closed forms (the longest part)")
  return Evidence(
    comparisons=(
      *sampling.compare_closed_forms(keys[3], num_samples),
      sampling.compare_correlation(correlations[0], "inner product, v = v*"),
      sampling.compare_correlation(correlations[1], "inner product, v trainable"),
    ),
    control=sampling.compare_wrong_form(keys[4], num_samples),
    correlations=correlations,
    gradient_gaps=measure_gradient_gaps(),
    fixed_v=fixed_v,
    fixed_v_normalized=normalized,
    fixed_v_sampled=sampled,
    trainable_v=trainable,
    trainable_v_free=free,
    spurious=spurious,
    norm_ratios={ste: measure_norm_ratios(ste) for ste in two_layer.ESTIMATORS},
    classifiers=classifiers,
    blended=blended,
    unblended=unblended,
    rising_shares=rising_shares,
  )


def descend_from_spurious_minimum(*, num_steps: int) -> dict[str, descent.Trajectory]:
  """Coarse gradient descent in v and w by estimator, float64, |w| = 1 at the start.

  The start is START_DISTANCE away from the spurious minimum of `sampling.V_STAR`, in v (in a random
  direction) and in the angle.
  """
  with jax.enable_x64(True):
    problem = _problem_near_spurious_minimum(START_DISTANCE)
    return {
      ste: _to_numpy(
        descent.coarse_gradient_descent(
          *problem,
          ste=ste,
          learning_rate=SPURIOUS_LEARNING_RATE,
          num_steps=num_steps,
          train_v=True,
        )
      )
      for ste in two_layer.ESTIMATORS
    }


def measure_gradient_gaps(num_problems: int = 100) -> np.ndarray:
  """How far `population_grad` is from `jax.grad` of `population_loss` on random problems.

  Returns:
    [num_problems], float64; |difference| / |gradient|, the larger of those in v and in w.
  """

  def measure(*problem: jax.Array) -> jax.Array:
    by_rule = jax.grad(two_layer.population_loss, argnums=(0, 1))(*problem)
    gaps = [
      jnp.linalg.norm(given - found) / jnp.linalg.norm(given)
      for given, found in zip(two_layer.population_grad(*problem), by_rule, strict=True)
    ]
    return jnp.maximum(*gaps)

  rng = np.random.default_rng(0)
  sizes = (4, NUM_INPUTS, 4, NUM_INPUTS)
  with jax.enable_x64(True):
    problems = [jnp.asarray(rng.normal(size=(num_problems, size))) for size in sizes]
    return np.asarray(jax.jit(jax.vmap(measure))(*problems))


def measure_norm_ratios(ste: str, distances: tuple[float, ...] = (1e-2, 1e-4)) -> np.ndarray:
  """How the coarse gradient is bounded by what makes the loss fall, ever closer to the minimum.

    |E g|^2 / (|df/dv|^2 + E g . df/dw)     at the spurious minimum plus each distance

  Bounded for the ReLU, which its convergence rests on; for the identity it grows without bound, as
  1 / distance.

  Returns:
    [len(distances)], float64.
  Source: Yin et al. 2019 (arXiv 1903.05662); the rate 1 / distance, derived.
  """
  ratios = []
  with jax.enable_x64(True):
    for distance in distances:
      problem = _problem_near_spurious_minimum(distance)
      coarse = two_layer.coarse_grad(*problem, ste=ste)
      grad_v, grad_w = two_layer.population_grad(*problem)
      ratios.append(float(coarse @ coarse / (grad_v @ grad_v + coarse @ grad_w)))
  return np.array(ratios)


def spurious_minimum() -> tuple[np.ndarray, float]:
  """Its v [m] and its loss for `sampling.V_STAR`, float64."""
  with jax.enable_x64(True):
    v, w, v_star, w_star = _problem_near_spurious_minimum(0.0)
    return np.asarray(v), float(two_layer.population_loss(v, w, v_star, w_star))


def _problem_near_spurious_minimum(distance: float) -> sampling.Problem:
  v_star = jnp.asarray(sampling.V_STAR, jnp.float64)
  spurious = two_layer.critical_points(v_star).spurious_minimum
  if spurious is None:
    raise AssertionError("V_STAR has a spurious minimum")
  direction = np.random.default_rng(0).normal(size=v_star.size)
  direction /= np.linalg.norm(direction)
  w_star, across = np.eye(NUM_INPUTS)[:2]
  w = -np.cos(distance) * w_star + np.sin(distance) * across
  v = spurious.v + distance * direction
  return v, jnp.asarray(w), v_star, jnp.asarray(w_star)


def _descend_in_float64(
  *, train_v: bool, normalize_w: bool, num_steps: int, norm: float = 1.0
) -> dict[str, descent.Trajectory]:
  rng = np.random.default_rng(0)
  starts = rng.normal(size=(NUM_STARTS, NUM_INPUTS))
  starts *= norm / np.linalg.norm(starts, axis=1, keepdims=True)
  v_star = np.asarray(sampling.V_STAR)
  seconds = rng.normal(size=(NUM_STARTS, v_star.size))
  if not train_v:
    seconds = np.broadcast_to(v_star, seconds.shape)

  def run(ste: str) -> descent.Trajectory:
    w_star = jnp.eye(NUM_INPUTS)[0]

    def run_one(v: jax.Array, w: jax.Array) -> descent.Trajectory:
      return descent.coarse_gradient_descent(
        v,
        w,
        jnp.asarray(v_star),
        w_star,
        ste=ste,
        learning_rate=LEARNING_RATE,
        num_steps=num_steps,
        train_v=train_v,
        normalize_w=normalize_w,
      )

    return jax.vmap(run_one)(jnp.asarray(seconds), jnp.asarray(starts))

  with jax.enable_x64(True):
    return {ste: _to_numpy(run(ste)) for ste in two_layer.ESTIMATORS}


def _descend_by_samples(key: jax.Array) -> dict[str, descent.Trajectory]:
  v, w, v_star, w_star = sampling.make_problem_at(2.5, sampling.V_STAR)
  return {
    ste: _to_numpy(
      descent.coarse_gradient_descent(
        v,
        w,
        v_star,
        w_star,
        ste=ste,
        learning_rate=LEARNING_RATE,
        num_steps=2000,
        train_v=False,
        key=key,
        batch_size=256,
      )
    )
    for ste in two_layer.ESTIMATORS
  }


def _train_classifier(estimator: numerics.InputEstimator) -> multiclass.TrainingHistory:
  data_key, key = jax.random.split(jax.random.key(1))
  data = multiclass.make_subspace_data(data_key, num_classes=4, subspace_dim=2, dim=CLASSIFIER_DIM)
  return multiclass.train(
    key,
    data,
    multiclass.make_output_layer(4, 16),
    num_steps=2000,
    num_train=NUM_TRAIN,
    num_test=NUM_TEST,
    learning_rate=8.0,
    num_bits=2,
    estimator=estimator,
  )


def _run_blended(
  problems: quadratics.Quadratics, quantizer: str, rho: float
) -> quadratics.BlendedRuns:
  return quadratics.run_blended(
    problems, QUANTIZERS[quantizer], rho=rho, rate_times_lipschitz=BLEND_RATE, num_steps=300
  )


def _measure_rising_shares(problems: quadratics.Quadratics, quantizer: str) -> np.ndarray:
  runs = [_run_blended(problems, quantizer, share * BLEND_RATE) for share in SWEEP_SHARES]
  return np.array([run.num_rises() / run.moved.size for run in runs])


def _to_numpy(tree: _Tree) -> _Tree:
  return jax.tree.map(np.asarray, tree)
