"""A rehearsal of the ImageNet run: ResNet-18, 1W4A, at 64 pixels on a folder of generated JPEGs.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240; not a row of it.
Recipe: imagenet_resnet18_1w4a with 64 pixels, bfloat16 and two short phases.
Command: python -m bcgd_jax.benchmarks.photographs --output=runs/photographs
  python -m bcgd_jax.main --config=configs/imagenet_mock_resnet18_1w4a.py --workdir=runs/mock
  --config.data.manual_dir=runs/photographs
Cost: measured in docs/running.md.
Expected: that it runs, stops, goes on and counts every image; its accuracy means nothing.
"""

import ml_collections

from configs import imagenet_resnet18_1w4a


def get_config() -> ml_collections.ConfigDict:
  config = imagenet_resnet18_1w4a.get_config()
  config.model.dtype = "bfloat16"
  config.data.dataset = "image_folder"
  config.data.image_size = 64
  config.data.batch_size = 64
  config.data.eval_batch_size = 64
  config.data.num_workers = 1
  for phase in (config.float, config.quantized):
    phase.epochs = 2.0
    phase.decay_epochs = (1.5,)
    phase.warmup_epochs = 0.5
    phase.learning_rate = 0.05
    phase.label_smoothing = 0.1
    phase.accumulate_steps = 2
  config.log_every_steps = 5
  config.checkpoint_every_steps = 10
  return config
