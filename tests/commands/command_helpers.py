"""Runs commands as a user does: in a process of their own, from the checkout."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

# a run of seconds: 64 digits, one epoch a phase
TINY = (
  "--config=configs/digits_resnet8_1w4a.py",
  "--config.data.validation_examples=20",
  "--config.data.train_examples=64",
  "--config.data.batch_size=16",
  "--config.float.epochs=1.0",
  "--config.quantized.epochs=1.0",
  "--config.log_every_steps=2",
  "--config.checkpoint_every_steps=2",
)


def run_command(
  module: str, *arguments: object, data_dir: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
  """Runs `python -m bcgd_jax.MODULE ARGUMENTS` and returns what it printed and its status."""
  environment = {**os.environ, "TFDS_DATA_DIR": str(data_dir), **(env or {})}
  return subprocess.run(
    [sys.executable, "-m", f"bcgd_jax.{module}", *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
    timeout=500,
  )
