"""Fits the steps of a model's quantized ReLUs to data, layer by layer."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.layers import abstract, linen, staircase

# At most this many inputs of one use of an activation are kept from one batch.
_MAX_SAMPLES = 2**16

_COLLECTION = "quant_relu_inputs"
_NAME = "samples"

# Activation path to one (sample [n], all inputs finite []) for each use.
_Captured = dict[str, tuple[tuple[jax.Array, jax.Array], ...]]


def _take_sample(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns evenly spaced values of x in float32, and whether all of x is finite."""
  flat = x.astype(jnp.float32).reshape(-1)
  stride = max(1, -(-flat.size // _MAX_SAMPLES))
  # A stride that shares a factor with the number of channels would visit only some of them.
  while math.gcd(stride, flat.size) > 1:
    stride += 1
  return flat[::stride], jnp.all(jnp.isfinite(flat))


def _make_capture(num_bits: dict[str, int]) -> Callable[..., Any]:
  """Returns an interceptor that keeps the inputs of each QuantReLU, and fills path -> bits."""

  def capture(
    next_fn: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    module = context.module
    if context.method_name == "__call__" and isinstance(module, linen.QuantReLU):
      path = abstract.path_of(module)
      if module.num_bits is not None:
        if num_bits.setdefault(path, module.num_bits) != module.num_bits:
          raise ValueError(
            f"an alpha must have one num_bits in all of its uses, got {num_bits[path]} and "
            f"{module.num_bits} for QuantReLU '{path}'"
          )
        module.sow(_COLLECTION, _NAME, _take_sample(args[0] if args else kwargs["x"]))
    return next_fn(*args, **kwargs)

  return capture


def _collect(state: Mapping[str, Any], paths: Iterable[str]) -> _Captured:
  captured: _Captured = {}
  for path in paths:
    node: Any = state.get(_COLLECTION, {})
    for key in (*path.split("/"), _NAME) if path else (_NAME,):
      node = node.get(key, {})
    if not node:
      raise ValueError(
        f"calibrate needs one alpha for each activation, got QuantReLU '{path}' inside nn.scan or "
        "nn.vmap; keep its alpha_init, or unroll the layers"
      )
    captured[path] = node
  return captured


def _replace_alpha(variables: Any, path: str, alpha: float) -> Any:
  target = abstract.join_path("params", path, "alpha")

  def replace(key_path: Any, leaf: Any) -> Any:
    if jax.tree_util.keystr(key_path, simple=True, separator="/") != target:
      return leaf
    value = np.asarray(alpha, leaf.dtype)
    return jax.device_put(value, leaf.sharding) if isinstance(leaf, jax.Array) else value

  return jax.tree_util.tree_map_with_path(replace, variables)


def _fit_path(path: str, num_bits: int, passes: Iterable[_Captured]) -> float | None:
  samples = []
  for captured in passes:
    for sample, is_finite in captured[path]:
      if not is_finite:
        raise ValueError(
          f"inputs of an activation must be finite, got NaN or infinity in QuantReLU '{path}'; "
          "check the batches and the parameters of the layers before it"
        )
      samples.append(np.asarray(sample))
  return staircase.fit_alpha(np.concatenate(samples), num_bits=num_bits)


def calibrate(model: nn.Module, variables: Any, batches: Iterable[Any], **apply_kwargs: Any) -> Any:
  """Sets the alpha of every QuantReLU to the least-squares step on its inputs.

  Formula: alpha = argmin over ALPHA_RANGE of sum (max(x, 0) - sigma(x, alpha))^2 over the inputs
  x of the activation, with all activations before it (in the order of their first use) already
  calibrated and all weights quantized. An activation used several times is fitted to the inputs
  of all its uses together, taken while it has its old alpha. At most 2^16 evenly spaced inputs
  of a use and batch enter the sum. One that sees no positive input keeps its alpha; so does one
  that the forward pass does not reach.

  Deterministic, and independent of the number of devices: it runs on the first local device, on
  whole batches. A model whose batch norm synchronises over a named axis is to be given without
  that axis. Costs one forward pass of every batch per activation, all through one compilation.

  Args:
    model: an unbound Linen module, called as model(batch, **apply_kwargs).
    variables: as for `model.apply`; single arrays or replicated ones.
    batches: model inputs, normalised as for the model; global batches, read once into host memory.
    **apply_kwargs: keyword arguments of `model.apply`, such as train=True (batch statistics are
      then those of the batch) or rngs (the same keys in every pass). All mutable collections but
      "params" may be written to; what is written is discarded.
  Returns:
    variables with the alphas replaced, dtypes and shardings kept; other leaves the same objects.
  Raises:
    ValueError: if there is no batch; if inputs of an activation hold a NaN or an infinity; if an
      activation is inside `nn.scan` or `nn.vmap`; if two uses of an alpha differ in num_bits.
    TypeError: if `mutable` is given.
  Source: our choice.
  """
  if "mutable" in apply_kwargs:
    raise TypeError("mutable must not be given to calibrate: it discards what the model writes")
  device = jax.local_devices()[0]
  inputs = [jax.device_put(batch, device) for batch in jax.device_get(list(batches))]
  if not inputs:
    raise ValueError("batches must hold at least one batch, got none")
  on_device = jax.device_put(jax.device_get(variables), device)
  num_bits: dict[str, int] = {}
  mutable = abstract.unique_denial("params")

  def forward(variables: Any, batch: Any) -> _Captured:
    with nn.intercept_methods(_make_capture(num_bits)):
      _, state = model.apply(variables, batch, mutable=mutable, **apply_kwargs)
    return _collect(state, num_bits)

  jax.eval_shape(forward, on_device, inputs[0])  # fills num_bits, in forward order
  run = jax.jit(forward)
  for path, bits in num_bits.items():
    alpha = _fit_path(path, bits, (run(on_device, batch) for batch in inputs))
    if alpha is not None:
      on_device = _replace_alpha(on_device, path, alpha)
      variables = _replace_alpha(variables, path, alpha)
  return variables
