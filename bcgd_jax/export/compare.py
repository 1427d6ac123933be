"""The comparison that `python -m bcgd_jax.export --verify=N` makes and prints."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bcgd_jax.data import eval_batches
from bcgd_jax.errors import CheckError
from bcgd_jax.export.integer import Codes, Program
from bcgd_jax.export.onnx import make_onnx
from bcgd_jax.export.reference import make_reference
from bcgd_jax.export.runtime import make_runtime
from bcgd_jax.export.trained import Trained
from bcgd_jax.export.verify import LayerCheck, Verification, verify
from bcgd_jax.report import Table
from bcgd_jax.report.tables import Column
from bcgd_jax.training.run import Run
from bcgd_jax.training.steps import normalize

_BATCH_SIZE = 50
# Of a code: what float32 sums of thousands of terms are off by, with room.
_MAX_MARGIN = 1e-3


def compare(run: Run, trained: Trained, program: Program, *, num_images: int) -> Verification:
  """Network, program and ONNX Runtime on the first test images."""
  names = [layer.name for layer in program.nodes if isinstance(layer, Codes)]
  reference = make_reference(trained.model, trained.variables)
  return verify(
    program,
    load_test_images(run, num_images),
    network=lambda images: jax.device_get(
      reference(normalize(jnp.asarray(images), trained.mean, trained.std))
    ),
    runtime=make_runtime(make_onnx(program, outputs=names)),
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


def require_equal(found: Verification) -> None:
  """
  Raises:
    CheckError: if ONNX Runtime differs from the program in a code or a prediction, or the network
      by more than rounding in a code.
  """
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


def check_stablehlo(run: Run, trained: Trained, data: bytes, *, num_images: int) -> Table:
  """Accuracy of the network and of what `write_stablehlo` wrote, on the first test images.

  Raises:
    CheckError: if they predict different classes.
  """
  reference = make_reference(trained.model, trained.variables)
  written = export.deserialize(bytearray(data)).call
  correct, differ, count = np.zeros(2, int), 0, 0
  for images, labels in load_test_images(run, num_images):
    _, _, logits = reference(normalize(jnp.asarray(images), trained.mean, trained.std))
    predictions = [np.asarray(found).argmax(1) for found in (logits, written(images))]
    correct += [(found == labels).sum() for found in predictions]
    differ += int((predictions[0] != predictions[1]).sum())
    count += len(images)
  if differ:
    raise CheckError(f"StableHLO must predict what the network does, differs in {differ} images")
  return Table(
    title=f"Predictions on {count:,} test images",
    columns=(Column(""), Column("Accuracy", numeric=True), Column("Differ", numeric=True)),
    rows=(
      ("Network, JAX", f"{correct[0] / count:.2%}", "0"),
      ("StableHLO", f"{correct[1] / count:.2%}", f"{differ:,}"),
    ),
  )


def load_test_images(run: Run, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(images uint8, labels) of the first `count` test images, in batches."""
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
