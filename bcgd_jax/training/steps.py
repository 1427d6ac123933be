"""One training step and one evaluation step, as pure functions of a device's part of the batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from bcgd_jax.training.state import TrainState

PyTree = Any
Batch = Mapping[str, jax.Array]
LossFn = Callable[[jax.Array, Batch, PyTree], jax.Array]
AuxFn = Callable[[PyTree, jax.Array], PyTree]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
  """What a step is made of, fixed while it runs.

  Attributes:
    model: the network as it is trained; called as `model(x, train)`.
    eval_model: the network as it is scored: with its weights quantized where the run's are.
    tx: the optimizer.
    loss_fn: (logits [b, classes], batch, aux) -> loss of each example, float32 [b].
    mean, std: normalisation of pixels in [0, 1]; one value, or one a channel.
    axis_name: the mapped axis over devices; None outside any mapping.
    seed_key: typed PRNG key; each step's key is folded from it, the step and the device.
    accumulate_steps: the batch is run in this many parts, one after the other.
    ema_decay: decay of the averaged weights, where the state keeps them.
    aux_fn: (aux_variables, images) -> aux for `loss_fn`, such as a teacher's logits; not
      differentiated.
  """

  model: nn.Module
  eval_model: nn.Module
  tx: optax.GradientTransformationExtraArgs
  loss_fn: LossFn
  mean: tuple[float, ...]
  std: tuple[float, ...]
  axis_name: str | None
  seed_key: jax.Array
  accumulate_steps: int = 1
  ema_decay: float = 0.0
  aux_fn: AuxFn | None = None


def cross_entropy(label_smoothing: float = 0.0) -> LossFn:
  """Softmax cross-entropy against (1 - s) one_hot(label) + s / classes, s = label_smoothing.

  Source: the smoothing is Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
  """

  def loss_fn(logits: jax.Array, batch: Batch, aux: PyTree) -> jax.Array:
    del aux  # only losses with a teacher need it
    labels = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, label_smoothing))

  return loss_fn


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """(images / 255 - mean) / std.

  Args:
    images: uint8 [batch, height, width, channels]; floating images pass as already normalised.
    mean: of pixels in [0, 1]; one value, or one a channel.
    std: as mean.
  Returns:
    float32 [batch, height, width, channels].
  """
  if jnp.issubdtype(images.dtype, jnp.floating):
    return images
  shape = (1,) * (images.ndim - 1) + (len(mean),)
  mean_array = jnp.asarray(mean, jnp.float32).reshape(shape)
  std_array = jnp.asarray(std, jnp.float32).reshape(shape)
  return (images.astype(jnp.float32) / 255.0 - mean_array) / std_array


def train_step(
  state: TrainState, aux_variables: PyTree, batch: Batch, *, options: StepOptions
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimizer step on one device's part of the global batch.

  Gradients, statistics and metrics are averaged over `options.axis_name`, so that every device
  returns the same state. alpha's gradient, a plain sum over a device's activations of a mean loss,
  is averaged like the others.

  Args:
    state: the same on every device.
    aux_variables: passed to `options.aux_fn`; None without one.
    batch: "image" uint8 [b, H, W, C] (or normalised floats) and "label" int32 [b].
    options: what the step is made of.
  Returns:
    The next state and the global batch's "loss" and "accuracy", "grad_norm" and the "param_norm"
    after the step, each []. Where one of them is not finite, the state is not worth keeping.
  """
  key = jax.random.fold_in(options.seed_key, state.step)
  if options.axis_name is not None:
    key = jax.random.fold_in(key, jax.lax.axis_index(options.axis_name))
  grads, batch_stats, metrics = _accumulate(state, aux_variables, batch, key, options=options)
  grads, batch_stats, metrics = _mean_over_devices((grads, batch_stats, metrics), options)
  updates, opt_state = options.tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if ema is not None:
    ema = optax.incremental_update(
      {"params": params, "batch_stats": batch_stats}, ema, 1.0 - options.ema_decay
    )
  metrics["grad_norm"] = optax.tree.norm(grads)
  metrics["param_norm"] = optax.tree.norm(params)
  state = TrainState(
    step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
  )
  return state, metrics


