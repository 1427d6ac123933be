"""What a model consists of, layer by layer, before any of it is computed."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from bcgd_jax import numerics
from bcgd_jax.layers import abstract, introspect, linen

Kind = Literal["conv", "dense", "norm", "activation", "other"]

_KINDS: Mapping[Kind, tuple[type[nn.Module], ...]] = {
  "conv": (nn.Conv,),
  "dense": (nn.Dense,),
  "norm": (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
  "activation": (linen.QuantReLU,),
}
_PRODUCT = "bcgd_jax product: "


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
  """One layer of a model.

  Attributes:
    path: path of the layer's parameters, keys joined by "/".
    kind: "conv", "dense", "norm", "activation" (QuantReLU), or "other" for parameters of other
      modules.
    shape: shape of the kernel in the parameter tree, or else of the largest parameter; () if the
      layer has none.
    output_shape: shape of what the first use returns, batch axis included; () for "other".
    weight_bits: bits of a weight's code, None for float weights and layers without a kernel.
    activation_bits: bits of an activation's code, None for float activations and other layers.
    float_bytes: bytes of the layer's parameters as they are trained.
    quantized_bytes: bytes as stored: ceil(size * bits / 8) and 4 bytes a scale for a quantized
      kernel, the rest as trained.
    macs: multiply-accumulates of the kernel for the arguments given, all uses together.
  """

  path: str
  kind: Kind
  shape: tuple[int, ...]
  output_shape: tuple[int, ...]
  weight_bits: int | None
  activation_bits: int | None
  float_bytes: int
  quantized_bytes: int
  macs: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
  """Sums over the rows of a summary; the fields are those of `LayerRow`."""

  float_bytes: int
  quantized_bytes: int
  macs: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
  """A layer as the trace met it; `macs_per_output` of one element of what it returns."""

  kind: Kind
  output_shape: tuple[int, ...]
  activation_bits: int | None
  macs_per_output: int


def _find_kind(module: nn.Module) -> Kind:
  return next((kind for kind, types in _KINDS.items() if isinstance(module, types)), "other")


def _make_recorder(seen: dict[str, _Seen]) -> Callable[..., Any]:
  """Returns an interceptor that records layers by path, and names their products in the trace."""

  def record(
    next_fn: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    output = next_fn(*args, **kwargs)
    module = context.module
    kind = _find_kind(module)
    if context.method_name != "__call__" or kind == "other":
      return output
    path = abstract.path_of(module)
    bits = module.num_bits if isinstance(module, linen.QuantReLU) else None
    macs_per_output = 0
    if kind in ("conv", "dense") and module.has_variable("params", "kernel"):
      kernel = nn.meta.unbox(module.get_variable("params", "kernel"))
      macs_per_output = math.prod(kernel.shape[:-1])
      # The body of a loop may be traced more often than once, or run more often: the program that
      # the trace leaves behind is what can be counted.
      output = checkpoint_name(output, _PRODUCT + path)
    seen.setdefault(path, _Seen(kind, tuple(output.shape), bits, macs_per_output))
    return output

  return record


def _iterate_programs(params: Mapping[str, Any]) -> Iterator[Any]:
  """Yields the programs among an equation's parameters: bodies of loops, branches, calls."""
  for value in params.values():
    for item in value if isinstance(value, Sequence) else (value,):
      if hasattr(item, "eqns"):
        yield item
      elif hasattr(getattr(item, "jaxpr", None), "eqns"):
        yield item.jaxpr


def _count_outputs(jaxpr: Any, repeats: int, counts: collections.Counter[str]) -> None:
  """Adds up the elements of each named product, times the trips of the loops around it."""
  for equation in jaxpr.eqns:
    name = equation.params.get("name", "")
    if equation.primitive.name == "name" and name.startswith(_PRODUCT):
      counts[name.removeprefix(_PRODUCT)] += repeats * equation.outvars[0].aval.size
    trips = equation.params["length"] if equation.primitive.name == "scan" else 1
    for inner in _iterate_programs(equation.params):
      _count_outputs(inner, repeats * trips, counts)


