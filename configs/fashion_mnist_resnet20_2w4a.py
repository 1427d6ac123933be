"""ResNet-20 with ternary weights and 4-bit activations on Fashion-MNIST: a float phase, then BCGD.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: ours; the paper has no Fashion-MNIST.
Data: apt-get install dataset-fashion-mnist, or any copy by --config.data.manual_dir=DIR.
Command: python -m bcgd_jax.main --config=configs/fashion_mnist_resnet20_2w4a.py --workdir=DIR
Cost: about 2 minutes an epoch on two CPU cores, 20 epochs.
Expected: the row "2W4A BCGD" of docs/results/fashion_mnist/results.md.
"""

import ml_collections

from configs import fashion_mnist_resnet20_float


def get_config() -> ml_collections.ConfigDict:
  config = fashion_mnist_resnet20_float.get_config()
  config.phases = ("float", "quantized")
  config.quantization.weight_bits = 2
  return config
