"""Flax Linen layers on the quantizers, and what can be read off models that use them."""

from bcgd_jax.layers.calibration import calibrate as calibrate
from bcgd_jax.layers.introspect import weight_quantizers as weight_quantizers
from bcgd_jax.layers.linen import QuantConv as QuantConv
from bcgd_jax.layers.linen import QuantDense as QuantDense
from bcgd_jax.layers.linen import QuantReLU as QuantReLU
from bcgd_jax.layers.summary import LayerRow as LayerRow
from bcgd_jax.layers.summary import Totals as Totals
from bcgd_jax.layers.summary import summarize_layers as summarize_layers
from bcgd_jax.layers.summary import totals as totals
