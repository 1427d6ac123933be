"""The paper's rows on ImageNet: ResNet-18 with 1-bit weights and 4-bit activations, and relatives.

Nobody has run them with this code.
"""

from bcgd_jax.suites import Row, Suite

_ONE_BIT = "configs/imagenet_resnet18_1w4a.py"


def get_suite() -> Suite:
  return Suite(
    name="imagenet",
    title="ImageNet",
    baseline="ResNet-18 float",
    rows=(
      Row(name="ResNet-18 float", config=_ONE_BIT, overrides={"phases": ("float",)}),
      Row(name="ResNet-18 1W4A BCGD", config=_ONE_BIT, paper=0.6436),
      Row(
        name="ResNet-18 1W4A BinaryConnect (rho = 0)",
        config=_ONE_BIT,
        overrides={"quantized.rho": 0.0},
        paper=0.6298,
      ),
      Row(
        name="ResNet-18 1W4A BCGD, first and last layer float",
        config=_ONE_BIT,
        overrides={"quantization.first_layer": "float", "quantization.last_layer": "float"},
        paper=0.6546,
      ),
      Row(name="ResNet-18 4W4A BCGD", config="configs/imagenet_resnet18_4w4a.py"),
      Row(name="ResNet-34 1W4A BCGD", config="configs/imagenet_resnet34_1w4a.py"),
      Row(name="ResNet-34 4W4A BCGD", config="configs/imagenet_resnet34_4w4a.py"),
    ),
    notes=(
      "Paper: Yin et al. 2018, arXiv 1808.05240: 64.36 and 65.46 from its abstract, 62.98 from the "
      "figure in the authors' repository. Rows without a number: none could be confirmed.",
    ),
  )
