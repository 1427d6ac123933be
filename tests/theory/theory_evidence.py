"""Evidence that passes every check, made by hand in no time, for tests of checks and figures."""

import numpy as np

from bcgd_jax.theory import descent, experiments, multiclass, quadratics, sampling, two_layer

NUM_STEPS = 50


def make_trajectory(loss, theta=None, v=None):
  """A trajectory of which only loss [..., T+1], theta and v matter."""
  loss = np.asarray(loss)
  theta = loss if theta is None else np.asarray(theta)
  v = np.zeros((*loss.shape, 4)) if v is None else v
  return descent.Trajectory(
    v=v, w=np.ones((*loss.shape, 3)), loss=loss, theta=theta, norm_w=loss + 1, distance_v=loss
  )


def make_spurious(loss, distance):
  """A trajectory whose v is that far from the spurious minimum."""
  minimum, _ = experiments.spurious_minimum()
  return make_trajectory(loss, v=minimum + np.asarray(distance)[:, None] * np.eye(4)[0])


def make_comparison(name="loss", deviations=(1.0, -2.0)):
  return sampling.Comparison(name=name, deviations=np.array(deviations), largest_error=1e-3)


def make_correlation(v):
  theta = np.array(sampling.ANGLES)
  problems = [sampling.make_problem_at(angle, v) for angle in theta]
  inner = {
    ste: np.array([float(sampling.inner_product(*problem, ste=ste)) for problem in problems])
    for ste in two_layer.ESTIMATORS
  }
  errors = {ste: 0.01 * np.ones_like(theta) for ste in two_layer.ESTIMATORS}
  cosine = {ste: np.cos(theta / 2) for ste in two_layer.ESTIMATORS}
  return sampling.Correlation(
    v=v, theta=theta, inner=inner, inner_error=errors, cosine=cosine, cosine_error=errors
  )


def make_history(last_loss=0.0, last_accuracy=1.0, test_accuracy=0.995):
  loss = np.concatenate([np.geomspace(1, 1e-3, 150), np.full(51, last_loss)])
  accuracy = np.where(loss > 2e-3, 0.8, last_accuracy)
  return multiclass.TrainingHistory(
    train_loss=loss,
    train_accuracy=accuracy,
    test_loss=loss,
    test_accuracy=np.full(loss.size, test_accuracy),
    gradient_norm=loss,
    weights=np.zeros((2, 2)),
  )


def make_runs(rho, *, excess=-1e-3, loss=None):
  """Three problems; the loss falls with blending and saws without."""
  falling = np.geomspace(1, 0.1, NUM_STEPS + 1) * np.ones((3, 1))
  saw = falling * (1 + 0.3 * (np.arange(NUM_STEPS + 1) % 2))
  losses = (falling if rho else saw) if loss is None else loss
  return quadratics.BlendedRuns(
    rho=rho,
    rate_times_lipschitz=0.05,
    losses=losses,
    excess=np.full((3, NUM_STEPS), excess),
    moved=np.ones((3, NUM_STEPS)),
    code_changes=np.ones((3, NUM_STEPS), bool),
  )


def make_evidence(**changes):
  """Evidence with some fields replaced."""
  falling = np.geomspace(1, 1e-5, NUM_STEPS + 1)
  saw = falling * (1 + np.arange(NUM_STEPS + 1) % 2)
  descents = {ste: make_trajectory(np.stack([falling] * 2)) for ste in two_layer.ESTIMATORS}
  settled = make_spurious(0.3 + 0.1 * falling, 0.1 * falling)
  jumping = make_spurious(0.3 + np.arange(NUM_STEPS + 1) % 2, 10 * falling)
  fields = {
    "comparisons": (make_comparison(), make_comparison("gradient in v", [0.5])),
    "control": make_comparison("wrong", [90.0, 0.1]),
    "correlations": tuple(map(make_correlation, (sampling.V_STAR, sampling.TRAINABLE_V))),
    "gradient_gaps": np.full(5, 1e-15),
    "fixed_v": descents,
    "fixed_v_normalized": descents,
    "fixed_v_sampled": {ste: make_trajectory(falling) for ste in two_layer.ESTIMATORS},
    "trainable_v": descents,
    "trainable_v_free": {**descents, "identity": make_trajectory(np.stack([falling, saw]))},
    "spurious": {"identity": jumping, "relu": settled, "clipped": settled},
    "norm_ratios": {
      "identity": np.array([1e2, 1e4]),
      "relu": np.array([0.1, 1e-3]),
      "clipped": np.array([0.1, 1e-3]),
    },
    "classifiers": {name: make_history() for name in experiments.MULTICLASS_ESTIMATORS},
    "blended": {name: make_runs(0.1) for name in experiments.QUANTIZERS},
    "unblended": {name: make_runs(0.0) for name in experiments.QUANTIZERS},
    "rising_shares": {
      name: np.maximum(0, 0.5 - 0.6 * np.array(experiments.SWEEP_SHARES))
      for name in experiments.QUANTIZERS
    },
  }
  return experiments.Evidence(**(fields | changes))
