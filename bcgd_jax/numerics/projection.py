"""Quantizers applied to the leaves of a parameter tree, chosen by path."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bcgd_jax.numerics import weights

PyTree = Any


class QuantizedParams(NamedTuple):
  """A parameter tree as stored, see `quantize_params`."""

  tree: PyTree
  num_bytes: int


def _is_masked(node: object) -> bool:
  """Whether the node stands in for parameters left out: None, or an empty tuple.

  optax puts a `MaskedNode`, which is an empty named tuple, where `masked` and `partition` hide
  parameters from an inner transformation.
  """
  return node is None or (isinstance(node, tuple) and not node)


def _map_at_paths(
  quantizers: Mapping[str, weights.WeightQuantizer],
  params: PyTree,
  fn: Callable[[weights.WeightQuantizer, Any], Any],
) -> PyTree:
  """Replaces each leaf at a path of the mapping; all other nodes stay the same objects."""
  flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_masked)
  nodes = [(jax.tree_util.keystr(k, simple=True, separator="/"), node) for k, node in flat]
  paths = {path for path, _ in nodes}
  masked = [path for path, node in nodes if _is_masked(node)]
  missing = [
    path
    for path in quantizers
    # A mask may hide a whole subtree, so that the node at a prefix of the path stands for it.
    if path not in paths and not any(not m or path.startswith(m + "/") for m in masked)
  ]
  if missing:
    raise ValueError(
      f"quantizers must name paths of the parameters, got {', '.join(map(repr, missing))}; "
      f"existing paths: {', '.join(repr(path) for path, _ in nodes)}"
    )
  replaced = [
    fn(quantizers[path], node) if path in quantizers and not _is_masked(node) else node
    for path, node in nodes
  ]
  return jax.tree_util.tree_unflatten(treedef, replaced)


def make_projection(
  quantizers: Mapping[str, weights.WeightQuantizer], *, straight_through: bool = False
) -> Callable[[PyTree], PyTree]:
  """Builds the function that quantizes a parameter tree at the given paths.

  Args:
    quantizers: parameter path to quantizer; a path is the leaf's keys joined by "/", as
      `jax.tree_util.keystr(path, simple=True, separator="/")` writes it.
    straight_through: give the result the identity as derivative, for use in front of a loss.
  Returns:
    A function params -> params of equal structure, shapes and dtypes. Leaves at other paths are
    returned as the same objects; parameters hidden by a mask (`optax.MaskedNode`, None) are
    skipped. It raises a ValueError, when called or traced, if a path is not in the tree.
  """
  quantizers = dict(quantizers)

  def quantize(quantizer: weights.WeightQuantizer, w: jax.Array) -> jax.Array:
    return weights.straight_through(quantizer)(w) if straight_through else quantizer(w)

  return lambda params: _map_at_paths(quantizers, params, quantize)


def quantize_params(
  params: PyTree, quantizers: Mapping[str, weights.WeightQuantizer]
) -> QuantizedParams:
  """Encodes a parameter tree as the integers a device would store, and counts their bytes.

  Args:
    params: tree of arrays.
    quantizers: parameter path to quantizer, as in `make_projection`.
  Returns:
    tree: params with an `Encoded` at each path of the mapping, other leaves as they are.
    num_bytes: Python int. An encoded leaf counts ceil(size * num_bits / 8) bytes of packed codes
      and 4 bytes a scale (float32); another leaf size * itemsize.
  Raises:
    ValueError: if a path is not in the tree; the message names those that are.
  """
  num_bytes = 0

  def encode(quantizer: weights.WeightQuantizer, w: jax.Array) -> weights.Encoded:
    nonlocal num_bytes
    encoded = quantizer.encode(w)
    num_bytes += -(-w.size * quantizer.num_bits // 8) + 4 * encoded.scale.size
    return encoded

  tree = _map_at_paths(quantizers, params, encode)
  rest = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, weights.Encoded))
  for leaf in rest:
    if not isinstance(leaf, weights.Encoded):
      num_bytes += leaf.size * leaf.dtype.itemsize
  return QuantizedParams(tree, num_bytes)
