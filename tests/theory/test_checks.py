"""Each check holds on sound evidence and fails on the evidence that breaks its claim."""

import dataclasses
import functools
import math

import numpy as np
from absl.testing import parameterized
from theory_evidence import (
  NUM_STEPS,
  make_comparison,
  make_evidence,
  make_history,
  make_runs,
  make_spurious,
  make_trajectory,
)

from bcgd_jax.theory import checks, experiments

FALLING = np.geomspace(1, 1e-5, NUM_STEPS + 1)
RISING_ONCE = np.where(np.arange(NUM_STEPS + 1) == 9, 1.1, FALLING)
WITH_NAN = np.where(np.arange(NUM_STEPS + 1) == NUM_STEPS, math.nan, FALLING)


@functools.cache
def sound():
  return make_evidence()


def spoil(field, key, value):
  """The sound evidence with one entry of one mapping replaced."""
  return make_evidence(**{field: getattr(sound(), field) | {key: value}})


def starts(values):
  return make_trajectory(np.stack([FALLING, values]))


# By name: what breaks, and the checks that must then fail.
BROKEN = {
  "formula": (
    lambda: make_evidence(comparisons=(make_comparison("loss", [0.1, -4.1]),)),
    ["loss"],
  ),
  "formula_of_nan": (
    lambda: make_evidence(comparisons=(make_comparison("loss", [math.nan, 0.0]),)),
    ["loss", "standard errors are not too large: mean square of all deviations"],
  ),
  "blunt_samples": (
    lambda: make_evidence(control=make_comparison("wrong", [19.0])),
    ["control: clipped ReLU's samples, ReLU's formula"],
  ),
  "standard_errors_too_large": (
    lambda: make_evidence(comparisons=(make_comparison("loss", [0.1, -0.2]),)),
    ["standard errors are not too large: mean square of all deviations"],
  ),
  "true_gradient": (
    lambda: make_evidence(gradient_gaps=np.array([0.0, 1e-9])),
    ["true gradient against automatic differentiation"],
  ),
  "angle_rises": (
    lambda: spoil("fixed_v", "relu", starts(RISING_ONCE)),
    ["angle rises, v = v*"],
  ),
  "angle_stays": (
    lambda: spoil("fixed_v_normalized", "clipped", starts(np.ones(NUM_STEPS + 1))),
    ["last angle, v = v*, |w| = 1"],
  ),
  "angle_is_nan": (
    lambda: spoil("fixed_v", "identity", starts(WITH_NAN)),
    ["last angle, v = v*"],
  ),
  "sampled_angle": (
    lambda: spoil("fixed_v_sampled", "relu", make_trajectory(np.full(3, 0.06))),
    ["last angle, v = v*, sampled gradients"],
  ),
  "loss_rises": (
    lambda: spoil("trainable_v", "relu", starts(RISING_ONCE)),
    ["loss rises, v trainable, |w| = 1"],
  ),
  "loss_at_no_minimum": (
    lambda: spoil("trainable_v", "clipped", starts(FALLING + 0.1)),
    ["last loss less that of the nearest minimum"],
  ),
  "free_loss_rises": (
    lambda: spoil("trainable_v_free", "relu", starts(RISING_ONCE)),
    ["loss rises, v trainable, from |w| = 6"],
  ),
  "free_identity_falls": (
    lambda: spoil("trainable_v_free", "identity", starts(FALLING)),
    ["identity: loss rises, v trainable, from |w| = 6"],
  ),
  "relu_leaves": (
    lambda: spoil("spurious", "relu", make_spurious(FALLING, np.full(NUM_STEPS + 1, 0.1))),
    ["last distance in v to the spurious minimum"],
  ),
  "relu_rises": (
    lambda: spoil("spurious", "clipped", make_spurious(RISING_ONCE, FALLING)),
    ["loss rises near the spurious minimum"],
  ),
  "identity_stays": (
    lambda: spoil("spurious", "identity", make_spurious(FALLING, FALLING)),
    ["identity: highest loss over that of the start"],
  ),
  "norm_control": (
    lambda: spoil("norm_ratios", "relu", np.array([0.1, 2.0])),
    ["norm control near it: largest ratio"],
  ),
  "norm_control_of_identity": (
    lambda: spoil("norm_ratios", "identity", np.array([2.0, 2.0])),
    ["norm control, identity: growth at 1/100 of the distance"],
  ),
  "training_loss": (
    lambda: spoil("classifiers", "log-tailed ReLU", make_history(last_loss=1e-4)),
    ["multi-class: last training loss"],
  ),
  "training_accuracy": (
    lambda: spoil("classifiers", "vanilla ReLU", make_history(last_accuracy=0.9999)),
    ["multi-class: last training accuracy"],
  ),
  "held_out_accuracy": (
    lambda: spoil("classifiers", "vanilla ReLU", make_history(test_accuracy=0.98)),
    ["multi-class: held-out accuracy, last 100 steps"],
  ),
  "inequality": (
    lambda: spoil("blended", "ternary", make_runs(0.1, excess=1e-9)),
    ["blending, ternary: excess over what the inequality allows"],
  ),
  "inequality_of_nan": (
    lambda: spoil("blended", "binary", make_runs(0.1, excess=math.nan)),
    ["blending, binary: excess over what the inequality allows"],
  ),
  "blended_loss_rises": (
    lambda: spoil("blended", "binary", make_runs(0.1, loss=np.stack([FALLING, RISING_ONCE] * 2))),
    ["blending, binary: loss rises"],
  ),
  "unblended_loss_never_rises": (
    lambda: spoil("unblended", "binary", make_runs(0.0, loss=np.stack([FALLING] * 3))),
    ["no blending, binary: loss rises"],
  ),
  "enough_blending_rises": (
    lambda: spoil("rising_shares", "ternary", np.full(len(experiments.SWEEP_SHARES), 0.01)),
    ["blending, ternary: loss rises, rho at least learning rate times L"],
  ),
}


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    (3.9, 4.0, False, True),
    (4.0, 4.0, False, True),
    (4.1, 4.0, False, False),
    (3.9, 4.0, True, False),
    (4.0, 4.0, True, True),
    (math.nan, 4.0, False, False),
    (math.nan, 4.0, True, False),
    (math.inf, 4.0, False, False),
  )
  def test_passed(self, value, limit, at_least, expected):
    check = checks.Check(name="a", value=value, limit=limit, unit="b", over="c", at_least=at_least)
    self.assertEqual(check.passed, expected)

  def test_table(self):
    low = checks.Check(name="a", value=0.125, limit=4, unit="u", over="2 numbers")
    high = dataclasses.replace(low, value=math.nan, limit=99, at_least=True)
    self.assertEqual(
      checks.checks_table([low, high]).rows,
      (
        ("a", "0.125", "<= 4", "u", "2 numbers", "pass"),
        ("a", "nan", ">= 99", "u", "2 numbers", "FAIL"),
      ),
    )


