"""What sharing one alpha among residual sums costs: ResNet-8 on 20,000 images of Fashion-MNIST.

An alpha for each activation, one for each stage's residual sums, one for all: the last is what
exports to integers throughout. 4 epochs float and 4 quantized.
Cost: 60 epochs of 48 s a CPU core: 25 minutes on two (--jobs=2).
"""

from bcgd_jax.suites import Row, Suite

_CONFIG = "configs/fashion_mnist_resnet8_1w4a.py"
_SEEDS = (0, 1, 2)


def get_suite() -> Suite:
  rows = {
    "1W4A, an alpha each": {"model.residual_alpha": "own"},
    "1W4A, one for a stage's sums": {"model.residual_alpha": "stream"},
    "1W4A, one for all sums": {"model.residual_alpha": "network"},
    "4W4A, an alpha each": {"quantization.weight_bits": 4},
    "4W4A, one for all sums": {
      "quantization.weight_bits": 4,
      "model.residual_alpha": "network",
    },
  }
  return Suite(
    name="residual_alpha",
    title="One alpha for residual sums, ResNet-8 on 20,000 images of Fashion-MNIST",
    baseline="1W4A, an alpha each",
    rows=tuple(
      Row(name=name, config=_CONFIG, overrides=overrides, seeds=_SEEDS)
      for name, overrides in rows.items()
    ),
    notes=(
      "20,000 images train, 5,000 others of the training split give the curves and the validation "
      "column, by which the rows are compared; the 10,000 test images are scored once a run.",
    ),
  )
