"""The main suite at greater length, for an accelerator: does more training close the gap?

ResNet-20 on Fashion-MNIST, 20 epochs float, then 20 epochs as the row says (40 where it says so).
Otherwise as `fashion_mnist`. The last two rows are float training of as many epochs as the recipe
taken from `beyond`, and that recipe: one scale an output channel and twice the quantized epochs.
Cost: 540 epochs; 18 of the 21 runs took 10.5 minutes on an NVIDIA H200 with 16 CPU cores
(--jobs=18), beside other suites.
"""

from bcgd_jax.suites import Row, Suite

_CONFIG = "configs/fashion_mnist_resnet20_1w4a.py"
_SEEDS = (0, 1, 2)
_EPOCHS = 20.0
_STEPS = 8_594  # of 20 epochs: 55,000 images in batches of 128
_BASE = {
  "float.epochs": _EPOCHS,
  "quantized.epochs": _EPOCHS,
  "quantized.rho": 0.78 / _STEPS,
}
_FLOAT = {"quantized.quantize_weights": False, "quantized.quantize_activations": False}
_LONGER = {"quantized.epochs": 2 * _EPOCHS, "quantized.rho": 0.78 / (2 * _STEPS)}


def get_suite() -> Suite:
  rows = {
    "float": {"phases": ("float",)},
    "float, twice as long": _FLOAT,
    "1W4A BCGD": {},
    "1W4A BinaryConnect (rho = 0)": {"quantized.rho": 0.0},
    "4W4A BCGD": {"quantization.weight_bits": 4},
    "float, three times as long": {**_FLOAT, **_LONGER},
    "1W4A, winner of beyond": {**_LONGER, "quantization.scale_per": "channel"},
  }
  blending = ("1W4A BCGD", "1W4A BinaryConnect (rho = 0)")
  return Suite(
    name="fashion_mnist_long",
    title="ResNet-20 on Fashion-MNIST, 20 epochs a phase",
    baseline="float, twice as long",
    rows=tuple(
      Row(
        name=name,
        config=_CONFIG,
        overrides={**_BASE, **overrides},
        seeds=_SEEDS,
        blending="1W4A" if name in blending else "",
      )
      for name, overrides in rows.items()
    ),
    notes=(
      "55,000 images train, 5,000 of the training split give the curves; nothing was chosen on the "
      "10,000 test images, which are scored once, with the weights a run ends with.",
      "The winner of `beyond`, by validation on seed 0 as it stood at commit 8b88b23, has one "
      "scale an output channel (the cosine schedule is every row's) and 40 quantized epochs; "
      'compare it with "float, three times as long".',
      "A run that is listed under a CPU began on the H200 and was resumed from a checkpoint, for "
      "the last 7 to 16 % of its second phase.",
    ),
  )
