"""ResNet-8 with 1-bit weights and 4-bit activations on 20,000 images of Fashion-MNIST.

Small enough for experiments with many runs: the base of the suites `blending` and `beyond`.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: ours; the paper has no Fashion-MNIST.
Data: apt-get install dataset-fashion-mnist, or any copy by --config.data.manual_dir=DIR.
Command: python -m bcgd_jax.main --config=configs/fashion_mnist_resnet8_1w4a.py --workdir=DIR
Cost: about 30 s an epoch on one CPU core, 8 epochs.
Expected: see docs/results/blending/results.md.
"""

import ml_collections

from configs import fashion_mnist_resnet20_1w4a


def get_config() -> ml_collections.ConfigDict:
  config = fashion_mnist_resnet20_1w4a.get_config()
  config.model.name = "resnet8"
  config.data.train_examples = 20_000
  config.float.epochs = 4.0
  config.quantized.epochs = 4.0
  config.quantized.rho = 1.25e-3  # times 625 steps 0.78
  return config
