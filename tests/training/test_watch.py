"""Changed codes and dead activations, against counts by hand and for any number of devices."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_helpers as helpers

from bcgd_jax.layers import QuantReLU
from bcgd_jax.numerics import Binary, Ternary
from bcgd_jax.training.parallel import AXIS_NAME, Parallel
from bcgd_jax.training.watch import CodeWatch, dead_step


def make_watch(params, quantizers, codes=None, *, devices=2):
  parallel = Parallel("pmap", tuple(jax.devices()[:devices]))
  replicated = parallel.replicate(params)
  return parallel, CodeWatch(parallel, quantizers, replicated, codes)


def test_changed_codes_are_counted_since_the_call_before():
  params = {
    "a": {"kernel": np.float32([1.0, -1.0, 1.0, -1.0]), "bias": np.float32([1.0])},
    "b": {"kernel": np.float32([[1.0, 0.1], [-1.0, 0.1], [1.0, -1.0]])},
  }
  quantizers = {"b/kernel": Ternary(), "a/kernel": Binary()}
  parallel, watch = make_watch(params, quantizers)

  params["a"]["kernel"] = np.float32([1.0, 2.0, 1.0, -0.5])  # one sign
  params["a"]["bias"] = np.float32([-1.0])  # not quantized
  params["b"]["kernel"] = np.float32([[1.0, 1.0], [-1.0, -1.0], [-1.0, -0.9]])  # two zeros, a sign
  found = watch.update(parallel.replicate(params))
  assert found.by_path == {"b/kernel": 3 / 6, "a/kernel": 1 / 4}
  assert list(found.by_path) == ["b/kernel", "a/kernel"]  # the order of the quantizers
  assert found.total == 4 / 10

  found = watch.update(parallel.replicate(params))
  assert (found.total, set(found.by_path.values())) == (0.0, {0.0})


def test_watch_goes_on_from_codes_that_were_kept():
  params, quantizers = {"kernel": np.float32([1.0, -1.0, 1.0])}, {"kernel": Binary()}
  parallel, first = make_watch(params, quantizers)
  later = parallel.replicate({"kernel": np.float32([-1.0, -1.0, -1.0])})
  _, resumed = make_watch({"kernel": np.float32([7.0, 7.0, 7.0])}, quantizers, first.codes)
  assert resumed.update(later) == first.update(later)
  assert resumed.update(later).total == 0.0


def test_nothing_to_compare_without_quantizers():
  _, watch = make_watch({"kernel": np.float32([1.0])}, {})
  assert watch.update({"kernel": np.float32([-1.0])}) is None
  assert watch.codes == {}


class Activations(nn.Module):
  """One activation used twice, and one behind it; what they see is the image itself."""

  num_bits: int | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    shared = QuantReLU(num_bits=self.num_bits, name="shared")
    once = shared(x)
    twice = shared(-x)
    return jnp.mean(QuantReLU(num_bits=self.num_bits, name="last")(once - twice), axis=(1, 2))


# Four channels over a batch of 8: positive at one pixel of one example, never positive, always
# positive, positive in the last example alone.
IMAGES = np.full((8, 2, 2, 4), -1.0, np.float32)
IMAGES[5, 1, 0, 0] = 0.5
IMAGES[..., 1] = -2.0
IMAGES[..., 2] = 1.0
IMAGES[7, ..., 3] = 3.0


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("num_bits", [None, 4])
def test_dead_channels(num_bits, devices, mode):
  options = helpers.make_options(np.float32, axis_name=AXIS_NAME)
  options = dataclasses.replace(options, eval_model=Activations(num_bits))
  parallel = Parallel(mode, tuple(jax.devices()[:devices]))
  mapped = parallel.map_step(
    functools.partial(dead_step, options=options), num_replicated=1, donate=False
  )
  alphas = {name: {"alpha": jnp.float32(0.25)} for name in ("shared", "last")} if num_bits else {}
  # pmap of jax 0.10 counts its in_axes wrongly where a replicated tree has no leaf at all
  variables = parallel.replicate({"params": alphas, "batch_stats": {"unused": jnp.float32(0)}})

  def measure(mask):
    batch = parallel.place_batch({"image": IMAGES, "mask": np.asarray(mask)})
    return {path: float(share) for path, share in mapped(variables, batch).items()}

  # of x channel 1 is dead, of -x channel 2; what is left of their difference is positive as x is
  assert measure([True] * 8) == {"shared": 1 / 4, "last": 1 / 4}
  # without the last example channel 3 is dead as well
  assert measure([True] * 7 + [False]) == {"shared": 3 / 8, "last": 1 / 2}
  # without any nothing is alive
  assert measure([False] * 8) == {"shared": 1.0, "last": 1.0}


def test_activations_of_a_network_are_found_by_path():
  options = helpers.make_options(np.float32, axis_name=None)
  state = helpers.initial_state(options, np.float32)
  params = jax.tree.map(np.asarray, state.params)
  # batch norm's outputs lie within a few units of its bias
  params["norm0"]["bias"] = np.float32([-100.0] * 3 + [100.0] * 5)
  variables = {"params": params, "batch_stats": state.batch_stats}
  batch = {**helpers.make_batches(np.float32, 1)[0], "mask": np.ones(helpers.BATCH, bool)}
  dead = jax.jit(functools.partial(dead_step, options=options))(variables, batch)
  assert set(dead) == {"relu0", "relu1"}
  assert float(dead["relu0"]) == 3 / 8
