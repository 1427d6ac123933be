"""How much blending: 1-bit ResNet-8 on 20,000 images of Fashion-MNIST, over rho times steps.

4 epochs float and 4 quantized, or 8 quantized from scratch.
Cost: 280 epochs of 42 s a CPU core: 1.6 hours on two (--jobs=2).
"""

from collections.abc import Mapping
from typing import Any

from bcgd_jax.suites import Row, Suite

_CONFIG = "configs/fashion_mnist_resnet8_1w4a.py"
_SEEDS = (0, 1, 2, 3, 4)
_STEPS = 625  # 4 epochs of 20,000 images in batches of 128
_DOSES = (0.0, 0.2, 0.78, 3.0)


def _row(series: str, dose: float, steps: int, overrides: Mapping[str, Any]) -> Row:
  return Row(
    name=f"{series}, rho x steps = {dose:g}",
    config=_CONFIG,
    overrides={"quantized.rho": dose / steps, **overrides},
    seeds=_SEEDS,
    blending=series,
  )


def get_suite() -> Suite:
  scratch = {"phases": ("quantized",), "quantized.epochs": 8.0}
  return Suite(
    name="blending",
    title="Blending, ResNet-8 on 20,000 images of Fashion-MNIST",
    baseline="float, twice as long",
    rows=(
      Row(name="float", config=_CONFIG, overrides={"phases": ("float",)}, seeds=_SEEDS),
      Row(
        name="float, twice as long",
        config=_CONFIG,
        overrides={"quantized.quantize_weights": False, "quantized.quantize_activations": False},
        seeds=_SEEDS,
      ),
      *(_row("1W4A", dose, _STEPS, {}) for dose in _DOSES),
      *(_row("1W2A", dose, _STEPS, {"quantization.activation_bits": 2}) for dose in _DOSES),
      *(_row("1W4A from scratch", dose, 2 * _STEPS, scratch) for dose in (0.0, 0.78)),
    ),
    notes=(
      "20,000 images train, 5,000 others of the training split give the curves, the 10,000 test "
      "images are scored once, with the weights a run ends with.",
      "The rows from scratch go through 8 epochs of batches; those of two phases go through the "
      "first 4 of them, in the same order and with the same augmentation, twice.",
    ),
  )
