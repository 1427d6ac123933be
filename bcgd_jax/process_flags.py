"""The flags that make a command one of several processes, and end it by its rules."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from absl import flags

from bcgd_jax.errors import UsageError
from bcgd_jax.training.distributed import DistributedOptions
from bcgd_jax.training.preemption import watch_for_sigterm
from bcgd_jax.training.run import Hooks
from bcgd_jax.training.watchdog import Watchdog

STEP_TIMEOUT_SECONDS = 45.0  # with several processes: a hung peer ends the others within a minute

_DISTRIBUTED = flags.DEFINE_enum(
  "distributed", "off", ["off", "auto"], "auto: join the processes that the TPU or SLURM knows of."
)
_ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator_address.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator_address.")
_DEVICES = flags.DEFINE_integer("expected_devices", None, "Fails unless JAX sees so many in all.")
_PLATFORM = flags.DEFINE_enum(
  "expected_platform", None, ["cpu", "gpu", "tpu"], "Fails unless JAX runs on it."
)
_STEP_TIMEOUT = flags.DEFINE_float(
  "step_timeout",
  None,
  "Seconds without a step after which the process ends with status 142; 0 waits for ever. "
  f"{STEP_TIMEOUT_SECONDS:.0f} with several processes, 0 with one.",
)


def distributed_options() -> DistributedOptions:
  """What the flags say of the processes."""
  return DistributedOptions(
    mode=_DISTRIBUTED.value,
    coordinator_address=_ADDRESS.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    expected_devices=_DEVICES.value,
    expected_platform=_PLATFORM.value,
  )


@contextmanager
def watched_hooks() -> Iterator[Hooks]:
  """Hooks that save on SIGTERM and, where there is a limit, end a run that hangs."""
  limit = _STEP_TIMEOUT.value
  if limit is None:
    limit = STEP_TIMEOUT_SECONDS if jax.process_count() > 1 else 0.0
  if limit < 0:
    raise UsageError(f"--step_timeout must be >= 0, got {limit}.")
  should_stop = watch_for_sigterm()
  if limit == 0:
    yield Hooks(should_stop=should_stop)
    return
  with Watchdog(limit) as dog:
    yield Hooks(should_stop=should_stop, on_step=lambda step: dog.beat(), slow=dog.slow)
