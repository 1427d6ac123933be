"""A workdir as training leaves it, with made-up but plausible numbers, for the report's tests."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from bcgd_jax.report.files import dump_json, write_json
from bcgd_jax.report.gallery import Gallery, write_gallery

PATHS = ("stem/conv", "block1/conv1", "block1/conv2", "head/dense")
SIZES = (144, 2304, 2304, 640)
CONFIG = {"seed": 0, "model": {"name": "resnet8"}, "data": {"dataset": "digits"}}


def make_records(*, quantized: bool = True, steps: int = 40) -> list[dict[str, Any]]:
  records: list[dict[str, Any]] = []
  for index, phase in enumerate(("float", "quantized")[: 2 if quantized else 1]):
    for local in range(4, steps + 1, 4):
      head = {"step": index * steps + local, "phase": phase}
      loss = math.exp(-local / 10) + 0.1 * index
      timing = {"examples_per_second": 1000.0, "step_seconds": 0.1, "input_wait_share": 0.25}
      train = {"loss": loss, "accuracy": 0.9, "grad_norm": 2.0 + loss, "timing": timing}
      train |= {"learning_rate": 0.1, "rho": 1e-5 * index}
      if phase == "quantized":
        train["codes_changed"] = 0.4 / local
      records.append({**head, "kind": "train", **train})
      if phase == "quantized":
        changed = {f"{path}/kernel": 0.4 / local / (i + 1) for i, path in enumerate(PATHS)}
        records.append({**head, "kind": "codes", "changed": changed})
        records.append({**head, "kind": "alpha", "alpha": {"stem/relu/alpha": 0.3 + loss}})
    head = {"step": (index + 1) * steps, "phase": phase}
    records.append({**head, "kind": "dead", "dead": {"stem/relu": 0.125 * index}})
    scores = {"loss": 0.1, "num_examples": 360}
    records.append({**head, "kind": "validation", "accuracy": 0.95 - 0.01 * index, **scores})
    records.append({**head, "kind": "test", "accuracy": 0.975 - 0.025 * index, **scores})
    records.append({**head, "kind": "phase_end", "timing": {"seconds": 12.5}})
  return records


def make_histogram(
  weights: np.ndarray, codes: np.ndarray | None = None, scale: float = 0.1
) -> dict[str, Any]:
  counts, edges = np.histogram(weights, bins=20)
  entry = {"edges": edges.tolist(), "counts": counts.tolist(), "codes": None, "scale": None}
  if codes is not None:
    values, sizes = np.unique(codes, return_counts=True)
    entry["codes"] = {str(v): int(n) for v, n in zip(values, sizes, strict=True)}
    entry["scale"] = [scale]
  return entry


def make_weights(*, quantized: bool = True) -> dict[str, dict[str, Any]]:
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=size) for size in SIZES]
  named = {f"{path}/kernel": array for path, array in zip(PATHS, arrays, strict=True)}
  weights = {"float": {path: make_histogram(w) for path, w in named.items()}}
  if quantized:
    weights["quantized"] = {
      path: make_histogram(w, np.where(w >= 0, 1, -1)) for path, w in named.items()
    }
  return weights


def make_layers(*, quantized: bool = True) -> list[dict[str, Any]]:
  layers = []
  for path, size in zip(PATHS, SIZES, strict=True):
    layers.append(
      {
        "path": path,
        "kind": path.split("/")[1].rstrip("12"),
        "shape": [size],
        "output_shape": [1, 10],
        "weight_bits": 1 if quantized else None,
        "activation_bits": None,
        "float_bytes": 4 * size,
        "quantized_bytes": size // 8 + 4 if quantized else 4 * size,
        "macs": 64 * size,
      }
    )
  relu = {"path": "stem/relu", "kind": "activation", "shape": [], "output_shape": [1, 8, 8, 16]}
  cost = {"float_bytes": 4, "quantized_bytes": 4, "macs": 0}
  bits = {"weight_bits": None, "activation_bits": 4 if quantized else None}
  return [*layers, {**relu, **bits, **cost}]


def make_run(*, quantized: bool = True) -> dict[str, Any]:
  layers = make_layers(quantized=quantized)
  return {
    "model": "resnet8",
    "dataset": "digits",
    "weight_bits": 1 if quantized else 32,
    "activation_bits": 4 if quantized else 32,
    "float_bytes": sum(layer["float_bytes"] for layer in layers),
    "quantized_bytes": sum(layer["quantized_bytes"] for layer in layers),
    "num_parameters": 5393,
    "float_test_accuracy": 0.975,
    "quantized_test_accuracy": 0.95 if quantized else None,
    "num_test_examples": 360,
    "phase_seconds": {"float": 12.5, "quantized": 62.25} if quantized else {"float": 12.5},
    "layers": layers,
  }


def make_gallery(*, channels: int = 1, **changes: Any) -> Gallery:
  """Three images of a sample, the networks disagreeing on the last, and one of two others."""
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, channels), np.uint8)
  fields: dict[str, Any] = {
    "images": images,
    "labels": np.array([3, 0, 1, 2], np.int32),
    "float_predictions": np.array([3, 1, 1, 0], np.int32),
    "quantized_predictions": np.array([3, 1, 2, 2], np.int32),
    "num_sample": 3,
    "counts": np.array([340, 1, 2, 17]),
    "num_different": 3,
    "num_seen": 360,
    "split_size": 360,
    "phases": ("float", "quantized"),
    "class_names": (),
  }
  return Gallery(**(fields | changes))


def write_records(workdir: Path, records: list[dict[str, Any]]) -> None:
  text = "".join(dump_json(record) + "\n" for record in records)
  (workdir / "metrics.jsonl").write_text(text, encoding="utf-8")


def write_run(workdir: Path, *, quantized: bool = True) -> Path:
  """Fills `workdir`, which must exist, and returns it."""
  write_records(workdir, make_records(quantized=quantized))
  write_json(workdir / "weights.json", make_weights(quantized=quantized))
  write_json(workdir / "run.json", make_run(quantized=quantized))
  write_json(workdir / "config.json", CONFIG)
  if quantized:
    write_gallery(workdir, make_gallery())
  return workdir
