"""VGG-11 with ternary weights and 4-bit activations on CIFAR-10: a float phase, then BCGD.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: hyper-parameters of the authors' script.
Data: prepared by TFDS: pip install "bcgd_jax[tfds]".
Command: python -m bcgd_jax.main --config=configs/cifar10_vgg11_2w4a.py --workdir=DIR
Cost: twice 78,000 steps of 128 images; --config.float.start_from=DIR takes a trained float run.
Expected: not run.
"""

import ml_collections

from configs import cifar10_vgg11_float


def get_config() -> ml_collections.ConfigDict:
  config = cifar10_vgg11_float.get_config()
  config.phases = ("float", "quantized")
  config.quantization.weight_bits = 2
  return config
