"""LeNet-5 in the wide form that the quantization literature trains on MNIST."""

import flax.linen as nn
import jax

from bcgd_jax.models.factory import ImageClassifier
from bcgd_jax.models.ops import max_pool


class LeNet5(ImageClassifier, kw_only=True):
  """conv5x5(32), pool, conv5x5(64), pool, dense(512), dense; batch norm before each activation.

  The paper that trains a "LeNet-5" with quantized activations (1903.05662) does not give its
  widths. Ours are 32-64-512 rather than LeCun's 6-16-120-84: with 6 channels of one bit there is
  too little left to measure. Convolutions are padded by 2, so that 8x8 images work too; a 2x2
  pooling is left out once the map's height or width is 1. Layers before a batch norm have no bias.
  The first dense layer sees the flattened map, so its shape depends on the image size.

  Source: our choice.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[batch, height, width, channels] -> logits [batch, num_classes]; see `ImageClassifier`."""
    layers = self.make_layers()
    quantization = self.quantization
    x = self.prepare_images(x)
    for index, (features, quantizer) in enumerate(
      ((32, quantization.first), (64, quantization.weight)), start=1
    ):
      x = layers.conv(features, 5, quantizer=quantizer, name=f"conv{index}")(x)
      x = layers.normalize(x, train, name=f"bn{index}")
      x = layers.activation(f"act{index}")(x).astype(self.dtype)
      x = max_pool(x, window=2, stride=2) if min(x.shape[1:3]) >= 2 else x
    x = x.reshape(x.shape[0], -1)
    x = layers.dense(512, use_bias=False, quantizer=quantization.weight, name="fc1")(x)
    x = layers.activation("act3")(layers.normalize(x, train, name="bn3"))
    return layers.classifier(self.num_classes, name="fc2")(x)
