"""Blended Coarse Gradient Descent: neural networks of 1- to 4-bit weights and activations.

The method, for any JAX project, needs only jax, flax and optax:

  quantizers    Binary, Ternary, Uniform; straight_through, make_projection, quantize_params
  activation    quantized_relu
  optimizers    blend, bcgd, binary_relax
  Flax layers   QuantConv, QuantDense, QuantReLU; weight_quantizers, calibrate
"""

from bcgd_jax.layers import QuantConv as QuantConv
from bcgd_jax.layers import QuantDense as QuantDense
from bcgd_jax.layers import QuantReLU as QuantReLU
from bcgd_jax.layers import calibrate as calibrate
from bcgd_jax.layers import weight_quantizers as weight_quantizers
from bcgd_jax.numerics import Binary as Binary
from bcgd_jax.numerics import Encoded as Encoded
from bcgd_jax.numerics import Ternary as Ternary
from bcgd_jax.numerics import Uniform as Uniform
from bcgd_jax.numerics import WeightQuantizer as WeightQuantizer
from bcgd_jax.numerics import make_projection as make_projection
from bcgd_jax.numerics import quantize_params as quantize_params
from bcgd_jax.numerics import quantized_relu as quantized_relu
from bcgd_jax.numerics import straight_through as straight_through
from bcgd_jax.optim import bcgd as bcgd
from bcgd_jax.optim import binary_relax as binary_relax
from bcgd_jax.optim import binary_relax_float_params as binary_relax_float_params
from bcgd_jax.optim import blend as blend
