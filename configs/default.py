"""Every key of a run, with its meaning and a default. The other files override it.

A run is a list of phases (`config.phases`); each phase has a block of the same name below. Epochs
may be fractions. Bit widths are integers; 32 means float.
"""

import ml_collections
from ml_collections import config_dict


def get_phase() -> ml_collections.ConfigDict:
  """The keys of one phase; the values are those of the authors' CIFAR-10 script."""
  phase = ml_collections.ConfigDict()
  phase.epochs = 200.0
  # Which parts run quantized in this phase. BinaryRelax trains with quantize_weights=False: its
  # optimizer relaxes the weights itself.
  phase.quantize_weights = False
  phase.quantize_activations = False
  # A workdir whose phase of the same name is copied instead of trained; "" trains.
  phase.start_from = ""
  phase.optimizer = "bcgd"  # "bcgd" | "binary_relax"
  phase.learning_rate = 0.1
  phase.schedule = "step"  # "step" | "cosine" | "constant"
  phase.decay_epochs = (80.0, 140.0)  # "step": times decay_factor at each of these epochs
  phase.decay_factor = 0.1
  phase.warmup_epochs = 0.0  # linear from 0; not with "constant"
  phase.momentum = 0.95
  phase.weight_decay = 1e-4
  phase.decayed = "all"  # "all" (the original: biases, batch norm and alpha too) | "kernels"
  # Blending: w_f <- (1 - rho) w_f + rho Q(w_f) before the step; 0 is BinaryConnect. Used where
  # quantize_weights is on.
  phase.rho = 1e-5
  phase.rho_growth = 1.0  # factor an epoch, up to rho_maximum
  phase.rho_maximum = 0.01
  phase.alpha_rate = 0.01  # factor on alpha's gradient ...
  phase.alpha_clip = 1.0  # ... which is then clipped to [-alpha_clip, alpha_clip]
  # BinaryRelax: forward weights (y + eta Q(y)) / (1 + eta), eta times eta_growth an epoch, and
  # exact quantization from relax_epochs on.
  phase.eta = 1.0
  phase.eta_growth = 1.04
  phase.relax_epochs = 150
  phase.label_smoothing = 0.0
  # Distillation: (1 - distill_weight) cross-entropy + distill_weight T^2 KL(teacher || student),
  # T = distill_temperature. The teacher is what the phase before ended with; 0 is off.
  phase.distill_weight = 0.0
  phase.distill_temperature = 4.0
  phase.ema_decay = 0.0  # evaluates an exponential average of the weights; 0 is off
  phase.accumulate_steps = 1  # a step's batch is run in this many parts, one after the other
  # Batches over which batch norm's statistics are estimated anew when the phase ends; 0 is off.
  phase.recalibrate_batches = 0
  return phase


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.parallel = "pmap"  # "pmap" | "shard_map": how the per-device step is mapped

  config.model = ml_collections.ConfigDict()
  config.model.name = "resnet20"
  config.model.batch_norm = "global"  # "global" | "per_replica" batch statistics
  config.model.batch_norm_affine = True  # a learned scale and bias after it
  config.model.residual_alpha = "own"  # "own" | "stream" | "network": sums of one alpha, see ResNet
  config.model.dtype = "float32"  # "float32" | "bfloat16" compute; parameters stay float32

  config.quantization = ml_collections.ConfigDict()
  config.quantization.weight_bits = 1  # 1 binary, 2 ternary, 3..8 uniform, 32 float
  config.quantization.activation_bits = 4  # 1..8, or 32
  config.quantization.first_layer = "quantized"  # "quantized" | "float"
  config.quantization.last_layer = "quantized"  # the authors' CIFAR script keeps it float
  config.quantization.scale_per = "tensor"  # "tensor" (the paper) | "channel"
  config.quantization.ternary_rule = "lloyd"  # "lloyd" | "twn" | "twn_all" | "sort"
  config.quantization.lloyd_steps = 1  # scale updates of the uniform quantizer
  config.quantization.ste = "clipped"  # "clipped" | "relu" | "identity"
  config.quantization.alpha_proxy = "three_valued"  # "three_valued" | "two_valued" | "exact"
  config.quantization.alpha_init = "calibrate"  # "calibrate" on training images | "table"
  config.quantization.calibration_batches = 2

  config.data = ml_collections.ConfigDict()
  # "digits" | "idx" | "cifar10" | "mnist" | "fashion_mnist" | "imagenet2012" | "image_folder"
  config.data.dataset = "digits"
  config.data.data_dir = ""  # prepared TFDS data; "" is TFDS's own default
  # "idx": the folder of MNIST-format files; "image_folder": the one with train/ and val/
  config.data.manual_dir = ""
  config.data.validation_examples = 0  # cut from the training split; 0 only with selection="last"
  config.data.train_examples = config_dict.placeholder(int)  # first n after the cut; None is all
  config.data.batch_size = 128  # over all devices and processes
  config.data.eval_batch_size = 500
  # "imagenet2012" and "image_folder" alone: the side of the square images a network sees. Training
  # crops a random part of at least min_crop_area and resizes it; evaluation resizes the short side
  # to eval_resize (None: image_size * 256 / 224) and crops the centre.
  config.data.image_size = config_dict.placeholder(int)
  config.data.eval_resize = config_dict.placeholder(int)
  config.data.min_crop_area = 0.08
  config.data.max_bad_fraction = 1e-4  # images that cannot be decoded, above which a run stops
  config.data.pad = 4  # random crop after padding each side by this many pixels
  config.data.flip = True  # random horizontal flip
  config.data.mean = (0.5,)  # of pixels in [0, 1]: one value, or one a channel
  config.data.std = (0.25,)
  config.data.num_workers = 0  # processes that prepare batches; 0 uses threads

  config.phases = ("float", "quantized")
  config.float = get_phase()
  config.quantized = get_phase()
  config.quantized.quantize_weights = True
  config.quantized.quantize_activations = True

  config.selection = "last"  # "last" | "best_validation": the weights a phase ends with
  # steps are counted from the start of each phase
  config.log_every_steps = 50
  config.checkpoint_every_steps = 500  # a multiple of log_every_steps
  config.keep_checkpoints = 2
  config.eval_every_epochs = 1.0
  return config.lock()
