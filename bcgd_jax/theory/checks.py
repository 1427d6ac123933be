"""The claims of the theory as a list of numbers, each with the limit it must keep."""

import dataclasses
import math
from collections.abc import Iterable

import jax
import numpy as np

from bcgd_jax.report import Table
from bcgd_jax.report.tables import Column
from bcgd_jax.theory import descent, experiments, quadratics, sampling

# A correct formula leaves it once in 16,000 components: with some 150, in one seed of 100.
MAX_DEVIATION = 4.0
# What a wrong formula must leave even with the fewest samples that the command allows.
MIN_CONTROL_DEVIATION = 20.0

# Rounding of a loss or an angle of order 1 in float64, a few ulp wide.
_ROUNDING = 1e-14
_ERRORS = "standard errors"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
  """A measured number and the limit it must keep.

  Attributes:
    name: the claim.
    value, limit: in `unit`.
    unit: what they count, for people.
    at_least: whether the limit is a lower one; else the value must be at most the limit.
    over: how many things the value sums up, and how sharply they were measured.
  """

  name: str
  value: float
  limit: float
  unit: str
  over: str
  at_least: bool = False

  @property
  def passed(self) -> bool:
    """Whether the limit is kept; never so by NaN."""
    return self.value >= self.limit if self.at_least else self.value <= self.limit


def make_checks(evidence: experiments.Evidence) -> tuple[Check, ...]:
  """The checks of everything that `experiments.run_experiments` measured."""
  return (
    *(check_comparison(comparison) for comparison in evidence.comparisons),
    dataclasses.replace(
      check_comparison(evidence.control),
      name="control: clipped ReLU's samples, ReLU's formula",
      limit=MIN_CONTROL_DEVIATION,
      at_least=True,
    ),
    _check_standard_errors(evidence),
    _check_true_gradient(evidence),
    *_check_fixed_v(evidence),
    *_check_trainable_v(evidence),
    *_check_spurious_minimum(evidence),
    *_check_classifiers(evidence),
    *_check_blending(evidence),
  )


def checks_table(checks: Iterable[Check]) -> Table:
  """One row a check: value, limit and whether it is kept."""
  return Table(
    title="Checks of the theory",
    columns=(
      Column("Check"),
      Column("Value", numeric=True),
      Column("Limit", numeric=True),
      Column("Unit"),
      Column("Over"),
      Column("Result"),
    ),
    rows=tuple(
      (
        check.name,
        _format(check.value),
        f"{'>=' if check.at_least else '<='} {_format(check.limit)}",
        check.unit,
        check.over,
        "pass" if check.passed else "FAIL",
      )
      for check in checks
    ),
  )


def check_comparison(comparison: sampling.Comparison) -> Check:
  """The largest deviation of a comparison, in standard errors, against MAX_DEVIATION."""
  deviations = np.abs(comparison.deviations)
  return Check(
    name=comparison.name,
    value=_largest([deviations]),
    limit=MAX_DEVIATION,
    unit=_ERRORS,
    over=f"{_count(deviations.size, 'number')} to +-{comparison.largest_error:.0e}",
  )


def _check_standard_errors(evidence: experiments.Evidence) -> Check:
  """Standard errors that are too large would hide a wrong formula."""
  deviations = np.concatenate([c.deviations for c in evidence.comparisons])
  return Check(
    name="standard errors are not too large: mean square of all deviations",
    value=float(np.mean(deviations**2)),
    limit=0.5,
    unit="1 expected",
    over=_count(deviations.size, "number"),
    at_least=True,
  )


def _check_true_gradient(evidence: experiments.Evidence) -> Check:
  return Check(
    name="true gradient against automatic differentiation",
    value=_largest([evidence.gradient_gaps]),
    limit=1e-12,
    unit="relative",
    over=f"{_count(len(evidence.gradient_gaps), 'problem')}, v and w",
  )


def _check_fixed_v(evidence: experiments.Evidence) -> tuple[Check, ...]:
  settings = (
    ("v = v*", evidence.fixed_v),
    ("v = v*, |w| = 1", evidence.fixed_v_normalized),
  )
  checks = []
  for name, trajectories in settings:
    rises = sum(_count_rises(trajectory.theta) for trajectory in trajectories.values())
    last = _largest(trajectory.theta[:, -1] for trajectory in trajectories.values())
    over = f"{len(trajectories)} estimators, {experiments.NUM_STARTS} starts"
    checks += [
      Check(name=f"angle rises, {name}", value=rises, limit=0, unit="steps", over=over),
      Check(name=f"last angle, {name}", value=last, limit=1e-4, unit="rad", over=over),
    ]
  sampled = evidence.fixed_v_sampled
  checks.append(
    Check(
      name="last angle, v = v*, sampled gradients",
      value=_largest(trajectory.theta[-1] for trajectory in sampled.values()),
      limit=0.05,
      unit="rad",
      over=f"{len(sampled)} estimators, 1 start",
    )
  )
  return tuple(checks)


