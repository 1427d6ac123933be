"""The files that say how a run ended: weights.json and run.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bcgd_jax.data import DatasetInfo
from bcgd_jax.layers import LayerRow, summarize_layers
from bcgd_jax.numerics import quantize_params
from bcgd_jax.report.files import read_json, write_json
from bcgd_jax.report.records import read_metrics
from bcgd_jax.training.recipe import Phase, example_input
from bcgd_jax.training.settings import RunSettings
from bcgd_jax.training.weights_record import describe_weights
from bcgd_jax.training.workdir import RUN_FILE, WEIGHTS_FILE

PyTree = Any


def layer_rows(model: Any, image_shape: tuple[int, ...]) -> tuple[LayerRow, ...]:
  """A row a layer of a model called as `model(x, train)`."""
  return summarize_layers(model, example_input(image_shape), rngs=jax.random.key(0), train=False)


def write_phase_weights(workdir: Path, phase: Phase, params: PyTree) -> None:
  """Adds how a phase left its weight tensors to weights.json."""
  path = workdir / WEIGHTS_FILE
  record = read_json(path) if path.exists() else {}
  record[phase.name] = describe_weights(params, phase.quantizers)
  write_json(path, record)


def write_run(
  workdir: Path,
  settings: RunSettings,
  phases: Sequence[Phase],
  *,
  info: DatasetInfo,
  variables: PyTree,
  seconds: Mapping[str, float],
) -> dict[str, Any]:
  """Writes run.json, the mark of a finished run, and returns its content.

  Args:
    workdir: of the run.
    settings: of the run.
    phases: all of them, in order.
    info: of the dataset.
    variables: what the last phase ended with.
    seconds: wall-clock time of each phase, over all starts.
  """
  last = phases[-1]
  tests = {r["phase"]: r for r in read_metrics(workdir) if r["kind"] == "test"}
  float_scores = [tests[p.name]["accuracy"] for p in phases if not p.is_quantized]
  quantized_scores = [tests[p.name]["accuracy"] for p in phases if p.is_quantized]
  params = variables["params"]
  leaves = jax.tree.leaves(params)
  record = {
    "model": settings.model.name,
    "dataset": info.name,
    "weight_bits": settings.quantization.weight_bits if last.quantizers else 32,
    "activation_bits": settings.quantization.activation_bits
    if last.settings.quantize_activations
    else 32,
    "num_parameters": sum(leaf.size for leaf in leaves),
    "float_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
    "quantized_bytes": quantize_params(params, last.quantizers).num_bytes,
    "float_test_accuracy": float_scores[-1] if float_scores else None,
    "quantized_test_accuracy": quantized_scores[-1] if quantized_scores else None,
    "num_test_examples": tests[last.name]["num_examples"],
    "phase_seconds": {p.name: seconds[p.name] for p in phases},
    "layers": [_row(row) for row in layer_rows(last.options.eval_model, info.image_shape)],
  }
  write_json(workdir / RUN_FILE, record)
  return record


def _row(row: LayerRow) -> dict[str, Any]:
  return {
    "path": row.path,
    "kind": row.kind,
    "shape": list(row.shape),
    "output_shape": list(row.output_shape),
    "weight_bits": row.weight_bits,
    "activation_bits": row.activation_bits,
    "float_bytes": row.float_bytes,
    "quantized_bytes": row.quantized_bytes,
    "macs": row.macs,
  }
