"""VGG-11 with batch norm, in the form the authors train on CIFAR-10."""

import flax.linen as nn
import jax

from bcgd_jax.models.factory import ImageClassifier
from bcgd_jax.models.ops import global_average_pool, max_pool

# Channels of the 3x3 convolutions; None is a 2x2 max-pooling of stride 2 (authors' code).
VGG11_CHANNELS = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


class VGG11(ImageClassifier, kw_only=True):
  """Eight 3x3 convolutions (with bias), batch norm and activation after each, one dense layer.

  For 32x32 images the five poolings end in a 1x1 map, whose 512 values are the authors' input of
  the dense layer. For other sizes (our choice): a pooling is left out once the map's height or
  width is 1, and the dense layer sees the mean over what is left of the map.

  Source: authors' code; widths of Simonyan and Zisserman 2015, configuration A.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[batch, height, width, channels] -> logits [batch, num_classes]; see `ImageClassifier`."""
    layers = self.make_layers()
    x = self.prepare_images(x)
    index = 0
    for features in VGG11_CHANNELS:
      if features is None:
        x = max_pool(x, window=2, stride=2) if min(x.shape[1:3]) >= 2 else x
        continue
      index += 1
      quantizer = self.quantization.first if index == 1 else self.quantization.weight
      conv = layers.conv(features, 3, use_bias=True, quantizer=quantizer, name=f"conv{index}")
      x = layers.normalize(conv(x), train, name=f"bn{index}")
      x = layers.activation(f"act{index}")(x).astype(self.dtype)
    return layers.classifier(self.num_classes, name="fc")(global_average_pool(x))