def eval_step(variables: PyTree, batch: Batch, *, options: StepOptions) -> dict[str, jax.Array]:
  """Sums over one global batch: "loss" and "correct" of the examples where "mask" holds, "count".

  Args:
    variables: "params", the float weights, and "batch_stats"; the same on every device.
    batch: "image", "label" as for `train_step`, and "mask" bool [b].
    options: what is scored; "loss" is plain cross-entropy, whatever the trained loss.
  """
  logits = _score(variables, batch, options)
  mask = batch["mask"]
  # where, not a product: a padded example's loss may be anything
  losses = jnp.where(mask, cross_entropy()(logits, batch, None), 0.0)
  correct = mask & _is_correct(logits, batch["label"])
  sums = {
    "loss": jnp.sum(losses),
    "correct": jnp.sum(correct, dtype=jnp.int32),
    "count": jnp.sum(mask, dtype=jnp.int32),
  }
  return sums if options.axis_name is None else jax.lax.psum(sums, options.axis_name)


def predict_step(variables: PyTree, batch: Batch, *, options: StepOptions) -> jax.Array:
  """The class that each example of one global batch is given: int32 [global batch], in its order.

  Args:
    variables: as for `eval_step`.
    batch: "image" as for `train_step`.
    options: what predicts is `eval_model`.
  """
  classes = jnp.argmax(_score(variables, batch, options), axis=-1).astype(jnp.int32)
  if options.axis_name is None:
    return classes
  return jax.lax.all_gather(classes, options.axis_name, tiled=True)


def _score(variables: PyTree, batch: Batch, options: StepOptions) -> jax.Array:
  """Logits [b, classes] of the network as it is scored."""
  x = normalize(batch["image"], options.mean, options.std)
  return cast(jax.Array, options.eval_model.apply(variables, x, train=False))


def _is_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels


def _mean_over_devices(tree: PyTree, options: StepOptions) -> PyTree:
  return tree if options.axis_name is None else jax.lax.pmean(tree, options.axis_name)


def _accumulate(
  state: TrainState, aux_variables: PyTree, batch: Batch, key: jax.Array, *, options: StepOptions
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
  """Mean gradients and metrics over the parts of a batch; batch statistics go from part to part."""
  grads_of = functools.partial(_gradients, state.params, aux_variables, options=options)
  parts = options.accumulate_steps
  if parts == 1:
    return grads_of(state.batch_stats, batch, key)
  split = jax.tree.map(lambda a: a.reshape(parts, a.shape[0] // parts, *a.shape[1:]), dict(batch))

  def body(batch_stats: PyTree, part: tuple[Batch, jax.Array]) -> tuple[PyTree, PyTree]:
    grads, batch_stats, metrics = grads_of(batch_stats, *part)
    return batch_stats, (grads, metrics)

  keys = jax.random.split(key, parts)
  batch_stats, stacked = jax.lax.scan(body, state.batch_stats, (split, keys))
  grads, metrics = jax.tree.map(lambda a: jnp.mean(a, axis=0), stacked)
  return grads, batch_stats, metrics


def _gradients(
  params: PyTree,
  aux_variables: PyTree,
  batch_stats: PyTree,
  batch: Batch,
  key: jax.Array,
  *,
  options: StepOptions,
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
  x = normalize(batch["image"], options.mean, options.std)
  aux = None if options.aux_fn is None else options.aux_fn(aux_variables, x)

  def mean_loss(params: PyTree) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
    logits, mutated = options.model.apply(
      {"params": params, "batch_stats": batch_stats},
      x,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": key},
    )
    loss = jnp.mean(options.loss_fn(logits, batch, jax.lax.stop_gradient(aux)))
    return loss, (logits, mutated.get("batch_stats", {}))

  (loss, (logits, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
  accuracy = jnp.mean(_is_correct(logits, batch["label"]).astype(loss.dtype))
  return grads, batch_stats, {"loss": loss, "accuracy": accuracy}
