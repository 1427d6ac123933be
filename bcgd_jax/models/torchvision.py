"""torchvision's weights of ResNet-18/34 as variables of ours: names, layouts, shapes."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.models.quantization import Quantization
from bcgd_jax.models.registry import create_model

PyTree = Any

# The names of the published networks, and of the same networks here.
TORCHVISION_MODELS = {"resnet18": "imagenet_resnet18", "resnet34": "imagenet_resnet34"}
_LEAVES = {
  "kernel": "weight",
  "bias": "bias",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
_PREFIXES = ("module.", "model.")  # of DataParallel, and of a wrapper that holds the network
_COUNTER = "num_batches_tracked"  # only read where batch norm has no momentum
_CLASSIFIER = "fc.weight"
_MAX_LISTED = 20


def torchvision_name(path: str) -> str:
  """torchvision's name of one of our variables.

  "params/layer2_0/conv1/kernel" is "layer2.0.conv1.weight" there, "batch_stats/bn1/var" is
  "bn1.running_var".
  """
  _, *modules, leaf = path.split("/")
  return ".".join([*(re.sub(r"_(\d+)$", r".\1", name) for name in modules), _LEAVES[leaf]])


def to_flax_layout(tensor: np.ndarray) -> np.ndarray:
  """Weights from PyTorch's axes to Flax's; vectors stay as they are.

  Convolution: [out, in, height, width] -> [height, width, in, out]. Dense: [out, in] -> [in, out].
  """
  return tensor.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim)))


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """The inverse of `to_flax_layout` on shapes."""
  order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), range(len(shape)))
  return tuple(shape[axis] for axis in order)


def clean_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without batch norm's counters, and without "module." and "model." where all names have it."""
  kept = {name: x for name, x in tensors.items() if name.rsplit(".", 1)[-1] != _COUNTER}
  for prefix in _PREFIXES:
    if all(name.startswith(prefix) for name in kept):
      kept = {name.removeprefix(prefix): x for name, x in kept.items()}
  return kept


def convert_weights(tensors: Mapping[str, np.ndarray], *, model: str) -> PyTree:
  """The variables of a float network from torchvision's tensors.

  The values are the same. In evaluation the logits are PyTorch's up to rounding, because strides,
  paddings and batch norm's epsilon (1e-5) are the same too.

  Args:
    tensors: name -> array as in torchvision's state dict, floating; those that are not float32 are
      converted. The number of classes is that of "fc.weight".
    model: "resnet18" or "resnet34".
  Returns:
    {"params", "batch_stats"} of `create_model(TORCHVISION_MODELS[model], ...)`, float32 NumPy.
  Raises:
    ValueError: listing the tensors that are missing, not the network's, of another shape, not
      floating or not finite; at most 20 of them.
  Source: torchvision's resnet18 and resnet34.
  """
  tensors = clean_names(tensors)
  classifier = tensors.get(_CLASSIFIER)
  num_classes = 1000 if classifier is None or not classifier.ndim else len(classifier)
  expected = _abstract_variables(model, num_classes=max(1, num_classes))
  named = {
    torchvision_name(_path_name(path)): _torch_shape(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
  }
  problems = [f"missing {name}" for name in named if name not in tensors]
  problems += [f"not of this network {name}" for name in tensors if name not in named]
  for name, shape in named.items():
    if name in tensors:
      problems += _find_faults(name, tensors[name], shape=shape)
  if problems:
    more = len(problems) - _MAX_LISTED
    listed = problems[:_MAX_LISTED] + ([f"and {more} more"] if more > 0 else [])
    raise ValueError(f"the tensors must be those of torchvision's {model}: {'; '.join(listed)}")
  arrays = [to_flax_layout(tensors[name]).astype(np.float32, order="C") for name in named]
  return jax.tree.unflatten(jax.tree.structure(expected), arrays)


def _path_name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _abstract_variables(model: str, *, num_classes: int) -> PyTree:
  network = create_model(
    TORCHVISION_MODELS[model], num_classes=num_classes, quantization=Quantization.none()
  )
  x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), x)


def _find_faults(name: str, tensor: np.ndarray, *, shape: tuple[int, ...]) -> list[str]:
  if tensor.shape != shape:
    return [f"{name} must have shape {shape}, got {tensor.shape}"]
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    return [f"{name} must be floating, got {tensor.dtype}"]
  if not np.isfinite(tensor.astype(np.float32)).all():
    return [f"{name} must be finite"]
  return []
