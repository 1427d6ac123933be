"""Float VGG-11 on CIFAR-10.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: hyper-parameters of the authors' script.
Data: prepared by TFDS: pip install "bcgd_jax[tfds]".
Command: python -m bcgd_jax.main --config=configs/cifar10_vgg11_float.py --workdir=DIR
Cost: 78,000 steps of 128 images.
Expected: not run. The paper's group reports 92.13 % in the notebook of BinaryRelax.
"""

import ml_collections

from configs import cifar10_resnet20_float


def get_config() -> ml_collections.ConfigDict:
  config = cifar10_resnet20_float.get_config()
  config.model.name = "vgg11"
  return config
