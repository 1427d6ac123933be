"""The main suite: ResNet-20 on Fashion-MNIST, quantized by BCGD and by what it is compared with.

10 epochs float, then 10 epochs as the row says, on 55,000 images; the other 5,000 of the training
split give the curves. Learning rate 0.1, cosine, in both phases; the last weights are scored.
Cost: 210 epochs of 6 minutes a CPU core: 11 hours on two (--jobs=2).
"""

from bcgd_jax.suites import Row, Suite

_ONE_BIT = "configs/fashion_mnist_resnet20_1w4a.py"
_SEEDS = (0, 1, 2)


def get_suite() -> Suite:
  return Suite(
    name="fashion_mnist",
    title="ResNet-20 on Fashion-MNIST",
    baseline="float, twice as long",
    rows=(
      Row(name="float", config="configs/fashion_mnist_resnet20_float.py", seeds=_SEEDS),
      Row(
        name="float, twice as long",
        config="configs/fashion_mnist_resnet20_float_2x.py",
        seeds=_SEEDS,
      ),
      Row(name="1W4A BCGD", config=_ONE_BIT, seeds=_SEEDS, blending="1W4A"),
      Row(
        name="1W4A BinaryConnect (rho = 0)",
        config=_ONE_BIT,
        overrides={"quantized.rho": 0.0},
        seeds=_SEEDS,
        blending="1W4A",
      ),
      Row(name="4W4A BCGD", config="configs/fashion_mnist_resnet20_4w4a.py", seeds=_SEEDS),
      Row(
        name="1W4A BCGD, rho = 1e-5",
        config=_ONE_BIT,
        overrides={"quantized.rho": 1e-5},
        blending="1W4A",
      ),
      Row(
        name="1W4A BinaryRelax",
        config=_ONE_BIT,
        # eta grows 1, 2.32, ... 156 over 7 of 10 epochs; the original's 1.04, 1.08, ... 359 over
        # 150 of 200
        overrides={
          "quantized.optimizer": "binary_relax",
          "quantized.quantize_weights": False,
          "quantized.eta_growth": 2.32,
          "quantized.relax_epochs": 7,
        },
      ),
      Row(name="2W4A BCGD", config="configs/fashion_mnist_resnet20_2w4a.py"),
      Row(
        name="1W4A BCGD, first and last layer float",
        config=_ONE_BIT,
        overrides={"quantization.first_layer": "float", "quantization.last_layer": "float"},
      ),
      # where the accuracy goes: weights alone, activations alone
      Row(name="1W32A BCGD", config=_ONE_BIT, overrides={"quantization.activation_bits": 32}),
      Row(name="32W4A", config=_ONE_BIT, overrides={"quantization.weight_bits": 32}),
    ),
    notes=(
      "55,000 images train, 5,000 of the training split give the curves; nothing was chosen on the "
      "10,000 test images, which are scored once, with the weights a run ends with.",
      '"float, twice as long" goes through the same two phases with nothing quantized.',
    ),
  )
