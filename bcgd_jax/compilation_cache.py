"""Keeps compiled programs from one start of a command to the next."""

import hashlib
import os
import platform
from pathlib import Path

import jax
from absl import flags

_CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Folder for compiled programs; empty keeps none. By default JAX_COMPILATION_CACHE_DIR, else a "
  "folder of this kind of machine in ~/.cache/bcgd_jax.",
)


def enable_compilation_cache() -> None:
  """Turns JAX's persistent compilation cache on, unless --compilation_cache is empty."""
  folder = _CACHE.value
  if folder is None:
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
      return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = str(root / "bcgd_jax" / _machine())
  if not folder:
    jax.config.update("jax_enable_compilation_cache", False)
    return
  jax.config.update("jax_compilation_cache_dir", folder)


def _machine() -> str:
  """A name for the kind of processor: programs for CPUs are compiled for the one they ran on."""
  features = platform.processor()
  path = Path("/proc/cpuinfo")
  if path.exists():
    lines = path.read_text().splitlines()
    features += "".join(line for line in lines if line.startswith(("flags", "Features")))[:4096]
  return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
