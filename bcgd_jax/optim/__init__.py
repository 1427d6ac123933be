"""Optimizers that keep float weights near quantized ones: optax transformations and schedules."""

from bcgd_jax.optim.bcgd import bcgd as bcgd
from bcgd_jax.optim.bcgd import last_key_is_alpha as last_key_is_alpha
from bcgd_jax.optim.bcgd import last_key_is_kernel as last_key_is_kernel
from bcgd_jax.optim.binary_relax import BinaryRelaxState as BinaryRelaxState
from bcgd_jax.optim.binary_relax import binary_relax as binary_relax
from bcgd_jax.optim.binary_relax import binary_relax_float_params as binary_relax_float_params
from bcgd_jax.optim.binary_relax import relax as relax
from bcgd_jax.optim.blend import BlendState as BlendState
from bcgd_jax.optim.blend import blend as blend
from bcgd_jax.optim.schedules import cosine as cosine
from bcgd_jax.optim.schedules import growing_eta as growing_eta
from bcgd_jax.optim.schedules import growing_rho as growing_rho
from bcgd_jax.optim.schedules import step_decay as step_decay
