"""Flax Linen layers whose weights and activations are quantized in the forward pass."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bcgd_jax import numerics


def _quantize_kernel(
  quantizer: numerics.WeightQuantizer | None, name: str, value: jax.Array
) -> jax.Array:
  if name != "kernel" or quantizer is None:
    return value
  return numerics.straight_through(quantizer)(value)


class QuantConv(nn.Conv):
  """`nn.Conv` with a quantized kernel; parameters, shapes and arguments are those of `nn.Conv`.

  Forward:  y = conv(x, Q(kernel)) + bias; the kernel in the parameter tree stays float.
  Backward: d/dkernel := the gradient at Q(kernel) (straight-through, a convention); all other
            derivatives are those of `nn.Conv` at Q(kernel).
  Q sees the kernel in `param_dtype`, before it is cast to a lower `dtype` for the computation.

  Attributes:
    quantizer: maps a kernel [*kernel_size, in_features / groups, features] to one of the same
      shape and dtype; None is exactly `nn.Conv`.
  Raises:
    ValueError: if both `quantizer` and `mask` are set: the mask acts after quantization, so
      the kernel used would not be the quantizer's.
  Source: authors' code (gradient at the quantized weights, applied to the float ones).
  """

  quantizer: numerics.WeightQuantizer | None = None

  @nn.nowrap
  def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
    """Declares a parameter as `nn.Module.param`; "kernel" comes back quantized."""
    if self.quantizer is not None and self.mask is not None:
      raise ValueError(
        "mask must be None for a QuantConv with a quantizer: masked weights would enter the "
        "quantizer's statistics; wrap the quantizer instead"
      )
    return _quantize_kernel(self.quantizer, name, super().param(name, *args, **kwargs))


class QuantDense(nn.Dense):
  """`nn.Dense` with a quantized kernel; parameters, shapes and arguments are those of `nn.Dense`.

  Forward:  y = x Q(kernel) + bias; the kernel in the parameter tree stays float.
  Backward: d/dkernel := the gradient at Q(kernel) (straight-through, a convention); all other
            derivatives are those of `nn.Dense` at Q(kernel).
  Q sees the kernel in `param_dtype`, before it is cast to a lower `dtype` for the computation.

  Attributes:
    quantizer: maps a kernel [in_features, features] to one of the same shape and dtype; None is
      exactly `nn.Dense`.
  Source: authors' code (gradient at the quantized weights, applied to the float ones).
  """

  quantizer: numerics.WeightQuantizer | None = None

  @nn.nowrap
  def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
    """Declares a parameter as `nn.Module.param`; "kernel" comes back quantized."""
    return _quantize_kernel(self.quantizer, name, super().param(name, *args, **kwargs))


def _clamp_alpha(alpha: jax.Array) -> jax.Array:
  return jnp.clip(alpha, *numerics.ALPHA_RANGE)


class QuantReLU(nn.Module):
  """A ReLU rounded up to 2^num_bits levels, with its own trainable step "alpha".

  Forward:  y = sigma(x, clamp(alpha)), sigma = `numerics.quantized_relu`, clamp to
            `numerics.ALPHA_RANGE`.
  Backward: as `numerics.quantized_relu`; d clamp(alpha) / d alpha := 1, also outside the range
            (a convention), so that a step beyond it can come back.

  Attributes:
    num_bits: 1 to 8; None is `nn.relu`, without a parameter.
    ste: derivative in x, see `numerics.quantized_relu`.
    alpha_proxy: derivative in alpha, see `numerics.quantized_relu`.
    alpha_init: initial alpha, inside ALPHA_RANGE; None takes `numerics.DEFAULT_ALPHA[num_bits]`.
  Parameters:
    alpha: [], float32, in units of x; one a module, shared by all of its uses.
  Raises:
    ValueError: if num_bits or alpha_init is out of range; raised when the module is called.
  Source: authors' code (one scalar a module, its clamp). Differs from it: the clamp there
    overwrites the parameter, here it acts on the value used.
  """

  num_bits: int | None
  ste: str | numerics.InputEstimator = "clipped"
  alpha_proxy: str | numerics.AlphaProxy = "three_valued"
  alpha_init: float | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the activations, of x's shape and dtype."""
    if self.num_bits is None:
      return nn.relu(x)
    init = nn.initializers.constant(_initial_alpha(self.num_bits, self.alpha_init))
    alpha = self.param("alpha", init, (), jnp.float32)
    return numerics.quantized_relu(
      x,
      numerics.straight_through(_clamp_alpha)(alpha),
      num_bits=self.num_bits,
      ste=self.ste,
      alpha_proxy=self.alpha_proxy,
    )


def _initial_alpha(num_bits: int, alpha_init: float | None) -> float:
  if num_bits not in numerics.DEFAULT_ALPHA:
    raise ValueError(
      f"num_bits must be in [1, 8], got {num_bits}; for float activations use num_bits=None"
    )
  low, high = numerics.ALPHA_RANGE
  value = numerics.DEFAULT_ALPHA[num_bits] if alpha_init is None else alpha_init
  if not low <= value <= high:
    raise ValueError(f"alpha_init must be in [{low}, {high}] (ALPHA_RANGE), got {alpha_init}")
  return value
