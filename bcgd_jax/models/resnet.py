"""Residual networks of basic blocks: He et al.'s for CIFAR and for ImageNet.

Layer names are torchvision's with an index joined by an underscore: its `layer2.0.conv1.weight` is
`layer2_0/conv1/kernel` here, its `layer2.0.downsample.1.weight` is `layer2_0/downsample_1/scale`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bcgd_jax.layers import QuantReLU
from bcgd_jax.models.factory import ImageClassifier, LayerFactory, check_choice
from bcgd_jax.models.ops import global_average_pool, max_pool

RESIDUAL_ALPHAS = ("own", "stream", "network")


def pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
  """The parameter-free shortcut, "option A": every stride-th pixel, new channels zero.

  Args:
    x: [batch, height, width, channels].
    features: channels of the result, at least x's; the added ones come last (authors' code).
    stride: pixels 0, stride, 2 stride, ... are kept; ceil(size / stride) of them.
  Returns:
    [batch, ceil(height / stride), ceil(width / stride), features], x's dtype.
  Source: He et al. 2016 (arXiv 1512.03385), section 4.2.
  """
  pixels = x[:, ::stride, ::stride]
  return jnp.pad(pixels, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class BasicBlock(nn.Module):
  """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3x3 convolutions, the stride in the first.

  The shortcut is x itself where shapes agree, otherwise `pad_shortcut` or, for projection=True, a
  1x1 convolution with batch norm. Both activations are quantized. Each has its own alpha, unless
  the caller passes the activation that follows the sum. (The authors' CIFAR code shares one alpha
  between the two activations of a block.)

  Attributes:
    features: channels of the result.
    stride: of the first convolution and the shortcut.
    projection: whether a shortcut that changes shape has parameters.
    layers: makes the layers.
  """

  features: int
  stride: int
  projection: bool
  layers: LayerFactory

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, *, output_activation: QuantReLU | None = None
  ) -> jax.Array:
    """[batch, height, width, channels] -> [batch, ceil(height/stride), ..., features]."""
    layers = self.layers
    quantizer = layers.quantization.weight
    y = layers.conv(self.features, 3, stride=self.stride, quantizer=quantizer, name="conv1")(x)
    y = layers.normalize(y, train, name="bn1")
    y = layers.activation("act1")(y).astype(layers.dtype)
    y = layers.conv(self.features, 3, quantizer=quantizer, name="conv2")(y)
    y = layers.normalize(y, train, name="bn2")

    shortcut = x
    if self.stride != 1 or x.shape[-1] != self.features:
      if self.projection:
        conv = layers.conv(
          self.features, 1, stride=self.stride, quantizer=quantizer, name="downsample_0"
        )
        shortcut = layers.normalize(conv(x), train, name="downsample_1")
      else:
        shortcut = pad_shortcut(x, self.features, self.stride)

    activation = layers.activation("act2") if output_activation is None else output_activation
    return activation(y + shortcut.astype(y.dtype)).astype(layers.dtype)


class ResNet(ImageClassifier, kw_only=True):
  """Stem, stages of basic blocks (each but the first begins with stride 2), mean over space, dense.

  Inputs of any size and any number of channels. Convolutions have no bias.

  Attributes:
    widths: channels of each stage; the stem has those of the first.
    num_blocks: blocks of each stage.
    imagenet_stem: 7x7/2 convolution and 3x3/2 max-pooling, instead of a 3x3 convolution.
    projection: see `BasicBlock`.
    residual_alpha: "own": every activation has its own alpha. "stream": the activations on the
      residual stream of a stage share one: those after its blocks' sums, in the first stage also
      the stem's. Then an identity block adds its input to x / alpha as an integer, and since
      ceil(u + n) = ceil(u) + n an integer machine can round the convolution before the sum. Only
      the inner activation of a block keeps its own. "network": one for the streams of all stages,
      so that the same holds where a stage begins with a padded shortcut. No difference without
      quantized activations.
  """

  widths: tuple[int, ...]
  num_blocks: tuple[int, ...]
  imagenet_stem: bool
  projection: bool
  residual_alpha: str = "own"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[batch, height, width, channels] -> logits [batch, num_classes]; see `ImageClassifier`."""
    check_choice("residual_alpha", self.residual_alpha, RESIDUAL_ALPHAS)
    layers = self.make_layers()
    activation = layers.activation(self.residual_activation(1) or "act1")
    x = self._apply_stem(self.prepare_images(x), train, layers=layers, activation=activation)
    for stage, (width, count) in enumerate(zip(self.widths, self.num_blocks, strict=True), start=1):
      shared = self.residual_activation(stage)
      if shared is not None and shared != activation.name:
        activation = layers.activation(shared)
      for index in range(count):
        block = BasicBlock(
          features=width,
          stride=2 if stage > 1 and index == 0 else 1,
          projection=self.projection,
          layers=layers,
          name=f"layer{stage}_{index}",
        )
        x = block(x, train, output_activation=None if shared is None else activation)
    return layers.classifier(self.num_classes, name="fc")(global_average_pool(x))

  def residual_activation(self, stage: int) -> str | None:
    """The activation that a stage's residual stream shares; None if each has its own."""
    names = {"own": None, "stream": f"layer{stage}_act", "network": "residual_act"}
    return names[self.residual_alpha]

  def _apply_stem(
    self, x: jax.Array, train: bool, *, layers: LayerFactory, activation: QuantReLU
  ) -> jax.Array:
    size, stride = (7, 2) if self.imagenet_stem else (3, 1)
    quantizer = self.quantization.first
    x = layers.conv(self.widths[0], size, stride=stride, quantizer=quantizer, name="conv1")(x)
    x = activation(layers.normalize(x, train, name="bn1")).astype(layers.dtype)
    return max_pool(x, window=3, stride=2, padding=1) if self.imagenet_stem else x


def cifar_resnet(depth: int) -> functools.partial[ResNet]:
  """Constructor of the CIFAR-style network: three stages of widths 16, 32, 64, padded shortcuts.

  Args:
    depth: 6n + 2, n at least 1: n blocks a stage.
  Returns:
    A function of `ResNet`'s remaining fields.
  Raises:
    ValueError: if depth is not of that form.
  Source: He et al. 2016 (arXiv 1512.03385), section 4.2; details as in the authors' code.
  """
  if depth < 8 or depth % 6 != 2:
    raise ValueError(f"depth must be 6n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
  return functools.partial(
    ResNet,
    widths=(16, 32, 64),
    num_blocks=((depth - 2) // 6,) * 3,
    imagenet_stem=False,
    projection=False,
  )


def imagenet_resnet(num_blocks: tuple[int, int, int, int]) -> functools.partial[ResNet]:
  """Constructor of the ImageNet network: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34.

  torchvision's structure and paddings, so that its float weights can be carried over: at 224 pixels
  the maps are 112 (stem), 56 (pooling, stage 1), 28, 14 and 7 wide.

  Args:
    num_blocks: blocks of the four stages of widths 64, 128, 256, 512.
  Returns:
    A function of `ResNet`'s remaining fields.
  Source: He et al. 2016, table 1; torchvision.
  """
  return functools.partial(
    ResNet,
    widths=(64, 128, 256, 512),
    num_blocks=num_blocks,
    imagenet_stem=True,
    projection=True,
  )
