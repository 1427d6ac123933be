"""Where a run ran: code, versions and hardware."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

ENVIRONMENT_FILE = "environment.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def describe_environment() -> dict[str, Any]:
  """Commit, versions and devices, as plain values; initialises JAX's devices."""
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  devices = jax.devices()
  return {
    "commit": describe_commit(),
    "python": platform.python_version(),
    **versions,
    "device": processor_name() if devices[0].platform == "cpu" else devices[0].device_kind,
    "num_devices": len(devices),
    "cpu_cores": usable_cores(),
  }


def describe_commit() -> str:
  """The checkout's commit, with "-dirty" where tracked files differ; "" outside a checkout."""
  root = Path(__file__).parents[2]
  if not (root / ".git").exists():
    return ""
  command = [
    "git",
    "-C",
    str(root),
    "describe",
    "--always",
    "--abbrev=10",
    "--dirty",
    "--exclude=*",
  ]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  except FileNotFoundError:  # no git on this machine
    return ""
  return done.stdout.strip()


def processor_name() -> str:
  """The processor's own name where Linux tells it, else the architecture."""
  info = Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        return line.split(":", 1)[1].strip()
  return platform.machine()


def usable_cores() -> int:
  """Cores that this process may run on."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
