"""Batch norm's running statistics, estimated anew for given weights."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bcgd_jax.models import BATCH_NORM_MOMENTUM

PyTree = Any


def recalibrate_batch_stats(model: nn.Module, variables: PyTree, batches: Iterable[Any]) -> PyTree:
  """`variables` with batch statistics replaced by their plain mean over `batches`.

  A running average lags behind the weights; after the last step this removes the lag. From zero
  statistics one training-mode pass leaves (1 - momentum) times the batch's own, which is divided
  out.

  Args:
    model: called as `model(x, train)`, outside any mapping over devices.
    variables: with collections "params" and, if the model has batch norm, "batch_stats".
    batches: normalised images, float32 [batch, height, width, channels]; at least one.
  Returns:
    Variables of the same structure; without "batch_stats" `variables` themselves.
  Raises:
    ValueError: if there are no batches.
  Source: our choice.
  """
  if not variables.get("batch_stats"):
    return variables
  zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])

  @jax.jit
  def batch_stats(params: PyTree, x: jax.Array) -> PyTree:
    _, mutated = model.apply(
      {"params": params, "batch_stats": zeros}, x, train=True, mutable=["batch_stats"]
    )
    return jax.tree.map(lambda s: s / (1.0 - BATCH_NORM_MOMENTUM), mutated["batch_stats"])

  found = [batch_stats(variables["params"], x) for x in batches]
  if not found:
    raise ValueError("batches must hold at least one batch, got none.")
  mean = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), axis=0), *found)
  return {**variables, "batch_stats": mean}
