"""The opponent: a residual network in PyTorch, float or quantized by Brevitas, on the CPU.

Layers, widths and shortcuts are those of our `ResNet`; SGD with momentum and weight decay. It needs
the extra `bench`; only `benchmarks.train_step --against=brevitas` imports it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.inject.enum import ScalingImplType
from brevitas.quant import SignedBinaryWeightPerTensorConst
from torch import nn
from torch.nn import functional

from bcgd_jax.errors import TrainingError, UsageError
from bcgd_jax.models import Quantization, ResNet, create_model

NAME = "PyTorch, Brevitas"
BITS = ((32, 32), (1, 4))  # of weights and activations

# As ours: small rates, since random labels are to be fitted without diverging.
_LEARNING_RATE, _MOMENTUM, _WEIGHT_DECAY = 1e-3, 0.95, 1e-4
_MEAN, _STD = 0.5, 0.25


class _Layers:
  """Makes convolutions, the classifier and activations, float or quantized.

  Both of Brevitas' quantizers are the cheapest that train: a constant scale of the binary weights
  (ours is the mean magnitude, taken anew in each step) and a learned step of the activations from a
  start that is given. Its default takes a percentile of the activations for the first 300 steps.
  """

  def __init__(self, quantized: bool) -> None:
    weights = {"weight_quant": SignedBinaryWeightPerTensorConst}
    self.conv: Callable[..., nn.Module]
    self.linear: Callable[..., nn.Module]
    self.relu: Callable[[], nn.Module]
    if quantized:
      self.conv = functools.partial(qnn.QuantConv2d, bias=False, **weights)
      self.linear = functools.partial(qnn.QuantLinear, bias=True, **weights)
      self.relu = functools.partial(
        qnn.QuantReLU, bit_width=4, scaling_impl_type=ScalingImplType.PARAMETER, max_val=3.0
      )
    else:
      self.conv = functools.partial(nn.Conv2d, bias=False)
      self.linear = functools.partial(nn.Linear, bias=True)
      self.relu = nn.ReLU


class _Block(nn.Module):
  def __init__(self, inputs: int, features: int, stride: int, *, projection: bool, layers: _Layers):
    super().__init__()
    self.conv1 = layers.conv(inputs, features, 3, stride=stride, padding=1)
    self.bn1 = nn.BatchNorm2d(features)
    self.act1 = layers.relu()
    self.conv2 = layers.conv(features, features, 3, padding=1)
    self.bn2 = nn.BatchNorm2d(features)
    self.act2 = layers.relu()
    self._stride, self._added = stride, features - inputs
    changes = stride != 1 or inputs != features
    self.shortcut: nn.Module | None = None
    if changes and projection:
      self.shortcut = nn.Sequential(
        layers.conv(inputs, features, 1, stride=stride), nn.BatchNorm2d(features)
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
    if self.shortcut is not None:
      x = self.shortcut(x)
    elif self._stride != 1 or self._added:
      pixels = x[:, :, :: self._stride, :: self._stride]
      x = functional.pad(pixels, (0, 0, 0, 0, 0, self._added))
    return self.act2(y + x)


def check_model(model: str) -> ResNet:
  """Our network of that name.

  Raises:
    UsageError: if it is not a residual network.
  """
  ours = create_model(model, num_classes=10, quantization=Quantization.none())
  if not isinstance(ours, ResNet):
    raise UsageError(f"--model must be a residual network for --against=brevitas, got {model!r}.")
  return ours


def build_network(model: str, *, num_classes: int, quantized: bool) -> nn.Module:
  """The PyTorch network of the same layers as `create_model(model)`.

  Raises:
    UsageError: if the model is not a residual network.
  """
  ours = check_model(model)
  layers = _Layers(quantized)
  width = ours.widths[0]
  size, stride = (7, 2) if ours.imagenet_stem else (3, 1)
  parts: list[nn.Module] = [
    layers.conv(3, width, size, stride=stride, padding=size // 2),
    nn.BatchNorm2d(width),
    layers.relu(),
  ]
  if ours.imagenet_stem:
    parts.append(nn.MaxPool2d(3, stride=2, padding=1))
  inputs = width
  for stage, (features, count) in enumerate(zip(ours.widths, ours.num_blocks, strict=True)):
    for index in range(count):
      stride = 2 if stage and not index else 1
      parts.append(_Block(inputs, features, stride, projection=ours.projection, layers=layers))
      inputs = features
  parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.linear(inputs, num_classes)]
  return nn.Sequential(*parts)


def num_threads() -> int:
  """Threads PyTorch computes with."""
  return int(torch.get_num_threads())


class BrevitasCase:
  """The training step of one PyTorch network, eager, channels last (what is faster here)."""

  def __init__(
    self, model: str, batch: Mapping[str, np.ndarray], *, num_classes: int, quantized: bool
  ) -> None:
    torch.manual_seed(0)
    network = build_network(model, num_classes=num_classes, quantized=quantized)
    self._network: Any = network.to(memory_format=torch.channels_last)
    self._network.train()
    self._images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)  # a view: channels last
    self._labels = torch.from_numpy(batch["label"]).long()
    self._optimizer = torch.optim.SGD(
      self._network.parameters(),
      lr=_LEARNING_RATE,
      momentum=_MOMENTUM,
      weight_decay=_WEIGHT_DECAY,
    )

  def run(self, num_steps: int) -> None:
    """Takes that many steps.

    Raises:
      TrainingError: if the loss is not finite.
    """
    for _ in range(num_steps):
      x = (self._images.float() / 255.0 - _MEAN) / _STD
      loss = functional.cross_entropy(self._network(x), self._labels)
      self._optimizer.zero_grad(set_to_none=True)
      loss.backward()
      self._optimizer.step()
    if not math.isfinite(loss.item()):
      raise TrainingError(f"PyTorch's loss must stay finite, got {loss.item()}.")
