"""Models by name."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from bcgd_jax.models.factory import BATCH_NORM_MODES, ImageClassifier, check_choice
from bcgd_jax.models.lenet import LeNet5
from bcgd_jax.models.quantization import Quantization
from bcgd_jax.models.resnet import RESIDUAL_ALPHAS, cifar_resnet, imagenet_resnet
from bcgd_jax.models.vgg import VGG11

_RESIDUAL: dict[str, Callable[..., ImageClassifier]] = {
  **{f"resnet{depth}": cifar_resnet(depth) for depth in (8, 14, 20, 32, 44, 56)},
  "imagenet_resnet18": imagenet_resnet((2, 2, 2, 2)),
  "imagenet_resnet34": imagenet_resnet((3, 4, 6, 3)),
}
_PLAIN: dict[str, Callable[..., ImageClassifier]] = {"vgg11": VGG11, "lenet5": LeNet5}

MODEL_NAMES = (*_RESIDUAL, *_PLAIN)


def create_model(
  name: str,
  *,
  num_classes: int,
  quantization: Quantization,
  batch_norm: str = "global",
  batch_norm_affine: bool = True,
  axis_name: str | None = None,
  residual_alpha: str = "own",
  dtype: DTypeLike = jnp.float32,
) -> ImageClassifier:
  """The model of that name, called as `model(x, train)`; see `ImageClassifier`.

  Args:
    name: one of `MODEL_NAMES`.
    num_classes: number of logits, at least 1.
    quantization: quantizers of weights and activations; `Quantization.none()` for a float network.
    batch_norm: "global" (statistics over all devices of axis_name) or "per_replica".
    batch_norm_affine: whether batch norm has a scale and a bias.
    axis_name: name of the mapped axis; None outside of pmap and shard_map.
    residual_alpha: "own", "stream" or "network", see `ResNet`; networks without residuals: "own".
    dtype: of convolutions and hidden dense layers, float32 or bfloat16 (float64 in tests).
  Raises:
    ValueError: if an argument is outside its set.
  """
  check_choice("name", name, MODEL_NAMES)
  check_choice("batch_norm", batch_norm, BATCH_NORM_MODES)
  check_choice("residual_alpha", residual_alpha, RESIDUAL_ALPHAS)
  if num_classes < 1:
    raise ValueError(f"num_classes must be at least 1, got {num_classes}")
  fields: dict[str, Any] = {
    "num_classes": num_classes,
    "quantization": quantization,
    "batch_norm": batch_norm,
    "batch_norm_affine": batch_norm_affine,
    "axis_name": axis_name,
    "dtype": dtype,
  }
  if name in _RESIDUAL:
    return _RESIDUAL[name](residual_alpha=residual_alpha, **fields)
  if residual_alpha != "own":
    raise ValueError(f'residual_alpha must be "own" for {name}, got {residual_alpha!r}')
  return _PLAIN[name](**fields)
