"""Quantizers and the quantized ReLU: pure jax.numpy, no framework."""

from bcgd_jax.numerics.activations import ALPHA_RANGE as ALPHA_RANGE
from bcgd_jax.numerics.activations import DEFAULT_ALPHA as DEFAULT_ALPHA
from bcgd_jax.numerics.activations import AlphaProxy as AlphaProxy
from bcgd_jax.numerics.activations import InputEstimator as InputEstimator
from bcgd_jax.numerics.activations import quantized_relu as quantized_relu
from bcgd_jax.numerics.projection import QuantizedParams as QuantizedParams
from bcgd_jax.numerics.projection import make_projection as make_projection
from bcgd_jax.numerics.projection import quantize_params as quantize_params
from bcgd_jax.numerics.weights import Binary as Binary
from bcgd_jax.numerics.weights import Encoded as Encoded
from bcgd_jax.numerics.weights import Ternary as Ternary
from bcgd_jax.numerics.weights import Uniform as Uniform
from bcgd_jax.numerics.weights import Vmapped as Vmapped
from bcgd_jax.numerics.weights import WeightQuantizer as WeightQuantizer
from bcgd_jax.numerics.weights import straight_through as straight_through
