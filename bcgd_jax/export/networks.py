"""The layers of every model, told to a builder in forward order."""

from typing import Any, Protocol

import flax.linen as nn

from bcgd_jax.errors import UsageError
from bcgd_jax.models import ResNet
from bcgd_jax.models.lenet import LeNet5
from bcgd_jax.models.vgg import VGG11, VGG11_CHANNELS


class Builder(Protocol):
  """Who is told; what its methods return is handed back as it is, but for its `shape`."""

  @property
  def image(self) -> Any:
    """The input."""

  def conv(self, x: Any, path: str, *, stride: int = 1) -> Any: ...
  def normalize(self, x: Any, path: str) -> Any: ...
  def add(self, x: Any, shortcut: Any) -> Any: ...
  def activation(self, x: Any, path: str) -> Any: ...
  def max_pool(self, x: Any, *, window: int, stride: int, padding: int = 0) -> Any: ...
  def subsample(self, x: Any, *, stride: int, channels: int) -> Any: ...
  def logits(self, x: Any, path: str) -> None: ...


def describe_network(model: nn.Module, builder: Builder) -> None:
  """Hands a model's layers to a builder, as its `__call__` computes them.

  Raises:
    UsageError: if it is none of this project's networks.
  """
  for kind, describe in _NETWORKS.items():
    if type(model) is kind:
      describe(model, builder)
      return
  raise UsageError(
    f"a network to export must be one of {', '.join(kind.__name__ for kind in _NETWORKS)}, got "
    f"{type(model).__name__}"
  )


def _describe_resnet(model: Any, builder: Builder) -> None:
  stem = builder.conv(builder.image, "conv1", stride=2 if model.imagenet_stem else 1)
  x = builder.normalize(stem, "bn1")
  codes = builder.activation(x, model.residual_activation(1) or "act1")
  if model.imagenet_stem:
    codes = builder.max_pool(codes, window=3, stride=2, padding=1)
  for stage, (width, count) in enumerate(zip(model.widths, model.num_blocks, strict=True), start=1):
    for index in range(count):
      codes = _describe_block(
        builder,
        codes,
        f"layer{stage}_{index}",
        features=width,
        stride=2 if stage > 1 and index == 0 else 1,
        projection=model.projection,
        shared=model.residual_activation(stage),
      )
  builder.logits(codes, "fc")


def _describe_block(
  builder: Builder,
  x: Any,
  path: str,
  *,
  features: int,
  stride: int,
  projection: bool,
  shared: str | None,
) -> Any:
  y = builder.normalize(builder.conv(x, f"{path}/conv1", stride=stride), f"{path}/bn1")
  inner = builder.activation(y, f"{path}/act1")
  z = builder.normalize(builder.conv(inner, f"{path}/conv2"), f"{path}/bn2")
  shortcut = x
  if stride != 1 or x.shape[2] != features:
    if projection:
      y = builder.conv(x, f"{path}/downsample_0", stride=stride)
      shortcut = builder.normalize(y, f"{path}/downsample_1")
    else:
      shortcut = builder.subsample(x, stride=stride, channels=features)
  return builder.activation(builder.add(z, shortcut), shared or f"{path}/act2")


def _describe_vgg(model: Any, builder: Builder) -> None:
  del model
  codes, index = builder.image, 0
  for features in VGG11_CHANNELS:
    if features is None:
      if min(codes.shape[:2]) >= 2:
        codes = builder.max_pool(codes, window=2, stride=2)
      continue
    index += 1
    x = builder.normalize(builder.conv(codes, f"conv{index}"), f"bn{index}")
    codes = builder.activation(x, f"act{index}")
  builder.logits(codes, "fc")


def _describe_lenet(model: Any, builder: Builder) -> None:
  del model
  codes = builder.image
  for index in (1, 2):
    x = builder.normalize(builder.conv(codes, f"conv{index}"), f"bn{index}")
    codes = builder.activation(x, f"act{index}")
    if min(codes.shape[:2]) >= 2:
      codes = builder.max_pool(codes, window=2, stride=2)
  codes = builder.activation(builder.normalize(builder.conv(codes, "fc1"), "bn3"), "act3")
  builder.logits(codes, "fc2")


_NETWORKS = {ResNet: _describe_resnet, VGG11: _describe_vgg, LeNet5: _describe_lenet}
