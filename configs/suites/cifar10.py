"""The papers' rows on CIFAR-10 with the hyper-parameters of BCGD's script: 200 + 200 epochs.

Data: prepared by TFDS (pip install "bcgd_jax[tfds]"). Nobody has run them with this code.
"""

from bcgd_jax.suites import Row, Suite

_NETS = {"VGG-11": "vgg11", "ResNet-20": "resnet20"}
_STES = {"identity": "identity", "relu": "ReLU", "clipped": "clipped ReLU"}
# arXiv 1903.05662: validation accuracy with quantized activations and float weights
_PUBLISHED = {
  ("VGG-11", 2): (0.8658, 0.8869, 0.9092),
  ("VGG-11", 4): (0.9019, 0.9201, 0.9208),
  ("ResNet-20", 2): (0.4652, 0.4805, 0.8839),
  ("ResNet-20", 4): (0.5416, 0.8659, 0.9124),
}
_AS_IN_1903_05662 = {
  "model.batch_norm_affine": False,
  "quantized.alpha_rate": 0.0,
  "float.momentum": 0.9,
  "quantized.momentum": 0.9,
}
_FLOAT = {"quantized.quantize_weights": False, "quantized.quantize_activations": False}


def _rows(net: str, model: str) -> tuple[Row, ...]:
  one_bit = f"configs/cifar10_{model}_1w4a.py"
  return (
    Row(name=f"{net} float", config=f"configs/cifar10_{model}_float.py"),
    Row(name=f"{net} float, twice as long", config=one_bit, overrides=_FLOAT),
    Row(name=f"{net} 1W4A BCGD", config=one_bit),
    Row(
      name=f"{net} 1W4A BinaryConnect (rho = 0)", config=one_bit, overrides={"quantized.rho": 0.0}
    ),
    Row(name=f"{net} 2W4A BCGD", config=f"configs/cifar10_{model}_2w4a.py"),
    Row(name=f"{net} 4W4A BCGD", config=f"configs/cifar10_{model}_4w4a.py"),
    *(
      Row(
        name=f"{net} 32W{bits}A, {label}",
        config=one_bit,
        overrides={
          **_AS_IN_1903_05662,
          "quantization.weight_bits": 32,
          "quantization.activation_bits": bits,
          "quantization.ste": ste,
        },
        paper=published,
      )
      for bits in (2, 4)
      for (ste, label), published in zip(_STES.items(), _PUBLISHED[net, bits], strict=True)
    ),
  )


def get_suite() -> Suite:
  return Suite(
    name="cifar10",
    title="CIFAR-10",
    baseline="ResNet-20 float, twice as long",
    rows=tuple(row for net, model in _NETS.items() for row in _rows(net, model)),
    notes=(
      "Paper: Yin et al. 2019, arXiv 1903.05662 (its submission's text), for the rows 32W2A and "
      "32W4A. As there, batch norm has no scale and bias in them; alpha is fixed there, and moved "
      "by weight decay alone here. BCGD's own CIFAR-10 numbers could not be confirmed.",
      'The rows of VGG-11 are to be compared with "VGG-11 float, twice as long".',
    ),
  )
