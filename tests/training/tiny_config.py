"""A run of seconds that uses every part of the training program."""

from typing import Any

from configs import default


def tiny_config() -> dict[str, Any]:
  """ResNet-8 on 64 digits: 12 float and 12 quantized steps, with validation, average and best."""
  config = default.get_config()
  config.model.name = "resnet8"
  config.data.validation_examples = 20
  config.data.train_examples = 64
  config.data.batch_size = 16
  config.data.eval_batch_size = 112  # does not divide the 360 test images
  config.data.pad = 1
  for phase in (config.float, config.quantized):
    phase.epochs = 3.0
    phase.schedule = "cosine"
  config.float.ema_decay = 0.5
  config.quantized.rho = 1e-2
  config.quantized.recalibrate_batches = 2
  config.selection = "best_validation"
  config.log_every_steps = 2
  config.checkpoint_every_steps = 4
  return config.to_dict()
