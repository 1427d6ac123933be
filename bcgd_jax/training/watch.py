"""What a run tells of its weights and activations while it trains, computed on its devices."""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from bcgd_jax.layers import QuantReLU
from bcgd_jax.numerics import WeightQuantizer
from bcgd_jax.training.parallel import Parallel
from bcgd_jax.training.recipe import Phase
from bcgd_jax.training.run import Run, split_batches
from bcgd_jax.training.steps import Batch, StepOptions, normalize

PyTree = Any


class CodeChanges(NamedTuple):
  """Fractions of weights whose code changed: of all quantized ones, and by parameter path."""

  total: float
  by_path: dict[str, float]


class CodeWatch:
  """Compares the codes of the quantized weights with those of the call before.

  The codes (int8, a quarter of the weights' size) stay on the devices. Every process must call it
  alike.
  """

  def __init__(
    self,
    parallel: Parallel,
    quantizers: Mapping[str, WeightQuantizer],
    params: PyTree,
    codes: Mapping[str, jax.Array] | None,
  ) -> None:
    """
    Args:
      parallel: of the run.
      quantizers: of the scored network, by path; where there are none nothing is compared.
      params: float weights, replicated.
      codes: the first ones to compare with, replicated; None takes those of `params`.
    """
    self._compare = parallel.compile(functools.partial(count_changes, quantizers=quantizers))
    leaves = _leaves_by_path(params)
    self._sizes = {path: leaves[path].size for path in quantizers}
    if codes is not None:
      self._codes = dict(codes)
      return
    # compared with zeros and the counts dropped: one program compiled instead of two
    self._codes = parallel.replicate(
      {path: np.zeros(leaves[path].shape, np.int8) for path in quantizers}
    )
    self.update(params)

  @property
  def codes(self) -> dict[str, jax.Array]:
    """int8 codes by path, as of the last `update`."""
    return self._codes

  def update(self, params: PyTree) -> CodeChanges | None:
    """What changed since the call before; None where no weight is quantized."""
    if not self._sizes:
      return None
    counts, self._codes = self._compare(params, self._codes)
    counts = jax.device_get(counts)
    return CodeChanges(
      total=sum(int(n) for n in counts.values()) / sum(self._sizes.values()),
      by_path={path: int(counts[path]) / size for path, size in self._sizes.items()},
    )


class DeadWatch:
  """Measures dead activations of a phase's scored network on one fixed batch.

  The batch is the first `config.data.eval_batch_size` training images, not augmented; each process
  reads its part once and keeps it. Every process must call it alike.
  """

  def __init__(self, run: Run, phase: Phase) -> None:
    self._run = run
    step = functools.partial(dead_step, options=phase.options)
    self._mapped = run.parallel.map_step(step, num_replicated=1, donate=False)
    self._batch: Mapping[str, np.ndarray] | None = None

  def measure(self, variables: PyTree) -> dict[str, float]:
    """See `dead_step`, with Python numbers."""
    if self._batch is None:
      with contextlib.closing(split_batches(self._run, "train", num_batches=1)) as batches:
        self._batch = next(batches)
    dead = self._mapped(variables, self._run.parallel.place_batch(self._batch))
    return {path: float(fraction) for path, fraction in jax.device_get(dead).items()}


def count_changes(
  params: PyTree,
  previous: Mapping[str, jax.Array],
  *,
  quantizers: Mapping[str, WeightQuantizer],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """How many codes of each quantized tensor differ from earlier ones, and the codes now.

  Args:
    params: the float weights.
    previous: path -> codes, int8, of the weights' shape.
    quantizers: by path.
  Returns:
    path -> int32 [], and path -> codes as in `previous`.
  """
  leaves = _leaves_by_path(params)
  codes = {path: quantizer.encode(leaves[path]).codes for path, quantizer in quantizers.items()}
  counts = {path: jnp.sum(new != previous[path], dtype=jnp.int32) for path, new in codes.items()}
  return counts, codes


def dead_step(variables: PyTree, batch: Batch, *, options: StepOptions) -> dict[str, jax.Array]:
  """The fraction of each activation's channels that one global batch never makes positive.

  A channel (an entry of the last axis) is dead if its output is 0 at every position of every
  example where "mask" holds: no gradient reaches what lies before it. A module that is used several
  times counts each use by itself; its fraction is their mean.

  Args:
    variables: "params", the float weights, and "batch_stats"; the same on every device.
    batch: a device's part: "image" as for `train_step`, "mask" bool [b].
    options: what is measured is `eval_model`, with float ReLUs too.
  Returns:
    path of the activation -> float32 [] in [0, 1]; the same on every device, however many.
  """
  x = normalize(batch["image"], options.mean, options.std)
  _, state = options.eval_model.apply(
    variables, x, train=False, capture_intermediates=_is_activation, mutable=["intermediates"]
  )
  captured = flatten_dict(cast(dict[str, Any], state)["intermediates"], sep="/")
  alive = {
    path.removesuffix("/__call__"): jnp.concatenate([_alive(y, batch["mask"]) for y in uses])
    for path, uses in captured.items()
  }
  if options.axis_name is not None:
    alive = jax.lax.pmax(alive, options.axis_name)
  return {path: 1.0 - jnp.mean(flags.astype(jnp.float32)) for path, flags in alive.items()}


def _alive(outputs: jax.Array, mask: jax.Array) -> jax.Array:
  """[b, ..., channels] -> int32 [channels], 1 where an example of the mask has an output not 0."""
  shown = mask.reshape(-1, *[1] * (outputs.ndim - 1))
  used = (outputs != 0) & shown
  return jnp.any(used, axis=tuple(range(outputs.ndim - 1))).astype(jnp.int32)


def _is_activation(module: nn.Module, method: str) -> bool:
  return isinstance(module, QuantReLU) and method == "__call__"


def _leaves_by_path(params: PyTree) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
