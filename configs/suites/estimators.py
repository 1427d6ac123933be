"""Coarse derivatives: of the staircase in x (float weights), and in alpha (1-bit weights).

ResNet-20 on 20,000 images of Fashion-MNIST, 3 epochs float and 3 quantized. The rows 32W2A and
32W4A are those of the table in Yin et al. 2019, "Understanding straight-through estimator in
training activation quantized neural nets", arXiv 1903.05662. As there, batch norm has no scale and
bias in them; alpha is fixed there, and here moved by weight decay alone.
Cost: 96 epochs of 2 minutes a CPU core: 1.6 hours on two (--jobs=2).
"""

from bcgd_jax.suites import Row, Suite

_CONFIG = "configs/fashion_mnist_resnet20_1w4a.py"
_SHORT = {
  "data.train_examples": 20_000,
  "float.epochs": 3.0,
  "quantized.epochs": 3.0,
  "quantized.rho": 1.66e-3,  # times 469 steps 0.78
}
_AS_IN_1903_05662 = {"model.batch_norm_affine": False, "quantized.alpha_rate": 0.0}
_FLOAT = {"quantized.quantize_weights": False, "quantized.quantize_activations": False}
_STES = {"identity": "identity", "relu": "ReLU", "clipped": "clipped ReLU"}
_PROXIES = ("three_valued", "two_valued", "exact")
_SEEDS = (0, 1)


def get_suite() -> Suite:
  return Suite(
    name="estimators",
    title="Estimators, ResNet-20 on 20,000 images of Fashion-MNIST",
    baseline="float, twice as long",
    rows=(
      Row(name="float", config=_CONFIG, overrides={**_SHORT, "phases": ("float",)}, seeds=_SEEDS),
      Row(
        name="float, twice as long",
        config=_CONFIG,
        overrides={**_SHORT, **_FLOAT},
        seeds=_SEEDS,
      ),
      Row(
        name="float, twice as long, batch norm without scale and bias",
        config=_CONFIG,
        overrides={**_SHORT, **_AS_IN_1903_05662, **_FLOAT},
        seeds=_SEEDS,
      ),
      *(
        Row(
          name=f"32W{bits}A, {label}",
          config=_CONFIG,
          overrides={
            **_SHORT,
            **_AS_IN_1903_05662,
            "quantization.weight_bits": 32,
            "quantization.activation_bits": bits,
            "quantization.ste": ste,
          },
          seeds=_SEEDS,
        )
        for bits in (2, 4)
        for ste, label in _STES.items()
      ),
      *(
        Row(
          name=f"1W{bits}A, alpha by {proxy.replace('_', '-')}",
          config=_CONFIG,
          overrides={
            **_SHORT,
            "quantization.activation_bits": bits,
            "quantization.alpha_proxy": proxy,
          },
          seeds=_SEEDS,
        )
        for bits in (4, 2)
        for proxy in _PROXIES
      ),
    ),
    notes=(
      "20,000 images train, 5,000 others of the training split give the curves, the 10,000 test "
      "images are scored once, with the weights a run ends with.",
      "The rows 32W2A and 32W4A have batch norm without scale and bias, as arXiv 1903.05662 has "
      "over 200 epochs of CIFAR-10; its alpha is fixed, ours moves by weight decay alone, some "
      "2 %. Compare them with the float row that has no scale and bias either.",
      "With scale and bias, learned alpha and the same learning rate identity and ReLU diverge on "
      "seed 0, within 4 to 82 steps: add --config.model.batch_norm_affine=true "
      "--config.quantized.alpha_rate=0.01 to their commands.",
    ),
  )
