"""How a per-device step is mapped over devices. Nothing else knows.

Both mappings share one layout of the state: replicated, without a leading axis of devices.
`shard_map` runs with check_vma=False: under the check, autodiff already sums gradients of
replicated parameters over devices, and the step's own pmean would leave them too large by the
number of devices.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bcgd_jax.errors import UsageError

PyTree = Any
AXIS_NAME = "devices"


@dataclasses.dataclass(frozen=True, slots=True)
class Parallel:
  """Data parallelism over `devices`, those of every process.

  Attributes:
    mode: "pmap" or "shard_map"; the results are equal.
    devices: all devices of the run, the same sequence on every process.
  """

  mode: Literal["pmap", "shard_map"]
  devices: Sequence[jax.Device]

  @property
  def mesh(self) -> Mesh:
    return Mesh(np.asarray(self.devices), (AXIS_NAME,), axis_types=(AxisType.Auto,))

  @property
  def local_devices(self) -> tuple[jax.Device, ...]:
    """Those of this process."""
    return tuple(d for d in self.devices if d.process_index == jax.process_index())

  @property
  def replicated(self) -> NamedSharding:
    """Where replicated trees lie: what the mapped steps return them with.

    pmap's results know nothing of other processes' devices.
    """
    devices = self.local_devices if self.mode == "pmap" else self.devices
    return NamedSharding(Mesh(np.asarray(devices), (AXIS_NAME,)), PartitionSpec())

  def check_batch_size(self, batch_size: int, *, name: str, parts: int = 1) -> None:
    """Raises UsageError unless every device gets an equal batch of `parts` equal parts."""
    unit = len(self.devices) * parts
    if batch_size % unit:
      raise UsageError(
        f"{name} must be divisible by {unit} ({len(self.devices)} devices"
        + (f" times {parts} accumulated parts" if parts > 1 else "")
        + f"), got {batch_size}."
      )

  def replicate(self, tree: PyTree) -> PyTree:
    """A copy of host or single-device arrays on every device; the originals stay valid."""
    sharding = self.replicated

    def place(leaf: Any) -> jax.Array:
      host = np.asarray(jax.device_get(leaf))
      return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)

  def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """This process's part of a global batch, laid out for the mapped steps."""
    if self.mode == "pmap":
      local = len(self.local_devices)
      return {k: v.reshape(local, v.shape[0] // local, *v.shape[1:]) for k, v in batch.items()}
    sharding = NamedSharding(self.mesh, PartitionSpec(AXIS_NAME))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

  def compile(self, function: Callable[..., Any]) -> Any:
    """Compiles a function of replicated trees alone: every device computes the same results."""
    return jax.jit(function, out_shardings=self.replicated)

  def map_step(self, step: Callable[..., Any], *, num_replicated: int, donate: bool) -> Any:
    """Maps `step(*replicated, batch)` over devices, compiled.

    Args:
      step: per-device function; every output must be the same on all devices.
      num_replicated: how many arguments come before the batch; they are replicated.
      donate: whether the first argument's buffers may be reused for the result.
    Returns:
      A function of replicated trees and a batch from `place_batch`; outputs are replicated.
    """
    donated = (0,) if donate else ()
    if self.mode == "pmap":
      return jax.pmap(
        step,
        axis_name=AXIS_NAME,
        in_axes=(*[None] * num_replicated, 0),
        out_axes=None,
        devices=list(self.devices),
        donate_argnums=donated,
      )
    replicated, split = PartitionSpec(), PartitionSpec(AXIS_NAME)
    mapped = jax.shard_map(
      step,
      mesh=self.mesh,
      in_specs=(*[replicated] * num_replicated, split),
      out_specs=replicated,
      check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donated)
