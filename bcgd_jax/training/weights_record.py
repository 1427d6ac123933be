"""What weights.json holds: how a phase left the weights, as histograms and integer codes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bcgd_jax.numerics import WeightQuantizer, quantize_params

PyTree = Any
NUM_BINS = 60


def describe_weights(
  params: PyTree, quantizers: Mapping[str, WeightQuantizer]
) -> dict[str, dict[str, Any]]:
  """Histogram of each kernel and, where it is quantized, the counts of its codes.

  Args:
    params: the float weights.
    quantizers: by path, of the tensors that are quantized.
  Returns:
    path -> {"edges": NUM_BINS + 1 floats, "counts": NUM_BINS ints, "codes": {code: count} or None,
    "scale": list of floats or None}.
  """
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  kept = {path: leaf for path, leaf in leaves.items() if path.rsplit("/", 1)[-1] == "kernel"}
  encoded = quantize_params(kept, quantizers).tree
  described = {}
  for path, weights in kept.items():
    counts, edges = np.histogram(weights, bins=NUM_BINS)
    described[path] = {
      "edges": edges.tolist(),
      "counts": counts.tolist(),
      "codes": None,
      "scale": None,
    }
    if path in quantizers:
      codes, sizes = np.unique(np.asarray(encoded[path].codes), return_counts=True)
      described[path]["codes"] = {str(c): int(n) for c, n in zip(codes, sizes, strict=True)}
      described[path]["scale"] = np.asarray(encoded[path].scale).ravel().tolist()
  return described
