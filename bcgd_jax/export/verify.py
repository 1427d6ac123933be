"""Compares network, program and ONNX Runtime on images, code for code."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from bcgd_jax.export.integer import FloatSum, Program, SameStepSum, Staircase, TableSum
from bcgd_jax.export.interpreter import run_program
from bcgd_jax.export.reference import find_margins

Reference = Callable[[np.ndarray], tuple[Mapping[str, Any], Mapping[str, Any], Any]]
Runtime = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(kw_only=True)
class LayerCheck:
  """The codes of one activation over all images.

  Attributes:
    name: of the node.
    num_codes: compared.
    runtime_differs: codes that ONNX Runtime has otherwise than the interpreter.
    runtime_first: (image, index [height, width, channel]) of the first of them.
    network_differs: codes that the network in float32 has otherwise, of inputs that are equal.
    network_first: the first of them.
    margin: the largest distance of such a value from the threshold, in codes.
  """

  name: str
  num_codes: int = 0
  runtime_differs: int = 0
  runtime_first: tuple[int, tuple[int, ...]] | None = None
  network_differs: int = 0
  network_first: tuple[int, tuple[int, ...]] | None = None
  margin: float = 0.0


@dataclasses.dataclass(kw_only=True)
class Verification:
  """What a comparison found.

  Attributes:
    layers: in forward order.
    num_images: compared.
    correct: images classified right, by "network", "interpreter" and "runtime".
    runtime_predictions: images that ONNX Runtime classifies otherwise than the interpreter.
    network_predictions: images that the network does.
    network_images: images in which any code of the network differs.
  """

  layers: list[LayerCheck]
  num_images: int = 0
  correct: dict[str, int] = dataclasses.field(default_factory=dict)
  runtime_predictions: int = 0
  network_predictions: int = 0
  network_images: int = 0


def verify(
  program: Program,
  batches: Iterable[tuple[np.ndarray, np.ndarray]],
  *,
  network: Reference,
  runtime: Runtime,
) -> Verification:
  """Runs all three on the same images.

  Where the network's float32 value lies within rounding of a threshold, it may take the other side;
  what follows in that image then differs in earnest. So of each image only the first layer that
  differs counts for the network.

  Args:
    program: what was exported.
    batches: (images uint8 [b, height, width, channels], labels [b]).
    network: images -> values, codes and logits, see `make_reference`.
    runtime: images -> "logits", and codes by name.
  """
  nodes = [n for n in program.nodes if isinstance(n, Staircase | SameStepSum | TableSum | FloatSum)]
  found = Verification(layers=[LayerCheck(name=node.name) for node in nodes])
  for images, labels in batches:
    own = run_program(program, images)
    theirs = runtime(images)
    values, codes, logits = network(images)
    same = np.ones(len(images), bool)
    for node, layer in zip(nodes, found.layers, strict=True):
      expected = own[node.name]
      layer.num_codes += expected.size
      differs = theirs[node.name] != expected
      layer.runtime_differs += int(differs.sum())
      layer.runtime_first = layer.runtime_first or _first(differs, found.num_images)
      differs = np.asarray(codes[node.name]).reshape(expected.shape) != expected
      differs &= same[:, None, None, None]
      if differs.any():
        value = np.asarray(values[node.name]).reshape(expected.shape)
        margins = find_margins(value, expected, num_levels=node.num_levels)
        layer.network_differs += int(differs.sum())
        layer.network_first = layer.network_first or _first(differs, found.num_images)
        layer.margin = max(layer.margin, float(margins[differs].max()))
        same &= ~differs.any(axis=(1, 2, 3))
    predictions = {
      "network": np.asarray(logits).argmax(1),
      "interpreter": own["logits"].argmax(1),
      "runtime": theirs["logits"].argmax(1),
    }
    for name, predicted in predictions.items():
      found.correct[name] = found.correct.get(name, 0) + int((predicted == labels).sum())
    for name in ("runtime", "network"):
      count = int((predictions[name] != predictions["interpreter"]).sum())
      setattr(found, f"{name}_predictions", getattr(found, f"{name}_predictions") + count)
    found.network_images += int((~same).sum())
    found.num_images += len(images)
  return found


def _first(differs: np.ndarray, offset: int) -> tuple[int, tuple[int, ...]] | None:
  """(image, index) of the first True; images are counted from `offset`."""
  where = np.argwhere(differs)
  if not len(where):
    return None
  image, *index = where[0].tolist()
  return offset + image, tuple(index)
