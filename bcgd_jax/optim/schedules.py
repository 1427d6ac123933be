"""Schedules of the learning rate, of rho and of eta: optax's, with their arguments checked."""

import itertools
import numbers
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from bcgd_jax.optim.leaves import check_number


def step_decay(
  init: float, boundaries_steps: Sequence[int], *, factor: float, warmup_steps: int = 0
) -> optax.Schedule:
  """Multiplies a value by a factor at given steps, after a linear rise from 0 if there is one.

    value(t) = init * min(t / warmup_steps, 1) * factor ** (number of boundaries b with b <= t)

  Boundaries are counted from step 0, not from the end of the warm-up. With warm-up the update at
  step 0 has rate 0.

  Args:
    init: >= 0.
    boundaries_steps: strictly increasing, each at least 1; may be empty.
    factor: > 0.
    warmup_steps: >= 0; with 0 the first factor of the product is 1.
  Returns:
    Schedule of the number of updates made so far.
  Raises:
    ValueError, TypeError: if an argument breaks its rule above.
  """
  _check_at_least_0("init", init)
  check_number("factor", factor, rule="above 0", holds=lambda x: x > 0)
  for b in boundaries_steps:
    _check_steps("boundaries_steps", b, minimum=1)
  if any(b <= a for a, b in itertools.pairwise(boundaries_steps)):
    raise ValueError(f"boundaries_steps must be strictly increasing, got {boundaries_steps}")
  _check_steps("warmup_steps", warmup_steps, minimum=0)
  values = [init * factor**k for k in range(len(boundaries_steps) + 1)]
  steps = optax.join_schedules([optax.constant_schedule(v) for v in values], list(boundaries_steps))
  if warmup_steps == 0:
    return steps
  rise = optax.linear_schedule(0.0, 1.0, warmup_steps)
  # optax multiplies the count by floats, which strict dtype promotion refuses for an integer.
  return lambda count: rise(jnp.asarray(count, float)) * steps(count)


def cosine(init: float, total_steps: int, *, warmup_steps: int = 0) -> optax.Schedule:
  """Rises linearly from 0 to a value, then falls to 0 along half a cosine.

    value(t) = init * t / warmup_steps                                        for t < warmup_steps
    value(t) = init * (1 + cos(pi * (t - warmup_steps) / (total_steps - warmup_steps))) / 2   after

  and 0 from total_steps on. With warmup the update at step 0 has rate 0.

  Args:
    init: >= 0; the largest value.
    total_steps: >= 1, warm-up included.
    warmup_steps: in [0, total_steps).
  Returns:
    Schedule of the number of updates made so far.
  Raises:
    ValueError, TypeError: if an argument breaks its rule above.
  """
  _check_at_least_0("init", init)
  _check_steps("total_steps", total_steps, minimum=1)
  _check_steps("warmup_steps", warmup_steps, minimum=0)
  if warmup_steps >= total_steps:
    raise ValueError(f"warmup_steps must be below total_steps = {total_steps}, got {warmup_steps}")
  if warmup_steps == 0:
    schedule = optax.cosine_decay_schedule(init, total_steps)
  else:
    schedule = optax.warmup_cosine_decay_schedule(0.0, init, warmup_steps, total_steps)
  # optax multiplies the count by floats, which strict dtype promotion refuses for an integer.
  return lambda count: schedule(jnp.asarray(count, float))


def growing_rho(
  rho: float, growth: float, *, steps_per_epoch: int, maximum: float = 0.01
) -> optax.Schedule:
  """Lets the blending share grow by a factor an epoch.

    value(t) = min(rho * growth ** (t // steps_per_epoch), maximum)

  Args:
    rho: in [0, maximum]; the share of the first epoch.
    growth: >= 1; 1 keeps rho constant.
    steps_per_epoch: >= 1, updates in an epoch.
    maximum: in [0, 1].
  Returns:
    Schedule of the number of updates made so far, for `blend` or `bcgd`.
  Raises:
    ValueError, TypeError: if an argument breaks its rule above.
  Source: authors' code (its maximum is 0.01). Differs from it: the original multiplies before the
    first epoch too; pass growth * rho for its values.
  """
  check_number("maximum", maximum, rule="in [0, 1]", holds=lambda x: 0 <= x <= 1)
  check_number("rho", rho, rule=f"in [0, maximum = {maximum}]", holds=lambda x: 0 <= x <= maximum)
  _check_growth(growth)
  _check_steps("steps_per_epoch", steps_per_epoch, minimum=1)
  if rho == 0 or growth == 1:
    return optax.constant_schedule(rho)
  by_epoch = optax.exponential_decay(rho, 1, growth, end_value=maximum)
  # Whole epochs by integer division: a rounded t / steps_per_epoch could start one a step late.
  return lambda count: by_epoch(count // steps_per_epoch)


def growing_eta(
  eta: float, growth: float, *, steps_per_epoch: int, relax_epochs: int
) -> optax.Schedule:
  """Lets the pull of `binary_relax` grow by a factor an epoch, then makes the projection exact.

    value(t) = eta * growth ** epoch   for epoch = t // steps_per_epoch < relax_epochs
    value(t) = infinity                after

  Args:
    eta: > 0; the value of the first epoch.
    growth: >= 1.
    steps_per_epoch: >= 1, updates in an epoch.
    relax_epochs: >= 0, epochs of the relaxed phase.
  Returns:
    Schedule of the number of updates made so far, for `binary_relax`.
  Raises:
    ValueError, TypeError: if an argument breaks its rule above.
  Source: authors' code of BinaryRelax (eta 1, growth 1.04, 150 of 200 epochs). Differs from it: the
    original multiplies before the first epoch too; pass growth * eta for its values.
  """
  check_number("eta", eta, rule="above 0", holds=lambda x: x > 0)
  _check_growth(growth)
  _check_steps("steps_per_epoch", steps_per_epoch, minimum=1)
  _check_steps("relax_epochs", relax_epochs, minimum=0)
  by_epoch = optax.join_schedules(
    [optax.exponential_decay(eta, 1, growth), optax.constant_schedule(jnp.inf)], [relax_epochs]
  )
  return lambda count: by_epoch(count // steps_per_epoch)


def _check_at_least_0(name: str, value: Any) -> None:
  check_number(name, value, rule="at least 0", holds=lambda x: x >= 0)


def _check_growth(growth: Any) -> None:
  check_number("growth", growth, rule="at least 1", holds=lambda x: x >= 1)


def _check_steps(name: str, value: Any, *, minimum: int) -> None:
  if not isinstance(value, numbers.Integral):
    raise TypeError(f"{name} must be a whole number, got {value!r}")
  check_number(name, value, rule=f"at least {minimum}", holds=lambda x: x >= minimum)
