"""Float ResNet-20 on Fashion-MNIST, read from a folder of MNIST-format files.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: ours; the paper has no Fashion-MNIST.
Data: apt-get install dataset-fashion-mnist, or any copy by --config.data.manual_dir=DIR.
Command: python -m bcgd_jax.main --config=configs/fashion_mnist_resnet20_float.py --workdir=DIR
Cost: about 2 minutes an epoch on two CPU cores.
Expected: the row "float" of docs/results/fashion_mnist/results.md.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.model.name = "resnet20"
  config.data.dataset = "idx"
  config.data.manual_dir = "/usr/share/datasets/fashion-mnist"
  config.data.validation_examples = 5000
  config.data.pad = 2
  config.data.flip = True
  config.data.mean = (73 / 255,)  # of all training pixels, to the next integer
  config.data.std = (0.353,)
  for phase in (config.float, config.quantized):
    phase.epochs = 10.0
    phase.schedule = "cosine"
    phase.momentum = 0.9
  # rho times the number of steps is about 0.78, as in the paper's 200 CIFAR epochs at 1e-5
  config.quantized.rho = 1.8e-4
  config.phases = ("float",)
  return config
