"""Float VGG-11 on CIFAR-10.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: hyper-parameters of the authors' script.
Data: prepared by TFDS: pip install "bcgd_jax[tfds]".
Command: python -m bcgd_jax.main --config=configs/cifar10_vgg11_float.py --workdir=DIR
Cost: 78,000 steps of 128 images.
Expected: not run. The paper's group reports 92.13 % in the notebook of BinaryRelax.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.model.name = "vgg11"
  config.data.dataset = "cifar10"
  config.data.mean = (0.4914, 0.4822, 0.4465)
  config.data.std = (0.2023, 0.1994, 0.2010)
  config.quantization.last_layer = "float"  # as in the authors' script
  config.quantization.alpha_init = "table"
  config.phases = ("float",)
  return config
