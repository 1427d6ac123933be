"""ResNet-34 with 1-bit weights and 4-bit activations in all layers on ImageNet.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: epochs and learning-rate drops read off the authors' figure, the rest ours.
Command: python -m bcgd_jax.main --config=configs/imagenet_resnet34_1w4a.py --workdir=runs/imagenet
  after preparing the data; docs/running.md has every step.
Cost: not run.
Expected: a figure of the paper is not confirmed.
"""

import ml_collections

from configs import imagenet_resnet18_1w4a


def get_config() -> ml_collections.ConfigDict:
  config = imagenet_resnet18_1w4a.get_config()
  config.model.name = "imagenet_resnet34"
  config.quantization.weight_bits = 1
  return config
