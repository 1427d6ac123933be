"""The quick start: 1-bit weights and 4-bit activations on scikit-learn's handwritten digits.

Paper: Yin et al. 2018, Blended Coarse Gradient Descent, arXiv 1808.05240.
Recipe: ours; the paper's data are larger.
Command: python -m bcgd_jax.main --config=configs/digits_resnet8_1w4a.py --workdir=runs/quickstart
Cost: about a minute on two CPU cores.
Expected: 99.0 % test accuracy quantized, 99.2 % after the float phase (means of 5 seeds, which
spread over 98.3 to 99.4 %; one of the 360 images is 0.28 points).
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.model.name = "resnet8"
  config.data.dataset = "digits"
  config.data.validation_examples = 137
  config.data.batch_size = 64
  config.data.eval_batch_size = 360
  config.data.pad = 1
  config.data.flip = False  # a mirrored digit is another digit, or none
  config.data.mean = (78 / 255,)  # of all training pixels, to the next integer
  config.data.std = (0.38,)
  for phase, epochs in ((config.float, 30.0), (config.quantized, 160.0)):
    phase.epochs = epochs
    phase.learning_rate = 0.05
    phase.momentum = 0.9
    phase.schedule = "cosine"
  # times 3,250 steps about 0.8: as much blending as in the paper's long runs
  config.quantized.rho = 2.5e-4
  config.log_every_steps = 20
  config.checkpoint_every_steps = 400
  config.eval_every_epochs = 10.0
  return config
