"""ResNet-20 with 1-bit weights and 4-bit activations on Fashion-MNIST, made for export.

One alpha for all residual sums, so that an integer machine adds codes as they are; what that costs
in accuracy was measured on a smaller network: docs/results/residual_alpha/results.md.
Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: ours; the paper has no Fashion-MNIST.
Data: apt-get install dataset-fashion-mnist, or any copy by --config.data.manual_dir=DIR.
Command: python -m bcgd_jax.main --config=configs/fashion_mnist_resnet20_1w4a_deploy.py
  --workdir=DIR
Cost: about 2 minutes an epoch on two CPU cores, 20 epochs.
Expected: not run at this length; docs/results/export/fashion_mnist.md has 5 + 5 epochs.
"""

import ml_collections

from configs import fashion_mnist_resnet20_1w4a


def get_config() -> ml_collections.ConfigDict:
  config = fashion_mnist_resnet20_1w4a.get_config()
  config.model.residual_alpha = "network"
  return config
