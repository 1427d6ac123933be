"""Devices, mappings and processes change nothing but rounding."""

import functools

import chex
import jax
import numpy as np
import training_helpers as helpers
from absl.testing import parameterized

from bcgd_jax.errors import UsageError
from bcgd_jax.training.parallel import AXIS_NAME, Parallel
from bcgd_jax.training.steps import train_step


def jitted_step(options):
  return jax.jit(functools.partial(train_step, options=options))


@functools.cache
def run_plain(dtype, num_steps, *, margin):
  """The reference: the step itself, jitted, on one device and without any mapping.

  No value may come within `margin` of a threshold: beyond it, one rounding away, codes differ.
  """
  options = helpers.make_options(dtype, axis_name=None)
  state = helpers.initial_state(options, dtype)
  step, distance = jitted_step(options), helpers.make_distance(options)
  metrics = {}
  for batch in helpers.make_batches(dtype, num_steps):
    assert distance(state, batch["image"]) > margin
    state, metrics = step(state, None, batch)
  return jax.device_get((state, metrics))


def run_mapped(dtype, num_steps, *, mode, num_devices, **changes):
  options = helpers.make_options(dtype, axis_name=AXIS_NAME, **changes)
  parallel = Parallel(mode, tuple(jax.devices()[:num_devices]))
  state = parallel.replicate(helpers.initial_state(options, dtype))
  step = functools.partial(train_step, options=options)
  mapped = parallel.map_step(step, num_replicated=2, donate=True)
  metrics = {}
  for batch in helpers.make_batches(dtype, num_steps):
    state, metrics = mapped(state, None, parallel.place_batch(batch))
  return state, metrics


class MappingTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("pmap_8", "pmap", 8), ("shard_map_8", "shard_map", 8), ("pmap_1", "pmap", 1)
  )
  def test_float64_matches_the_unmapped_step_for_20_steps(self, mode, num_devices):
    with jax.enable_x64(True):
      expected = run_plain(np.float64, 20, margin=1e-9)
      found = run_mapped(np.float64, 20, mode=mode, num_devices=num_devices)
      chex.assert_trees_all_close(jax.device_get(found), expected, atol=1e-9)

  @parameterized.named_parameters(("pmap", "pmap"), ("shard_map", "shard_map"))
  def test_float32_matches_the_unmapped_step_for_3_steps(self, mode):
    # ten times the largest rounding of a value of size 4
    expected = run_plain(np.float32, 3, margin=2e-6)
    found = run_mapped(np.float32, 3, mode=mode, num_devices=8)
    chex.assert_trees_all_close(jax.device_get(found[0].params), expected[0].params, atol=1e-6)

  def test_pmap_and_shard_map_agree_bit_for_bit(self):
    first = run_mapped(np.float32, 3, mode="pmap", num_devices=4)
    second = run_mapped(np.float32, 3, mode="shard_map", num_devices=4)
    chex.assert_trees_all_equal(jax.device_get(first), jax.device_get(second))

  def test_accumulated_parts_of_one_batch_give_its_mean_gradient(self):
    # Per-replica statistics of the parts differ from the batch's, so no batch norm may intervene:
    # the parts here are copies of one another, for which statistics and gradients are equal.
    with jax.enable_x64(True):
      options = helpers.make_options(np.float64, axis_name=None)
      half = {k: v[:8] for k, v in helpers.make_batches(np.float64, 1)[0].items()}
      twice = {k: np.concatenate([v, v]) for k, v in half.items()}
      state = helpers.initial_state(options, np.float64)
      expected, _ = jitted_step(options)(state, None, half)
      halves = helpers.make_options(np.float64, axis_name=None, accumulate_steps=2)
      found, _ = jitted_step(halves)(state, None, twice)
      chex.assert_trees_all_close(found.params, expected.params, atol=1e-12)

  def test_per_replica_statistics_differ_but_stay_replicated(self):
    found, _ = run_mapped(np.float32, 2, mode="pmap", num_devices=4, norm_axis=None)
    expected, _ = run_mapped(np.float32, 2, mode="pmap", num_devices=4)
    for leaf in jax.tree.leaves(found.batch_stats):
      copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
      self.assertTrue(all(np.array_equal(copies[0], copy) for copy in copies[1:]))
    different = jax.tree.map(
      lambda a, b: not np.allclose(a, b), found.batch_stats, expected.batch_stats
    )
    self.assertTrue(any(jax.tree.leaves(different)))

  def test_replicate_leaves_the_original_usable_after_donation(self):
    options = helpers.make_options(np.float32, axis_name=AXIS_NAME)
    original = helpers.initial_state(options, np.float32)
    parallel = Parallel("pmap", tuple(jax.devices()[:2]))
    step = functools.partial(train_step, options=options)
    mapped = parallel.map_step(step, num_replicated=2, donate=True)
    batch = helpers.make_batches(np.float32, 1)[0]
    mapped(parallel.replicate(original), None, parallel.place_batch(batch))
    chex.assert_tree_all_finite(original.params)  # reading a donated buffer raises

  def test_batch_size_that_does_not_divide_is_named(self):
    parallel = Parallel("pmap", tuple(jax.devices()[:4]))
    with self.assertRaisesRegex(UsageError, r"config\.data\.batch_size .* by 8 .* got 12"):
      parallel.check_batch_size(12, name="config.data.batch_size", parts=2)


class EmaTest(parameterized.TestCase):
  def test_average_follows_its_recurrence(self):
    options = helpers.make_options(np.float32, axis_name=None, ema_decay=0.9)
    state = helpers.initial_state(options, np.float32, with_ema=True)
    batch = helpers.make_batches(np.float32, 1)[0]
    after, _ = jitted_step(options)(state, None, batch)
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.params, after.params)
    chex.assert_trees_all_close(after.ema["params"], expected, atol=1e-6)
