"""Several processes as one run: how they find each other, what is checked, how they end."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from bcgd_jax.errors import UsageError

HEARTBEAT_SECONDS = 30
_TEXT_BYTES = 4096
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_ACCELERATOR_PACKAGES = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DistributedOptions:
  """How this process becomes part of a run.

  Attributes:
    mode: "off": one process, unless an address is given; "auto": JAX finds the others in the TPU's
      metadata, SLURM's or Open MPI's environment.
    coordinator_address: "host:port" of process 0; with it num_processes and process_id are needed.
    num_processes, process_id: how many there are, and which this is.
    expected_devices: devices over all processes; None does not check.
    expected_platform: "cpu", "gpu" or "tpu"; None does not check.
  """

  mode: str = "off"
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  expected_devices: int | None = None
  expected_platform: str | None = None

  def __post_init__(self) -> None:
    if self.mode not in ("off", "auto"):
      raise UsageError(f"distributed must be off or auto, got {self.mode!r}.")
    explicit = (self.coordinator_address, self.num_processes, self.process_id)
    if any(value is not None for value in explicit) and None in explicit:
      raise UsageError(
        "coordinator_address, num_processes and process_id must be given together, got "
        f"{self.coordinator_address}, {self.num_processes} and {self.process_id}."
      )
    if self.coordinator_address is None:
      return
    if self.mode == "auto":
      raise UsageError("distributed must be off where coordinator_address is given, got auto.")
    host, _, port = self.coordinator_address.rpartition(":")
    if not host or not port.isdigit():
      raise UsageError(f"coordinator_address must be HOST:PORT, got {self.coordinator_address!r}.")
    assert self.num_processes is not None
    assert self.process_id is not None
    if not 0 <= self.process_id < self.num_processes:
      raise UsageError(
        f"process_id must be in [0, num_processes), got {self.process_id} of {self.num_processes}."
      )


def join_processes(options: DistributedOptions) -> None:
  """Connects this process with the others and checks what it sees; before any other use of JAX.

  Raises:
    UsageError: if the devices are not those expected, or no cluster is found with mode="auto".
  """
  if options.mode == "auto" or options.coordinator_address is not None:
    # JAX's collectives between processes on CPUs; other platforms do not read it
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
      jax.distributed.initialize(
        options.coordinator_address,
        options.num_processes,
        options.process_id,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      )
    except ValueError as error:  # nothing in the environment tells of a cluster
      raise UsageError(f"distributed=auto found no cluster to join: {error}") from error
    if not jax.distributed.is_initialized():
      raise UsageError("distributed must connect the processes, but JAX did not initialize.")
  found, devices = jax.default_backend(), jax.device_count()
  if options.expected_platform not in (None, found):
    raise UsageError(
      f"expected_platform must be what JAX runs on, {found}, got {options.expected_platform}: is "
      "the accelerator held by another process, or its plugin not installed?"
    )
  if options.expected_devices not in (None, devices):
    raise UsageError(
      f"expected_devices must be the {devices} that JAX sees ({jax.local_device_count()} of them "
      f"in process {jax.process_index()} of {jax.process_count()}), got {options.expected_devices}."
    )
  if jax.process_count() > 1:
    print(
      f"process {jax.process_index()} of {jax.process_count()} on {platform.node()}: "
      f"{jax.local_device_count()} of {devices} {found} devices",
      flush=True,
    )


def is_primary() -> bool:
  """Whether this process writes what is written once.

  By JAX's index, never by the id given at start-up: on TPUs the two may differ.
  """
  return jax.process_index() == 0


def on_primary(action: Callable[[], Any], *, what: str) -> Any:
  """Runs `action` on the primary process alone; the others wait for it.

  Returns:
    On the primary what `action` returns, elsewhere None.
  Raises:
    UsageError: on the others, if it failed on the primary, which raises what it raised.
  """
  if jax.process_count() == 1:
    return action()
  result, error = None, None
  if is_primary():
    try:
      result = action()
    except Exception as raised:  # noqa: BLE001 (raised again once the others know)
      error = raised
  failed = multihost_utils.broadcast_one_to_all(np.asarray(error is not None))
  if error is not None:
    raise error
  if failed:
    raise UsageError(f"{what} failed on process 0, see its message.")
  return result


def check_processes(workdir: Path, *, config_hash: str) -> None:
  """Compares the processes before they train; a collective over all devices is part of it.

  Args:
    workdir: must be one folder on a file system that all processes share; it must exist.
    config_hash: of the run.
  Raises:
    UsageError: if versions, code or configuration differ between processes, naming the first
      difference, or the workdir is not one folder.
  """
  if jax.process_count() == 1:
    return
  found = _gather_texts(json.dumps({**_versions(), "configuration": config_hash}))
  first = json.loads(found[0])
  for index, text in enumerate(found):
    other = json.loads(text)
    different = [key for key in first if first[key] != other.get(key)]
    if different:
      key = different[0]
      raise UsageError(
        f"{key} must be the same in all processes, got {first[key]} in process 0 and "
        f"{other.get(key)} in process {index}."
      )
  _check_shared(workdir)


def _check_shared(workdir: Path) -> None:
  """A token that process 0 writes is what every process reads."""
  path = workdir / ".shared_token"
  token = secrets.token_hex(16) if is_primary() else ""
  on_primary(lambda: path.write_text(token), what=f"writing {path}")
  expected = _gather_texts(token)[0]
  found = path.read_text() if path.exists() else None
  wrong = [i for i, text in enumerate(_gather_texts(found or "")) if text != expected]
  on_primary(path.unlink, what=f"removing {path}")
  if wrong:
    raise UsageError(
      f"workdir must be one folder shared by all processes, got {workdir}, which processes {wrong} "
      "do not share with process 0."
    )


def _gather_texts(text: str) -> list[str]:
  """The texts of all processes, by process index."""
  data = text.encode()
  if len(data) > _TEXT_BYTES:
    raise ValueError(f"text must have at most {_TEXT_BYTES} bytes, got {len(data)}")
  padded = np.zeros(_TEXT_BYTES, np.uint8)
  padded[: len(data)] = np.frombuffer(data, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [np.asarray(row).tobytes().rstrip(b"\0").decode() for row in rows]


def _versions() -> dict[str, str]:
  found = {"python": platform.python_version(), "code": _code_digest()}
  for name in (*_PACKAGES, *_ACCELERATOR_PACKAGES):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "none"
  return found


def _code_digest() -> str:
  folder = Path(__file__).parent.parent  # the package
  digest = hashlib.sha256()
  for path in sorted(folder.rglob("*.py")):
    digest.update(path.relative_to(folder).as_posix().encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def leave_processes(status: int) -> NoReturn:
  """Ends this process with a status that JAX's service does not replace by its own.

  A process that ends in order waits for the others, as they do for it. One that fails leaves at
  once: JAX's shutdown would wait for peers that are stuck in a collective, and abort (134). They
  notice within `HEARTBEAT_SECONDS`.
  """
  if not jax.distributed.is_initialized():
    sys.exit(status)
  if status in (0, 143):
    jax.distributed.shutdown()
    sys.exit(status)
  sys.stdout.flush()
  sys.stderr.flush()
  if is_primary():
    time.sleep(2.0)  # it holds the service: the others, failing alike, first say why
  os._exit(status)


def leave_after_error(error: BaseException) -> NoReturn:
  """Ends a process after an error that is not the user's, such as a collective's.

  Where the cause is a peer that died, JAX's service ends this process by SIGABRT (134) as soon as
  it misses the heartbeat; an error of our own keeps its status 1.
  """
  traceback.print_exception(error)
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    sys.stderr.flush()
    time.sleep(HEARTBEAT_SECONDS + 15)
  leave_processes(1)