class MakeChecksTest(parameterized.TestCase):
  def test_sound_evidence_passes(self):
    made = checks.make_checks(sound())
    self.assertEqual([check.name for check in made if not check.passed], [])
    self.assertLen({check.name for check in made}, len(made))

  @parameterized.parameters(*BROKEN)
  def test_broken_evidence_fails(self, name):
    spoiled, expected = BROKEN[name]
    failed = [check.name for check in checks.make_checks(spoiled()) if not check.passed]
    self.assertEqual(failed, expected)

  def test_every_check_can_fail(self):
    names = {check.name for check in checks.make_checks(sound())}
    broken = {name for _, failing in BROKEN.values() for name in failing}
    # of checks that differ by quantizer or setting alone one stands for both
    twins = {"angle rises, v = v*, |w| = 1", "gradient in v"}

    def kinds(of: set[str]) -> set[str]:
      return {name.replace(", binary:", ", Q:").replace(", ternary:", ", Q:") for name in of}

    self.assertEqual(kinds(names) - kinds(broken) - twins, set())

  def test_numbers(self):
    by_name = {check.name: check for check in checks.make_checks(sound())}
    self.assertEqual(by_name["loss"].value, 2.0)
    self.assertEqual(by_name["loss"].over, "2 numbers to +-1e-03")
    self.assertEqual(by_name["gradient in v"].over, "1 number to +-1e-03")
    # from 0.3 to 1.3
    np.testing.assert_allclose(
      by_name["identity: highest loss over that of the start"].value, 1.3 / 0.3, rtol=1e-12
    )
    # the saw rises at every other of 50 steps
    self.assertEqual(by_name["no blending, ternary: loss rises"].value, 50.0)
