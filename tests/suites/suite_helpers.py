"""A suite on digits, small enough to run in seconds, and records as finished runs leave them."""

from pathlib import Path
from typing import Any

CONFIG = "configs/digits_resnet8_1w4a.py"
TINY: dict[str, Any] = {
  "data.validation_examples": 20,
  "data.train_examples": 64,
  "data.batch_size": 16,
  "float.epochs": 1.0,
  "quantized.epochs": 1.0,
  "log_every_steps": 2,
  "checkpoint_every_steps": 2,
  "eval_every_epochs": 1.0,
}
FLOAT = {"name": "float", "config": CONFIG, "overrides": {**TINY, "phases": ("float",)}}
BCGD = {"name": "BCGD", "config": CONFIG, "overrides": TINY, "blending": "1W4A"}
NO_RHO = {
  "name": "rho = 0",
  "config": CONFIG,
  "overrides": {**TINY, "quantized.rho": 0.0},
  "blending": "1W4A",
}
ROWS = ({**FLOAT, "seeds": (0, 1)}, {**BCGD, "seeds": (0, 1)}, NO_RHO)


def write_suite(folder: Path, *rows: dict[str, Any]) -> Path:
  """A suite file with these rows, the first one its baseline."""
  path = folder / "tiny.py"
  path.write_text(f"""
from bcgd_jax.suites import Row, Suite

ROWS = {rows!r}


def get_suite():
  rows = tuple(Row(**row) for row in ROWS)
  return Suite(name="tiny", title="Tiny", baseline=rows[0].name, rows=rows)
""")
  return path


def record(row: str, seed: int, accuracy: float, **fields: Any) -> dict[str, Any]:
  """A finished run's record; `fields` replace those given here."""
  return {
    "row": row,
    "seed": seed,
    "identity": "0",
    "command": "",
    "starts_from": None,
    "status": "done",
    "test_accuracy": accuracy,
    "test_loss": 0.3,
    "num_test_examples": 100,
    "train_loss": 0.25,
    "train_accuracy": 0.9,
    "validation": [
      {"phase": "float", "epoch": 1.0, "accuracy": accuracy - 0.1},
      {"phase": "quantized", "epoch": 2.0, "accuracy": accuracy},
    ],
    "weight_bits": 1,
    "activation_bits": 4,
    "float_bytes": 4096,
    "quantized_bytes": 128,
    "rho_steps": 0.78,
    "epochs": {"float": 1.0, "quantized": 1.0},
    "seconds": {"float": 10.0, "quantized": 10.0},
    "environment": {
      "commit": "abc",
      "device": "CPU X",
      "num_devices": 1,
      "cpu_cores": 1,
      "python": "3.11.7",
      "jax": "0.10.2",
      "flax": "0.12.8",
      "optax": "0.2.8",
    },
    **fields,
  }
