import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax.optim import cosine, growing_eta, growing_rho, step_decay

INF = float("inf")


class ScheduleTest(parameterized.TestCase):
  def check(self, schedule, expected):
    """Compares with {step: value}, eager with Python ints and traced with int32."""
    traced = jax.jit(schedule)
    for step, value in expected.items():
      # float32 arithmetic: a power and a cosine are good to a few units of 6e-8.
      np.testing.assert_allclose(schedule(step), value, rtol=1e-5, atol=1e-7)
      np.testing.assert_allclose(traced(jnp.asarray(step, jnp.int32)), value, rtol=1e-5, atol=1e-7)

  def test_step_decay(self):
    schedule = step_decay(0.1, [80, 140], factor=0.1)
    self.check(schedule, {0: 0.1, 79: 0.1, 80: 0.01, 139: 0.01, 140: 0.001, 10**6: 0.001})
    self.check(step_decay(0.1, [], factor=0.1), {0: 0.1, 1000: 0.1})
    # An odd boundary that float32 cannot hold.
    self.check(step_decay(1.0, (2**24 + 1,), factor=0.5), {2**24: 1.0, 2**24 + 1: 0.5})

  def test_step_decay_with_warmup(self):
    rise = {t: 0.4 * t / 10 for t in range(10)}
    steps = {10: 0.4, 29: 0.4, 30: 0.04, 49: 0.04, 50: 0.004, 10**6: 0.004}
    self.check(step_decay(0.4, [30, 50], factor=0.1, warmup_steps=10), rise | steps)
    # A boundary within the rise: the product of both.
    overlap = {0: 0.0, 1: 0.1, 2: 0.1, 3: 0.15, 4: 0.2, 5: 0.2}
    self.check(step_decay(0.4, [2], factor=0.5, warmup_steps=4), overlap)

  def test_cosine(self):
    expected = {t: 0.4 * (1 + math.cos(math.pi * t / 50)) / 2 for t in range(51)}
    self.check(cosine(0.4, 50), expected | {60: 0.0})

  def test_cosine_with_warmup(self):
    rise = {t: 0.4 * t / 10 for t in range(10)}
    fall = {t: 0.4 * (1 + math.cos(math.pi * (t - 10) / 40)) / 2 for t in range(10, 51)}
    self.check(cosine(0.4, 50, warmup_steps=10), rise | fall | {60: 0.0})

  @parameterized.parameters(1, 7, 49, 391)
  def test_growing_rho(self, steps):
    schedule = growing_rho(1e-3, 1.5, steps_per_epoch=steps)
    expected = {}
    for epoch in range(8):
      value = min(1e-3 * 1.5**epoch, 0.01)
      expected |= {epoch * steps: value, (epoch + 1) * steps - 1: value}
    self.assertEqual(expected[7 * steps], 0.01)
    self.check(schedule, expected)

  def test_growing_rho_stays_finite(self):
    schedule = growing_rho(1e-5, 10.0, steps_per_epoch=1, maximum=0.02)
    self.check(schedule, {2**31 - 1: 0.02})
    self.check(growing_rho(0.0, 10.0, steps_per_epoch=1), {0: 0.0, 2**31 - 1: 0.0})
    self.check(growing_rho(1e-5, 1, steps_per_epoch=1), {0: 1e-5, 2**31 - 1: 1e-5})

  def test_growing_eta(self):
    # The published schedule: 1.04 in the first epoch, 359 in the 150th, then exact projection.
    schedule = growing_eta(1.04, 1.04, steps_per_epoch=10, relax_epochs=150)
    expected = {0: 1.04, 9: 1.04, 10: 1.04**2, 1499: 1.04**150, 1500: INF, 2**31 - 1: INF}
    self.check(schedule, expected)
    self.check(growing_eta(1.0, 1.0, steps_per_epoch=10, relax_epochs=0), {0: INF})

  @parameterized.named_parameters(
    ("init", lambda: step_decay(-0.1, [1], factor=0.1), "init must be at least 0, got -0.1"),
    ("factor", lambda: step_decay(0.1, [1], factor=0.0), "factor must be above 0"),
    ("boundary", lambda: step_decay(0.1, [0], factor=0.1), "boundaries_steps must be at least 1"),
    ("order", lambda: step_decay(0.1, [5, 5], factor=0.1), "must be strictly increasing"),
    (
      "step_warmup",
      lambda: step_decay(0.1, [1], factor=0.1, warmup_steps=-1),
      "warmup_steps must be at least 0, got -1",
    ),
    ("cosine_init", lambda: cosine(float("nan"), 10), "init must be at least 0"),
    ("total", lambda: cosine(0.1, 0), "total_steps must be at least 1"),
    ("warmup", lambda: cosine(0.1, 10, warmup_steps=-1), "warmup_steps must be at least 0"),
    ("warmup_all", lambda: cosine(0.1, 9, warmup_steps=9), "below total_steps = 9, got 9"),
    ("rho", lambda: growing_rho(0.02, 2, steps_per_epoch=1), r"rho must be in \[0, maximum"),
    ("rho_growth", lambda: growing_rho(1e-5, 0.9, steps_per_epoch=1), "growth must be at least 1"),
    (
      "rho_maximum",
      lambda: growing_rho(1e-5, 2, steps_per_epoch=1, maximum=1.1),
      r"maximum must be in \[0, 1\]",
    ),
    ("rho_steps", lambda: growing_rho(1e-5, 2, steps_per_epoch=0), "steps_per_epoch must be"),
    ("eta", lambda: growing_eta(0, 2, steps_per_epoch=1, relax_epochs=1), "eta must be above 0"),
    (
      "eta_growth",
      lambda: growing_eta(1, 0.5, steps_per_epoch=1, relax_epochs=1),
      "growth must be at least 1",
    ),
    (
      "eta_epochs",
      lambda: growing_eta(1, 2, steps_per_epoch=1, relax_epochs=-1),
      "relax_epochs must be at least 0",
    ),
  )
  def test_value_errors(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  @parameterized.named_parameters(
    (
      "warmup",
      lambda: step_decay(0.1, [1], factor=0.1, warmup_steps=2.5),
      "warmup_steps must be a whole number, got 2.5",
    ),
    ("steps", lambda: cosine(0.1, 10.5), "total_steps must be a whole number, got 10.5"),
    ("init", lambda: cosine("0.1", 10), "init must be a number, got '0.1'"),
  )
  def test_type_errors(self, make, message):
    with self.assertRaisesRegex(TypeError, message):
      make()
