"""Exports a finished run: python -m bcgd_jax.export --workdir=DIR --output=model.onnx [--verify=N].

--format=onnx (default) writes integers in ONNX's standard operators, --format=npz the integer
program as NumPy arrays, --format=stablehlo the network with its quantization simulated in float32.

With --verify, network, integer program and ONNX Runtime are compared on test images, code for code;
status 1 if ONNX Runtime differs from the program in any code or prediction, or the network by more
than float32 rounding. For StableHLO, what the file holds is compared with the network, prediction
for prediction. The file is written only then.
"""

import os
from pathlib import Path

from absl import flags

from bcgd_jax.cli import config_of_workdir, required_workdir
from bcgd_jax.command import run_command
from bcgd_jax.compilation_cache import enable_compilation_cache
from bcgd_jax.errors import UsageError
from bcgd_jax.export.compare import (
  check_stablehlo,
  compare,
  layer_table,
  prediction_table,
  require_equal,
)
from bcgd_jax.export.integer import Program
from bcgd_jax.export.npz import read_npz, write_npz
from bcgd_jax.export.onnx import make_onnx
from bcgd_jax.export.stablehlo import write_stablehlo
from bcgd_jax.export.trained import Trained, fold_trained, load_trained
from bcgd_jax.report import print_table
from bcgd_jax.report.files import write_atomic
from bcgd_jax.training.run import Run, open_run

_FORMATS = ("onnx", "npz", "stablehlo")

_OUTPUT = flags.DEFINE_string("output", None, "The file to write, such as model.onnx.")
_FORMAT = flags.DEFINE_enum("format", "onnx", _FORMATS, "What to write.")
_VERIFY = flags.DEFINE_integer("verify", 0, "Test images to compare on; 0 compares nothing.", 0)


def main() -> None:
  output = _check_output(_OUTPUT.value, suffix=f".{_FORMAT.value}")
  enable_compilation_cache()
  run = open_run(config_of_workdir(), required_workdir())
  num_test = len(run.dataset.test)
  if _VERIFY.value > num_test:
    raise UsageError(f"--verify must be at most the {num_test} test images, got {_VERIFY.value}.")
  trained = load_trained(run)
  if _FORMAT.value == "stablehlo":
    data = _make_stablehlo(run, trained)
  else:
    data = _make_integers(run, trained, output)
  try:
    write_atomic(output, data)
  except OSError as error:
    raise UsageError(f"--output could not be written to {output}: {error}.") from error
  print(f"Written: {output}, {len(data):,} bytes")


def _make_integers(run: Run, trained: Trained, output: Path) -> bytes:
  program = fold_trained(trained)
  if _FORMAT.value == "npz":
    data = write_npz(program)
    program = read_npz(data, name=str(output))  # what is compared is what will be read
  else:
    data = make_onnx(program).SerializeToString()
  if _VERIFY.value:
    _verify(run, trained, program)
  return data


def _verify(run: Run, trained: Trained, program: Program) -> None:
  found = compare(run, trained, program, num_images=_VERIFY.value)
  print_table(layer_table(found))
  print_table(prediction_table(found))
  require_equal(found)


def _make_stablehlo(run: Run, trained: Trained) -> bytes:
  data = write_stablehlo(
    trained.model,
    trained.variables,
    image_shape=trained.image_shape,
    mean=trained.mean,
    std=trained.std,
  )
  if _VERIFY.value:
    print_table(check_stablehlo(run, trained, data, num_images=_VERIFY.value))
  return data


def _check_output(value: str | None, *, suffix: str) -> Path:
  if not value or not value.endswith(suffix):
    raise UsageError(f"--output must name a file that ends in {suffix}, got {value}.")
  path = Path(value)
  if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
    raise UsageError(f"--output must be a file in a folder that can be written to, got {path}.")
  return path


if __name__ == "__main__":
  run_command(main, interrupted="nothing was written")