def _check_trainable_v(evidence: experiments.Evidence) -> tuple[Check, ...]:
  _, spurious_loss = experiments.spurious_minimum()
  # The identity has no such promise; that it keeps it at |w| = 1 is not checked.
  trajectories = [evidence.trainable_v[ste] for ste in ("relu", "clipped")]
  last = np.concatenate([trajectory.loss[:, -1] for trajectory in trajectories])
  gap = np.minimum(np.abs(last), np.abs(last - spurious_loss))
  over = f"ReLU and clipped ReLU, {experiments.NUM_STARTS} starts"
  return (
    Check(
      name="loss rises, v trainable, |w| = 1",
      value=sum(_count_rises(trajectory.loss) for trajectory in trajectories),
      limit=0,
      unit="steps",
      over=over,
    ),
    Check(
      name="last loss less that of the nearest minimum",
      value=float(gap.max()),
      limit=1e-3,
      unit="loss",
      over=over,
    ),
    Check(
      name=f"loss rises, v trainable, from |w| = {experiments.FREE_NORM:g}",
      value=sum(_count_rises(evidence.trainable_v_free[ste].loss) for ste in ("relu", "clipped")),
      limit=0,
      unit="steps",
      over=over,
    ),
    Check(
      name=f"identity: loss rises, v trainable, from |w| = {experiments.FREE_NORM:g}",
      value=_count_rises(evidence.trainable_v_free["identity"].loss),
      limit=1,
      unit="steps",
      over=f"{experiments.NUM_STARTS} starts",
      at_least=True,
    ),
  )


def _check_spurious_minimum(evidence: experiments.Evidence) -> tuple[Check, ...]:
  minimum, _ = experiments.spurious_minimum()
  stable = {ste: evidence.spurious[ste] for ste in ("relu", "clipped")}
  over = "ReLU and clipped ReLU, 1 start"
  return (
    Check(
      name="loss rises near the spurious minimum",
      value=sum(_count_rises(trajectory.loss) for trajectory in stable.values()),
      limit=0,
      unit="steps",
      over=over,
    ),
    Check(
      name="last distance in v to the spurious minimum",
      value=_largest(distance_to(minimum, trajectory)[-1] for trajectory in stable.values()),
      limit=experiments.START_DISTANCE / 100,
      unit="norm",
      over=over,
    ),
    Check(
      name="identity: highest loss over that of the start",
      value=_highest_rise(evidence.spurious["identity"]),
      limit=1.5,
      unit="ratio",
      over="1 start",
      at_least=True,
    ),
    Check(
      name="norm control near it: largest ratio",
      value=_largest(evidence.norm_ratios[ste] for ste in stable),
      limit=1.0,
      unit="ratio",
      over="ReLU and clipped ReLU",
    ),
    Check(
      name="norm control, identity: growth at 1/100 of the distance",
      value=_growth(evidence.norm_ratios["identity"]),
      limit=50.0,
      unit="ratio",
      over="1 start",
      at_least=True,
    ),
  )


def _check_classifiers(evidence: experiments.Evidence) -> tuple[Check, ...]:
  histories = evidence.classifiers.values()
  over = f"{len(histories)} estimators"
  return (
    Check(
      name="multi-class: last training loss",
      value=_largest(history.train_loss[-1] for history in histories),
      limit=0,
      unit="loss",
      over=f"{over}, {experiments.NUM_TRAIN:,} points",
    ),
    Check(
      name="multi-class: last training accuracy",
      value=-100 * _largest(-history.train_accuracy[-1] for history in histories),
      limit=100,
      unit="%",
      over=f"{over}, {experiments.NUM_TRAIN:,} points",
      at_least=True,
    ),
    Check(
      name="multi-class: held-out accuracy, last 100 steps",
      value=-100 * _largest(-np.mean(history.test_accuracy[-100:]) for history in histories),
      limit=99,
      unit="%",
      over=f"{over}, {100 * experiments.NUM_TEST:,} points",
      at_least=True,
    ),
  )


def _check_blending(evidence: experiments.Evidence) -> tuple[Check, ...]:
  checks = []
  for name, run in evidence.blended.items():
    over = _steps(run)
    checks += [
      Check(
        name=f"blending, {name}: excess over what the inequality allows",
        value=float(run.excess.max()),
        limit=1e-12,
        unit="of the loss",
        over=over,
      ),
      Check(
        name=f"blending, {name}: loss rises",
        value=run.num_rises(),
        limit=0,
        unit="steps",
        over=over,
      ),
    ]
    free = evidence.unblended[name]
    checks.append(
      Check(
        name=f"no blending, {name}: loss rises",
        value=100 * free.num_rises() / free.moved.size,
        limit=1,
        unit="% of steps",
        over=_steps(free),
        at_least=True,
      )
    )
    enough = np.asarray(experiments.SWEEP_SHARES) >= 1
    checks.append(
      Check(
        name=f"blending, {name}: loss rises, rho at least learning rate times L",
        value=100 * _largest([evidence.rising_shares[name][enough]]),
        limit=0,
        unit="% of steps",
        over=f"{_count(int(enough.sum()), 'rho')}, {run.moved.size:,} steps each",
      )
    )
  return tuple(checks)


def _steps(run: quadratics.BlendedRuns) -> str:
  return f"{run.moved.size:,} steps, codes change at {run.num_code_changes():,}"


def distance_to(minimum: np.ndarray, trajectory: descent.Trajectory) -> np.ndarray:
  """|v - minimum| along a trajectory, [T+1]."""
  return np.linalg.norm(np.asarray(trajectory.v) - minimum, axis=-1)


def _count_rises(values: jax.typing.ArrayLike) -> int:
  return int(np.sum(np.diff(np.asarray(values), axis=-1) > _ROUNDING))


def _largest(values: Iterable[jax.typing.ArrayLike]) -> float:
  # NumPy's maximum keeps a NaN, which Python's max may drop.
  return float(np.max(np.concatenate([np.ravel(np.asarray(value)) for value in values])))


def _highest_rise(trajectory: descent.Trajectory) -> float:
  loss = np.asarray(trajectory.loss)
  return float(loss.max() / loss[0])


def _growth(ratios: np.ndarray) -> float:
  return float(ratios[-1] / ratios[0])


def _count(number: int, noun: str) -> str:
  return f"{number} {noun}{'' if number == 1 else 's'}"


def _format(value: float) -> str:
  return f"{value:.3g}" if math.isfinite(value) else str(value)
