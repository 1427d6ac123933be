"""Trees of arrays on disk: their paths, shapes and dtypes, and their bytes by way of Orbax.

This is the only file that knows Orbax. Orbax itself casts, and names a truncated file and a wrong
tree by the same error, so trees are compared here and files by the manifest, before it reads.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

ORBAX_ITEM = "arrays"
MAX_LISTED_DIFFERENCES = 20

LeafSpec = dict[str, Any]  # {"shape": [ints], "dtype": name}


def flatten_paths(tree: Any) -> dict[str, Any]:
  """Leaves of `tree` by path, "params/conv/kernel", in flattening order.

  Containers without leaves (None, (), optax.EmptyState, optax.MaskedNode) leave no trace.

  Raises:
    ValueError: if two leaves have the same path, as in {"a/b": x, "a": {"b": y}}.
  """
  leaves: dict[str, Any] = {}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path = jax.tree_util.keystr(key_path, simple=True, separator="/")
    if path in leaves:
      raise ValueError(f"tree must have one leaf a path, got two at {path!r}; rename one of them")
    leaves[path] = leaf
  return leaves


def describe_leaves(leaves: Mapping[str, Any], *, abstract: bool) -> dict[str, LeafSpec]:
  """Shape and dtype of every leaf, as the manifest records them.

  Args:
    leaves: path -> jax.Array, numpy array or scalar.
    abstract: whether jax.ShapeDtypeStruct is a leaf too.
  Raises:
    TypeError: if a leaf is something else, such as a Python number.
    ValueError: if a leaf is a typed PRNG key, or its dtype is not one that JAX holds as it is
      (float64 and int64 while jax_enable_x64 is off; strings, objects): it would come back cast.
  """
  kinds = (jax.Array, np.ndarray, np.generic) + (jax.ShapeDtypeStruct,) * abstract
  for path, leaf in leaves.items():
    if not isinstance(leaf, kinds):
      raise TypeError(
        f"leaf {path!r} must be one of {', '.join(kind.__name__ for kind in kinds)}, got "
        f"{type(leaf).__name__}; wrap a number in jnp.asarray with a dtype"
      )
  return {path: _describe_leaf(path, leaf) for path, leaf in leaves.items()}


def _describe_leaf(path: str, leaf: Any) -> LeafSpec:
  dtype = leaf.dtype
  if jnp.issubdtype(dtype, jax.dtypes.prng_key):
    raise ValueError(
      f"leaf {path!r} must be a plain array, got a PRNG key of dtype {dtype}; "
      "store jax.random.key_data(key)"
    )
  if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
    raise ValueError(f"leaf {path!r} must be numeric or boolean, got dtype {dtype}")
  if jax.dtypes.canonicalize_dtype(dtype) != dtype or not dtype.isnative:
    raise ValueError(
      f"leaf {path!r} must have a dtype that JAX holds uncast, got {dtype}; "
      "convert it or set jax_enable_x64"
    )
  return {"shape": list(leaf.shape), "dtype": np.dtype(dtype).name}


def list_differences(saved: Mapping[str, LeafSpec], wanted: Mapping[str, LeafSpec]) -> str:
  """One indented line for each difference between two trees; "" if there is none."""
  lines = [f"missing in the checkpoint: {p} {_text(wanted[p])}" for p in wanted.keys() - saved]
  lines += [f"only in the checkpoint: {p} {_text(saved[p])}" for p in saved.keys() - wanted]
  for path in wanted.keys() & saved:
    for field in ("shape", "dtype"):
      if saved[path][field] != wanted[path][field]:
        lines.append(f"{field} of {path}: wanted {wanted[path][field]}, saved {saved[path][field]}")
  lines.sort()
  if len(lines) > MAX_LISTED_DIFFERENCES:
    more = len(lines) - MAX_LISTED_DIFFERENCES
    lines = [*lines[:MAX_LISTED_DIFFERENCES], f"and {more} more differences"]
  return "".join(f"\n  {line}" for line in lines)


def _text(spec: LeafSpec) -> str:
  return f"{spec['dtype']}{spec['shape']}"


def fetch_arrays(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves as NumPy arrays, but for those split over several processes: Orbax gathers these.

  A replicated array is fetched whole from one device, so that its layout leaves no trace on disk.
  The copies are the caller's own: what they were made from may be donated to the next step.
  """
  split = {
    path: leaf
    for path, leaf in leaves.items()
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
  }
  host = jax.device_get({path: leaf for path, leaf in leaves.items() if path not in split})
  # device_get gives views of a CPU device's memory
  return {path: np.array(leaf) for path, leaf in host.items()} | split


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> Callable[[], None]:
  """Starts to write arrays into the new directory `path`; every process calls it.

  NumPy arrays are written by process 0, arrays that are split over processes by all of them.

  Returns:
    A function that waits until all processes have written, and raises what went wrong.
  Raises:
    ValueError: if no array has a value in it.
  """
  # Orbax refuses empty arrays; `read_arrays` makes them anew from their shape.
  filled = {name: array for name, array in arrays.items() if array.size}
  if not filled:
    raise ValueError("tree must hold at least one array with a value in it, got none")
  # A flat dict: Orbax joins the keys of nested ones by ".", so that {"a.b": x, "a": {"b": y}}
  # would store both leaves in one place.
  with _make_context():
    response = ocp.save_async(path, filled, checkpointable_name=ORBAX_ITEM)

  def wait() -> None:
    response.result()

  return wait


def read_arrays(path: Path, specs: Mapping[str, LeafSpec]) -> dict[str, np.ndarray]:
  """The whole arrays that `write_arrays` was given, on every process."""
  filled = [name for name, spec in specs.items() if math.prod(spec["shape"])]
  # The type alone, without a dtype, as abstract leaf: with a dtype Orbax casts in silence.
  with _make_context():
    loaded = ocp.load(path, dict.fromkeys(filled, np.ndarray), checkpointable_name=ORBAX_ITEM)
  return {
    name: loaded[name] if name in loaded else np.zeros(spec["shape"], jnp.dtype(spec["dtype"]))
    for name, spec in specs.items()
  }


def place_array(host: np.ndarray, like: Any) -> jax.Array:
  """`host` with the sharding that `like` names; without one, uncommitted on the default device."""
  assert (host.shape, host.dtype) == (like.shape, like.dtype)
  sharding = getattr(like, "sharding", None)
  if sharding is None or (isinstance(like, jax.Array) and not like.committed):
    return jnp.array(host)
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _make_context() -> ocp.Context:
  context = ocp.Context()
  # Trained floats shrink by 8 % under the default zstd, and saving takes four times as long.
  context.array.saving.use_compression = False
  # With the default, an error in a save comes only after minutes of waiting for a signal.
  context.asynchronous.create_directories_asynchronously = False
  return context
