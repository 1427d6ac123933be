"""Why 1W4A ends below float at equal epochs: ResNet-8 on 20,000 images of Fashion-MNIST.

Each row changes one thing of 1W4A without blending: what is quantized, the optimizer, how long it
is trained. 4 epochs float and 4 quantized where the row does not say otherwise. The suite
`blending` has blending and training from scratch.
Cost: 172 epochs of 48 s a CPU core: 1.2 hours on two (--jobs=2).
"""

from bcgd_jax.suites import Row, Suite

_CONFIG = "configs/fashion_mnist_resnet8_1w4a.py"
_FLOAT = {"quantized.quantize_weights": False, "quantized.quantize_activations": False}
_LONGER = {"quantized.epochs": 12.0}
_ON_TWO_SEEDS = (
  "1W4A, learning rate 0.05",
  "1W4A, learning rate 0.2",
  "1W4A, no weight decay",
  "1W4A, alpha's rate 0.001",
  "1W4A, alpha by exact derivative",
)


def get_suite() -> Suite:
  rows = {
    "float": {"phases": ("float",)},
    "float, twice as long": _FLOAT,
    "float, four times as long": {**_FLOAT, **_LONGER},
    "1W4A": {},
    "32W4A": {"quantization.weight_bits": 32},
    "1W32A": {"quantization.activation_bits": 32},
    "1W4A, learning rate 0.05": {"quantized.learning_rate": 0.05},
    "1W4A, learning rate 0.2": {"quantized.learning_rate": 0.2},
    "1W4A, no weight decay": {"quantized.weight_decay": 0.0},
    "1W4A, alpha's rate 0.001": {"quantized.alpha_rate": 0.001},
    "1W4A, alpha by exact derivative": {"quantization.alpha_proxy": "exact"},
    "1W4A, three times the quantized epochs": _LONGER,
  }
  return Suite(
    name="gap",
    title="Why 1W4A ends below float, ResNet-8 on 20,000 images of Fashion-MNIST",
    baseline="float, twice as long",
    rows=tuple(
      Row(
        name=name,
        config=_CONFIG,
        overrides={"quantized.rho": 0.0, **overrides},
        seeds=(0, 1) if name in _ON_TWO_SEEDS else (0, 1, 2),
      )
      for name, overrides in rows.items()
    ),
    notes=(
      "20,000 images train, 5,000 others of the training split give the curves and the validation "
      "column, by which the rows are compared; the 10,000 test images are scored once a run.",
      "Training from scratch is in the suite `blending`.",
      'Compare "1W4A, three times the quantized epochs" with "float, four times as long".',
    ),
  )
