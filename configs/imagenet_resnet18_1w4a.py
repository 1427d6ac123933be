"""ResNet-18 with 1-bit weights and 4-bit activations in all layers on ImageNet.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: epochs and learning-rate drops read off the authors' figure, the rest ours.
Command: python -m bcgd_jax.main --config=configs/imagenet_resnet18_1w4a.py --workdir=runs/imagenet
  after preparing the data; docs/running.md has every step.
Cost: not run.
Expected: 64.36 % top-1 in the paper (65.46 % with first_layer and last_layer float).
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.model.name = "imagenet_resnet18"
  config.data.dataset = "imagenet2012"
  config.data.batch_size = 256
  config.data.eval_batch_size = 256
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.data.image_size = 224
  config.data.num_workers = 8
  config.data.pad = 0
  config.float.epochs = 90.0
  config.float.decay_epochs = (30.0, 60.0)
  config.float.momentum = 0.9
  config.quantized.epochs = 80.0
  config.quantized.decay_epochs = (50.0, 70.0)
  config.quantized.learning_rate = 0.01
  config.quantization.weight_bits = 1
  return config
