"""The layers all models are made of, and the fields all models have."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bcgd_jax.layers import QuantConv, QuantDense, QuantReLU
from bcgd_jax.models.ops import conv_general_dilated, wide_dtype
from bcgd_jax.models.quantization import Quantization
from bcgd_jax.numerics import WeightQuantizer

BATCH_NORM_MODES = ("global", "per_replica")
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

# N(0, 2 / (kernel_height * kernel_width * out_features)): authors' code and torchvision alike.
_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# U(-1/sqrt(in_features), 1/sqrt(in_features)): what PyTorch's Linear starts from, left as it is by
# torchvision and the authors' VGG. Our choice for all models; biases start from zero.
_dense_init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
  """Raises ValueError unless value is one of the choices."""
  if value not in choices:
    raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerFactory:
  """Makes the layers of one network, so that blocks need not know how they are quantized.

  Convolutions and hidden dense layers compute in `dtype`. Batch norm, sums of residuals, staircases
  and the classifier compute in `wide_dtype` (float32, or float64 for float64) whatever `dtype` is:
  a threshold must not move with the rounding of bfloat16.
  """

  quantization: Quantization
  batch_norm: str
  batch_norm_affine: bool
  axis_name: str | None
  dtype: DTypeLike

  def __post_init__(self) -> None:
    check_choice("batch_norm", self.batch_norm, BATCH_NORM_MODES)

  @property
  def wide_dtype(self) -> jnp.dtype:
    return wide_dtype(self.dtype)

  def conv(
    self,
    features: int,
    kernel_size: int,
    *,
    name: str,
    quantizer: WeightQuantizer | None,
    stride: int = 1,
    use_bias: bool = False,
  ) -> QuantConv:
    """A square convolution padded by (kernel_size - 1) / 2 on all four sides.

    Explicitly so, as PyTorch does: "SAME" would pad a stride of 2 on one side only, and weights
    carried over from PyTorch would see shifted images.
    """
    pad = (kernel_size - 1) // 2
    return QuantConv(
      features=features,
      kernel_size=(kernel_size, kernel_size),
      strides=(stride, stride),
      padding=((pad, pad), (pad, pad)),
      use_bias=use_bias,
      kernel_init=_conv_init,
      dtype=self.dtype,
      param_dtype=self.wide_dtype,
      conv_general_dilated=conv_general_dilated,
      quantizer=quantizer,
      name=name,
    )

  def dense(
    self,
    features: int,
    *,
    name: str,
    quantizer: WeightQuantizer | None,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
  ) -> QuantDense:
    """A dense layer that computes in `dtype`, by default the factory's."""
    return QuantDense(
      features=features,
      use_bias=use_bias,
      kernel_init=_dense_init,
      dtype=self.dtype if dtype is None else dtype,
      param_dtype=self.wide_dtype,
      quantizer=quantizer,
      name=name,
    )

  def classifier(self, num_classes: int, *, name: str) -> QuantDense:
    """The last layer: [..., features] -> logits [..., num_classes] in `wide_dtype`."""
    return self.dense(
      num_classes, name=name, quantizer=self.quantization.last, dtype=self.wide_dtype
    )

  def activation(self, name: str) -> QuantReLU:
    """The network's ReLU or staircase. Its input and output are in `wide_dtype`."""
    return QuantReLU(
      num_bits=self.quantization.activation_bits,
      ste=self.quantization.ste,
      alpha_proxy=self.quantization.alpha_proxy,
      alpha_init=self.quantization.alpha_init,
      name=name,
    )

  def normalize(self, x: jax.Array, train: bool, *, name: str) -> jax.Array:
    """Batch norm of x over all axes but the last; the result is in `wide_dtype`.

    momentum 0.9, epsilon 1e-5 (PyTorch's defaults, there written as momentum 0.1). While training,
    "global" takes the statistics over all devices of `axis_name`, "per_replica" those of the
    replica's own examples. Without `batch_norm_affine` it has no scale and no bias.
    """
    wide_dtype = self.wide_dtype
    norm = nn.BatchNorm(
      momentum=BATCH_NORM_MOMENTUM,
      epsilon=BATCH_NORM_EPSILON,
      use_scale=self.batch_norm_affine,
      use_bias=self.batch_norm_affine,
      dtype=wide_dtype,
      param_dtype=wide_dtype,
      # Flax keeps running statistics in float32 unless told otherwise; only float64 needs that.
      force_float32_reductions=wide_dtype == jnp.float32,
      axis_name=self.axis_name if self.batch_norm == "global" else None,
      name=name,
    )
    y: jax.Array = norm(x.astype(wide_dtype), use_running_average=not train)
    return y


class ImageClassifier(nn.Module, kw_only=True):
  """Base of the models: called as `model(x, train)`.

  x is [batch, height, width, channels], floating and already normalised; the result is the logits
  [batch, num_classes], float32 whatever `dtype` is (float64 for float64). Collections: "params",
  "batch_stats". A float and a quantized network of the same name have parameters of the same paths
  and shapes, but for the quantized one's scalar ".../alpha" of every activation.

  Attributes:
    num_classes: number of logits, at least 1.
    quantization: what is quantized and how.
    batch_norm: "global" or "per_replica", see `LayerFactory.normalize`. Evaluation uses the running
      statistics in both cases.
    batch_norm_affine: whether batch norm learns a scale and a bias. Without them every scale of a
      weight before a batch norm cancels, which bounds what an exploding coarse gradient can do; so
      did Yin et al. 2019 (arXiv 1903.05662) compare estimators.
    axis_name: name of the mapped axis that "global" statistics extend over; None where there is no
      mapping.
    dtype: of convolutions and hidden dense layers. Parameters are float32 (float64 for float64).
  """

  num_classes: int
  quantization: Quantization = Quantization()
  batch_norm: str = "global"
  batch_norm_affine: bool = True
  axis_name: str | None = None
  dtype: DTypeLike = jnp.float32

  def make_layers(self) -> LayerFactory:
    return LayerFactory(
      quantization=self.quantization,
      batch_norm=self.batch_norm,
      batch_norm_affine=self.batch_norm_affine,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )

  def prepare_images(self, x: jax.Array) -> jax.Array:
    """x in the network's dtype.

    Raises:
      ValueError: if x is not of rank 4.
      TypeError: if x is not floating (raw bytes have to be normalised first).
    """
    if x.ndim != 4:
      raise ValueError(f"x must be [batch, height, width, channels], got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise TypeError(f"x must be floating, got {x.dtype}; normalise the images first")
    return x.astype(self.dtype)
