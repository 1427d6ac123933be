"""Float ResNet-20 on Fashion-MNIST, trained as long as a float and a quantized phase together.

The second phase is the quantized one's recipe with nothing quantized: what a quantized run must be
compared with, so that longer training is not mistaken for the method.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: ours; the paper has no Fashion-MNIST.
Data: apt-get install dataset-fashion-mnist, or any copy by --config.data.manual_dir=DIR.
Command: python -m bcgd_jax.main --config=configs/fashion_mnist_resnet20_float_2x.py --workdir=DIR
Cost: about 2 minutes an epoch on two CPU cores, 20 epochs.
Expected: the row "float, twice as long" of docs/results/fashion_mnist/results.md.
"""

import ml_collections

from configs import fashion_mnist_resnet20_float


def get_config() -> ml_collections.ConfigDict:
  config = fashion_mnist_resnet20_float.get_config()
  config.phases = ("float", "quantized")
  config.quantized.quantize_weights = False
  config.quantized.quantize_activations = False
  return config
