"""Exports a finished run: python -m bcgd_jax.export --workdir=DIR --output=model.onnx [--verify=N].

With --verify the network, its integer program and ONNX Runtime are compared on test images, code
for code; status 1 if ONNX Runtime differs from the program in any code or prediction, or the
network by more than float32 rounding. The file is written only then.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bcgd_jax.cli import config_of_workdir, required_workdir
from bcgd_jax.command import run_command
from bcgd_jax.compilation_cache import enable_compilation_cache
from bcgd_jax.data import eval_batches
from bcgd_jax.errors import CheckError, UsageError
from bcgd_jax.export.onnx import make_onnx
from bcgd_jax.export.reference import make_reference
from bcgd_jax.export.runtime import make_runtime
from bcgd_jax.export.trained import Trained, load_trained
from bcgd_jax.export.verify import LayerCheck, Verification, verify
from bcgd_jax.report import Table, print_table
from bcgd_jax.report.files import write_atomic
from bcgd_jax.report.tables import Column
from bcgd_jax.training.run import Run, open_run
from bcgd_jax.training.steps import normalize

_OUTPUT = flags.DEFINE_string("output", None, "The file to write, such as model.onnx.")
_VERIFY = flags.DEFINE_integer("verify", 0, "Test images to compare on; 0 compares nothing.", 0)

_BATCH_SIZE = 50
# Of a code: what float32 sums of thousands of terms are off by, with room.
_MAX_MARGIN = 1e-3


def main() -> None:
  output = _check_output(_OUTPUT.value)
  enable_compilation_cache()
  run = open_run(config_of_workdir(), required_workdir())
  num_test = len(run.dataset.test)
  if _VERIFY.value > num_test:
    raise UsageError(f"--verify must be at most the {num_test} test images, got {_VERIFY.value}.")
  trained = load_trained(run)
  data = make_onnx(trained.program).SerializeToString()
  if _VERIFY.value:
    found = compare(run, trained, num_images=_VERIFY.value)
    print_table(layer_table(found))
    print_table(prediction_table(found))
    _require_equal(found)
  try:
    write_atomic(output, data)
  except OSError as error:
    raise UsageError(f"--output could not be written to {output}: {error}.") from error
  print(f"Written: {output}, {len(data):,} bytes")


def compare(run: Run, trained: Trained, *, num_images: int) -> Verification:
  """Network, program and ONNX Runtime on the first test images."""
  names = [layer.name for layer in trained.program.nodes if hasattr(layer, "step")]
  reference = make_reference(trained.model, trained.variables)
  settings = run.settings.data
  return verify(
    trained.program,
    _test_images(run, num_images),
    network=lambda images: jax.device_get(
      reference(normalize(jnp.asarray(images), settings.mean, settings.std))
    ),
    runtime=make_runtime(make_onnx(trained.program, outputs=names)),
  )


def layer_table(found: Verification) -> Table:
  """A row a layer."""
  return Table(
    title=f"Codes on {found.num_images:,} test images that are not the program's",
    columns=(
      Column("Layer"),
      Column("Codes", numeric=True),
      Column("ONNX Runtime", numeric=True),
      Column("First: image, index"),
      Column("Network", numeric=True),
      Column("First: image, index"),
      Column("Farthest from a threshold, codes", numeric=True),
    ),
    rows=tuple(_cells(layer) for layer in found.layers),
  )


def _cells(layer: LayerCheck) -> tuple[str, ...]:
  firsts = [
    "-" if first is None else f"{first[0]}, {list(first[1])}"
    for first in (layer.runtime_first, layer.network_first)
  ]
  return (
    layer.name,
    f"{layer.num_codes:,}",
    f"{layer.runtime_differs:,}",
    firsts[0],
    f"{layer.network_differs:,}",
    firsts[1],
    f"{layer.margin:.1e}" if layer.network_differs else "-",
  )


def prediction_table(found: Verification) -> Table:
  """Accuracy of each, and predictions that are not the program's."""
  differing = {"network": found.network_predictions, "runtime": found.runtime_predictions}
  titles = {"network": "Network, JAX", "interpreter": "Program", "runtime": "ONNX Runtime"}
  return Table(
    title="Predictions",
    columns=(Column(""), Column("Accuracy", numeric=True), Column("Differ", numeric=True)),
    rows=tuple(
      (title, f"{found.correct[name] / found.num_images:.2%}", f"{differing.get(name, 0):,}")
      for name, title in titles.items()
    ),
  )


def _require_equal(found: Verification) -> None:
  for layer in found.layers:
    if layer.runtime_differs:
      raise CheckError(f"ONNX Runtime must have the program's codes, differs in {layer.name}")
    if layer.margin > _MAX_MARGIN:
      raise CheckError(
        f"the network must differ by rounding alone ({_MAX_MARGIN} of a code), got "
        f"{layer.margin:.1e} in {layer.name}"
      )
  if found.runtime_predictions:
    raise CheckError("ONNX Runtime must predict what the program does, but does not")


def _test_images(run: Run, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  batches = eval_batches(
    run.dataset.test,
    batch_size=_BATCH_SIZE,
    max_bad_fraction=run.settings.data.max_bad_fraction,
    num_batches=-(-count // _BATCH_SIZE),
  )
  with batches:
    for batch in batches:
      mask = batch["mask"]
      images, labels = batch["image"][mask][:count], batch["label"][mask][:count]
      count -= len(images)
      yield images, labels


def _check_output(value: str | None) -> Path:
  if not value or not value.endswith(".onnx"):
    raise UsageError(f"--output must name a file that ends in .onnx, got {value}.")
  path = Path(value)
  if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
    raise UsageError(f"--output must be a file in a folder that can be written to, got {path}.")
  return path


if __name__ == "__main__":
  run_command(main, interrupted="nothing was written")