def _count_quantized_bytes(leaf: Any, quantizer: numerics.WeightQuantizer | None) -> int:
  if quantizer is None:
    return leaf.size * leaf.dtype.itemsize
  scale = jax.eval_shape(quantizer.encode, leaf).scale
  return -(-leaf.size * quantizer.num_bits // 8) + 4 * scale.size


def _make_row(
  path: str,
  layer: _Seen,
  leaves: Mapping[str, Any],
  quantizers: Mapping[str, numerics.WeightQuantizer],
  macs: int,
) -> LayerRow:
  """Builds a row from the parameters of one module, full path to shape and dtype."""
  kernel = abstract.join_path(path, "kernel")
  largest = max(leaves.values(), key=lambda leaf: leaf.size, default=None)
  main = leaves.get(kernel, largest)
  quantizer = quantizers.get(kernel)
  return LayerRow(
    path=path,
    kind=layer.kind,
    shape=() if main is None else tuple(main.shape),
    output_shape=layer.output_shape,
    weight_bits=None if quantizer is None else quantizer.num_bits,
    activation_bits=layer.activation_bits,
    float_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()),
    quantized_bytes=sum(
      _count_quantized_bytes(leaf, quantizers.get(name)) for name, leaf in leaves.items()
    ),
    macs=macs,
  )


def summarize_layers(
  model: nn.Module, *args: Any, rngs: Any, **kwargs: Any
) -> tuple[LayerRow, ...]:
  """Lists the layers of a model with their sizes and costs, from an abstract initialisation.

  Nothing is compiled, computed or allocated; arrays may be given as `jax.ShapeDtypeStruct`. Give
  a batch of one for the costs of one example. A shared module has one row: its bytes count once,
  its macs for each use, times the trips of an `nn.scan` around it (a while loop counts one trip,
  a conditional all of its branches).

    conv:  macs = out_height * out_width * kernel_height * kernel_width * (in / groups) * out
    dense: macs = in * out
  each times the leading axes of the output. Byte totals are those of the parameters, and of
  `numerics.quantize_params`; other collections, such as batch statistics, are not counted.

  Args:
    model: an unbound Linen module.
    *args: positional arguments as `model.init` takes them.
    rngs: a key or a mapping from collection to key, as the first argument of `model.init`.
    **kwargs: keyword arguments as `model.init` takes them, for instance train=False.
  Returns:
    Rows in the order of first use; after them, kind "other", modules that hold other parameters.
  Raises:
    ValueError: as `weight_quantizers`.
  """
  quantizers = introspect.weight_quantizers(model, *args, rngs=rngs, **kwargs)
  seen: dict[str, _Seen] = {}
  init, arrays = abstract.make_init(model, args, rngs=rngs, kwargs=kwargs)
  with nn.intercept_methods(_make_recorder(seen)):
    program, variables = jax.make_jaxpr(init, return_shape=True)(arrays)
  counts: collections.Counter[str] = collections.Counter()
  _count_outputs(program.jaxpr, 1, counts)
  grouped: dict[str, dict[str, Any]] = {path: {} for path in seen}
  params = nn.meta.unbox(variables.get("params", {}))
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name = jax.tree_util.keystr(key_path, simple=True, separator="/")
    grouped.setdefault(name.rpartition("/")[0], {})[name] = leaf
  other = _Seen("other", (), None, 0)
  layers = {path: seen.get(path, other) for path in grouped}
  return tuple(
    _make_row(path, layer, grouped[path], quantizers, counts[path] * layer.macs_per_output)
    for path, layer in layers.items()
  )


def totals(rows: Iterable[LayerRow]) -> Totals:
  """Adds up the bytes and multiply-accumulates of a summary."""
  rows = tuple(rows)
  return Totals(
    float_bytes=sum(row.float_bytes for row in rows),
    quantized_bytes=sum(row.quantized_bytes for row in rows),
    macs=sum(row.macs for row in rows),
  )
