"""Initialisation of a model without computing anything, with its layers observed."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import DenyList

Variables = Any


def unique_denial(*collections: str) -> DenyList:
  """Returns the filter "all collections but these" in a form that no earlier trace has used.

  `nn.jit` keeps its traces, and a kept trace would bypass `nn.intercept_methods` without a word.
  The filter of mutable collections is part of the key they are kept under; naming a collection
  that nobody else names makes the trace a new one.
  """
  return DenyList((*collections, f"bcgd_jax-{uuid.uuid4().hex}"))


def path_of(module: nn.Module) -> str:
  """Returns the path of a bound module's parameters, keys joined by "/"; "" for the root."""
  return "/".join(module.path)


def join_path(*parts: str) -> str:
  """Joins the non-empty parts of a parameter path by "/"."""
  return "/".join(part for part in parts if part)


def _is_traced(leaf: object) -> bool:
  # NumPy scalars are arrays by shape and dtype, but as a flag they steer Python code.
  return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, np.generic)


def make_init(
  model: nn.Module, args: Sequence[Any], *, rngs: Any, kwargs: Mapping[str, Any]
) -> tuple[Callable[[list[Any]], Variables], list[Any]]:
  """Splits `model.init(rngs, *args, **kwargs)` into a function of arrays, and the arrays.

  Args:
    model: an unbound Linen module.
    args: positional arguments of the model; arrays may be `jax.ShapeDtypeStruct`s.
    rngs: a key, or a mapping from collection to key.
    kwargs: keyword arguments as `model.init` takes them, `method` included; `mutable` is ignored.
  Returns:
    (init, arrays): `init(arrays)` returns the variables, and may be given to `jax.eval_shape` or
    `jax.make_jaxpr`. Python values (flags, names) stay outside of the trace.
  """
  kwargs = {name: value for name, value in kwargs.items() if name != "mutable"}
  leaves, treedef = jax.tree.flatten((rngs, tuple(args), kwargs))
  places = [i for i, leaf in enumerate(leaves) if _is_traced(leaf)]
  mutable = unique_denial("intermediates")

  def init(arrays: list[Any]) -> Variables:
    filled = list(leaves)
    for place, array in zip(places, arrays, strict=True):
      filled[place] = array
    init_rngs, init_args, init_kwargs = jax.tree.unflatten(treedef, filled)
    return model.init(init_rngs, *init_args, mutable=mutable, **init_kwargs)

  return init, [leaves[i] for i in places]
