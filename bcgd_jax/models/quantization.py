"""What a network quantizes: the one bundle that every model takes."""

import dataclasses

from bcgd_jax.numerics import AlphaProxy, InputEstimator, WeightQuantizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
  """Quantizers of a network's weights and the staircase of its activations.

  The first and the last layer have fields of their own because the papers treat them differently:
  the 64.36 % of BCGD's abstract (ResNet-18, ImageNet, 1 bit weights, 4 bit activations) quantizes
  all layers, its 65.46 % leaves the first and the last in float, and the authors' CIFAR code
  quantizes the first convolution but not the last layer. None always means float.
  """

  # Every convolution and hidden dense layer but the first and the last layer of the network.
  weight: WeightQuantizer | None = None
  # The layer that sees the image.
  first: WeightQuantizer | None = None
  # The classifier that gives the logits.
  last: WeightQuantizer | None = None
  # Bits of every activation, 1 to 8; None is the ordinary ReLU, without an alpha.
  activation_bits: int | None = None
  # Coarse derivatives of the staircase in x and in alpha, see numerics.quantized_relu.
  ste: str | InputEstimator = "clipped"
  alpha_proxy: str | AlphaProxy = "three_valued"
  # Initial alpha of every activation; None is the authors' value for the bit width.
  alpha_init: float | None = None

  def __post_init__(self) -> None:
    if self.activation_bits is not None and not 1 <= self.activation_bits <= 8:
      raise ValueError(
        f"activation_bits must be in [1, 8], got {self.activation_bits}; "
        "for float activations use activation_bits=None"
      )

  @classmethod
  def none(cls) -> "Quantization":
    """The float network: no quantizer anywhere and ordinary ReLUs."""
    return cls()
