"""Reads off a model which parameters are quantized, and how."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import struct

from bcgd_jax import numerics
from bcgd_jax.layers import abstract

# Key of a tag beside the kernel it is about. The kernel itself stays as it is: models may read it.
_TAG = "__quantizer__"


class _Tag(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
  """What a layer says of its kernel, put into the parameter tree while a model is traced.

  Flax tells such a box of the axes that `nn.scan` and `nn.vmap` add: shapes alone would not show
  which axis of a square kernel is the stacked one.
  """

  value: Any  # any array: it makes the box take part in stacking
  quantizer: Any = struct.field(pytree_node=False)
  layer: str = struct.field(pytree_node=False)
  shape: tuple[int, ...] = struct.field(pytree_node=False)
  axes: tuple[int, ...] = struct.field(pytree_node=False, default=())

  def unbox(self) -> Any:
    return self.value

  def replace_boxed(self, val: Any) -> "_Tag":
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict[Any, Any]) -> "_Tag":
    del params
    index = index + len(self.shape) + len(self.axes) + 1 if index < 0 else index
    return self.replace(axes=(*self.axes, index))

  def remove_axis(self, index: int, params: dict[Any, Any]) -> "_Tag":
    del index, params
    return self.replace(axes=self.axes[:-1])


def _make_tagger(tagged_paths: set[str]) -> Callable[..., Any]:
  """Returns an interceptor that tags the kernel of every layer, and adds its path to the set."""

  def tag_kernel(
    next_fn: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    output = next_fn(*args, **kwargs)
    module = context.module
    is_layer = context.method_name == "__call__" and isinstance(module, nn.Conv | nn.Dense)
    if not is_layer or not module.has_variable("params", "kernel"):
      return output
    path = abstract.join_path(abstract.path_of(module), "kernel")
    quantizer = getattr(module, "quantizer", None)
    layer = f"{type(module).__name__} {module.name!r}"
    tag: _Tag | None = module.get_variable("params", _TAG)
    if tag is None:
      kernel = nn.meta.unbox(module.get_variable("params", "kernel"))
      module.put_variable("params", _TAG, _Tag(kernel, quantizer, layer, kernel.shape))
    elif tag.quantizer != quantizer:
      raise ValueError(
        f"a parameter must have one quantizer in all of its uses, got {tag.quantizer} in "
        f"{tag.layer} and {quantizer} in {layer} for '{path}'"
      )
    if quantizer is not None:
      tagged_paths.add(path)
    return output

  return tag_kernel


def _stacked_quantizer(path: str, tag: _Tag, kernel: Any) -> numerics.WeightQuantizer:
  num_axes = len(tag.axes)
  if any(tag.axes):
    raise ValueError(
      f"parameters must be stacked along axis 0, got axes {tag.axes} for '{path}' ({tag.layer}); "
      "use variable_axes={'params': 0} in nn.scan or nn.vmap"
    )
  shape = getattr(kernel, "shape", None)
  if shape is None or shape[num_axes:] != tag.shape:
    raise ValueError(
      f"a kernel must have its layer's shape in the parameter tree, after {num_axes} stacked axes, "
      f"got {shape} for '{path}' where {tag.layer} sees {tag.shape}; do not transform quantized "
      "kernels by nn.map_variables"
    )
  return numerics.Vmapped(tag.quantizer, num_axes) if num_axes else tag.quantizer


def weight_quantizers(
  model: nn.Module, *args: Any, rngs: Any, **kwargs: Any
) -> dict[str, numerics.WeightQuantizer]:
  """Returns the quantizer of every quantized kernel, read off an abstract initialisation.

  Nothing is computed or allocated: the model is only traced, so arrays may be given as
  `jax.ShapeDtypeStruct`.

  Args:
    model: an unbound Linen module that uses `QuantConv` and `QuantDense`.
    *args: positional arguments as `model.init` takes them.
    rngs: a key or a mapping from collection to key, as the first argument of `model.init`.
    **kwargs: keyword arguments as `model.init` takes them, for instance train=False.
  Returns:
    Parameter path in the "params" collection (keys joined by "/", as in `make_projection`) to
    quantizer. Layers with quantizer=None are left out. A kernel stacked by `nn.scan` or `nn.vmap`
    has a `numerics.Vmapped` around its layer's quantizer: one scale a stacked kernel.
  Raises:
    ValueError: if two layers use one parameter with different quantizers (a float layer counts);
      if a kernel is stacked along an axis other than 0, or else differs in shape from its layer's.
  """
  tagged_paths: set[str] = set()
  init, arrays = abstract.make_init(model, args, rngs=rngs, kwargs=kwargs)
  with nn.intercept_methods(_make_tagger(tagged_paths)):
    variables = jax.eval_shape(init, arrays)
  flat, _ = jax.tree_util.tree_flatten_with_path(
    variables.get("params", {}), is_leaf=lambda node: isinstance(node, nn.meta.AxisMetadata)
  )
  nodes = {jax.tree_util.keystr(path, simple=True, separator="/"): node for path, node in flat}
  quantizers = {}
  for tag_path, tag in nodes.items():
    if isinstance(tag, _Tag) and tag.quantizer is not None:
      path = tag_path.removesuffix(_TAG) + "kernel"
      quantizers[path] = _stacked_quantizer(path, tag, nn.meta.unbox(nodes.get(path)))
  lost = sorted(tagged_paths - quantizers.keys())
  if lost:
    raise ValueError(
      "quantized kernels must be in the parameter tree where their layer is, got none at "
      f"{', '.join(map(repr, lost))}; do not rename or drop them by nn.map_variables"
    )
  return quantizers
