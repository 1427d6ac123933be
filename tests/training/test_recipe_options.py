"""What a phase's keys of the optimizer become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_config

from bcgd_jax.training.recipe import make_phases
from bcgd_jax.training.settings import parse_settings


def make_float_phase(**keys):
  """The float phase of a tiny run, 4 steps an epoch."""
  config = tiny_config()
  config["float"] |= keys
  phases = make_phases(
    parse_settings(config), num_classes=10, image_shape=(8, 8, 1), num_examples=64
  )
  return phases[0]


def test_steps_after_a_warmup():
  phase = make_float_phase(
    epochs=12.0, schedule="step", learning_rate=0.4, decay_epochs=(3.0, 6.0), warmup_epochs=2.0
  )
  expected = {0: 0.0, 1: 0.05, 4: 0.2, 8: 0.4, 11: 0.4, 12: 0.04, 23: 0.04, 24: 0.004, 47: 0.004}
  got = [float(phase.learning_rate(step)) for step in expected]
  np.testing.assert_allclose(got, list(expected.values()), rtol=1e-6)


@pytest.mark.parametrize(("decayed", "is_decayed"), [("all", {True}), ("kernels", {False})])
def test_decay_of_what_is_no_kernel(decayed, is_decayed):
  phase = make_float_phase(
    decayed=decayed, weight_decay=0.5, momentum=0.0, schedule="constant", learning_rate=0.1
  )
  params = {"conv1": {"kernel": jnp.ones(3)}, "bn1": {"scale": jnp.ones(3), "bias": jnp.ones(3)}}
  tx = phase.options.tx
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates["conv1"]["kernel"], -0.05, rtol=1e-6)
  assert {bool(jnp.all(u != 0)) for u in updates["bn1"].values()} == is_decayed
