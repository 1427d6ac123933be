"""ResNet-18 with 1-bit weights and 4-bit activations in all layers on ImageNet, made for export.

One alpha for all residual sums, and one mean and std for all channels, so that the first layer sees
integers. Float weights of torchvision's were trained with a mean a channel; these are near.
Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: that of imagenet_resnet18_1w4a, normalised otherwise.
Command: python -m bcgd_jax.main --config=configs/imagenet_resnet18_1w4a_deploy.py
  --workdir=runs/imagenet after preparing the data; docs/running.md has every step.
Cost: not run.
Expected: not known; the paper has an alpha for each activation.
"""

import ml_collections

from configs import imagenet_resnet18_1w4a


def get_config() -> ml_collections.ConfigDict:
  config = imagenet_resnet18_1w4a.get_config()
  config.model.residual_alpha = "network"
  config.data.mean = (115 / 255,)  # of the three channels' means, to the next integer
  config.data.std = (0.226,)
  return config
