"""The step's parts against hand-written arithmetic."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_helpers as helpers

from bcgd_jax.models import BATCH_NORM_MOMENTUM
from bcgd_jax.training.batch_stats import recalibrate_batch_stats
from bcgd_jax.training.evaluation import score
from bcgd_jax.training.steps import StepOptions, cross_entropy, eval_step, normalize, train_step


class Linear(nn.Module):
  """logits = x @ kernel on flattened images."""

  @nn.compact
  def __call__(self, x, train):
    del train
    return nn.Dense(3, use_bias=False, name="dense")(x.reshape(x.shape[0], -1))


class NormOnly(nn.Module):
  """Batch norm alone, with the momentum of our models."""

  @nn.compact
  def __call__(self, x, train):
    norm = nn.BatchNorm(momentum=BATCH_NORM_MOMENTUM, use_running_average=not train, name="norm")
    return norm(x)


def linear_options(**changes):
  return StepOptions(
    model=Linear(),
    eval_model=Linear(),
    tx=optax.with_extra_args_support(optax.sgd(0.1)),
    loss_fn=changes.pop("loss_fn", cross_entropy()),
    mean=(0.5,),
    std=(0.25,),
    axis_name=None,
    seed_key=jax.random.key(0),
    **changes,
  )


def linear_batch(num_examples):
  rng = np.random.default_rng(3)
  return {
    "image": rng.integers(0, 256, (num_examples, 2, 2, 1), dtype=np.uint8),
    "label": rng.integers(0, 3, num_examples).astype(np.int32),
  }


def numpy_losses(kernel, batch, smoothing=0.0):
  x = (batch["image"].reshape(len(batch["label"]), -1) / 255.0 - 0.5) / 0.25
  logits = x @ np.asarray(kernel, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  target = np.eye(3)[batch["label"]] * (1 - smoothing) + smoothing / 3
  return -(target * log_p).sum(axis=1), logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_step_against_numpy(smoothing):
  options = linear_options(loss_fn=cross_entropy(smoothing))
  batch = linear_batch(5)
  state = helpers.create_state(
    Linear().init(jax.random.key(1), jnp.zeros((1, 2, 2, 1)), train=False), options.tx
  )
  kernel = np.asarray(state.params["dense"]["kernel"], np.float64)
  after, metrics = jax.jit(functools.partial(train_step, options=options))(state, None, batch)

  losses, logits = numpy_losses(kernel, batch, smoothing)
  x = (batch["image"].reshape(5, -1) / 255.0 - 0.5) / 0.25
  target = np.eye(3)[batch["label"]] * (1 - smoothing) + smoothing / 3
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  gradient = x.T @ (p - target) / 5
  # float32 against float64
  np.testing.assert_allclose(after.params["dense"]["kernel"], kernel - 0.1 * gradient, atol=1e-6)
  np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
  assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(1) == batch["label"]).mean())
  assert int(after.step) == 1


def test_evaluation_counts_every_example_once_and_padding_never():
  options = linear_options()
  variables = Linear().init(jax.random.key(1), jnp.zeros((1, 2, 2, 1)), train=False)
  whole = linear_batch(7)
  losses, logits = numpy_losses(variables["params"]["dense"]["kernel"], whole)

  def batches():
    for start in (0, 4):
      part = {k: v[start : start + 4] for k, v in whole.items()}
      padding = 4 - len(part["label"])
      # garbage that would count if the mask were not respected
      image = np.concatenate([part["image"], np.full((padding, 2, 2, 1), 255, np.uint8)])
      label = np.concatenate([part["label"], np.zeros(padding, np.int32)])
      yield {"image": image, "label": label, "mask": np.arange(4) < 4 - padding}

  step = jax.jit(functools.partial(eval_step, options=options))
  found = score(step, variables, batches(), place_batch=lambda batch: batch)
  assert found.num_examples == 7
  assert found.accuracy == pytest.approx((logits.argmax(axis=1) == whole["label"]).mean())
  assert found.loss == pytest.approx(losses.mean(), rel=1e-5)


def test_loss_reads_what_aux_fn_computes_and_its_gradient_stops_there():
  def toward_teacher(logits, batch, aux):
    del batch
    return jnp.sum((logits - aux) ** 2, axis=-1)

  options = linear_options(
    loss_fn=toward_teacher,
    aux_fn=lambda variables, x: Linear().apply(variables, x, train=False),
  )
  init = functools.partial(Linear().init, x=jnp.zeros((1, 2, 2, 1)), train=False)
  student, teacher = init(jax.random.key(1)), init(jax.random.key(2))
  state = helpers.create_state(student, options.tx)
  batch = linear_batch(6)
  _, metrics = train_step(state, teacher, batch, options=options)
  x = np.asarray(normalize(jnp.asarray(batch["image"]), (0.5,), (0.25,))).reshape(6, -1)
  difference = x @ np.asarray(
    student["params"]["dense"]["kernel"] - teacher["params"]["dense"]["kernel"]
  )
  assert float(metrics["loss"]) == pytest.approx((difference**2).sum(axis=1).mean(), rel=1e-5)
  _, same = train_step(state, student, batch, options=options)
  assert float(same["loss"]) == 0.0
  assert float(same["grad_norm"]) == 0.0


def test_normalize_takes_one_value_a_channel():
  images = np.full((1, 1, 1, 3), 51, np.uint8)  # 0.2
  found = normalize(jnp.asarray(images), (0.1, 0.2, 0.4), (0.1, 0.1, 0.2))
  np.testing.assert_allclose(np.asarray(found)[0, 0, 0], [1.0, 0.0, -1.0], atol=1e-6)


def test_recalibrated_statistics_are_the_mean_over_batches():
  rng = np.random.default_rng(0)
  batches = [rng.normal(i, 1 + i, (64, 4)).astype(np.float32) for i in range(3)]
  variables = NormOnly().init(jax.random.key(0), jnp.zeros((1, 4)), train=False)
  found = recalibrate_batch_stats(NormOnly(), variables, batches)["batch_stats"]["norm"]
  # (1 - 0.9) / (1 - 0.9) in float32 leaves a few units in the last place
  np.testing.assert_allclose(found["mean"], np.mean([b.mean(0) for b in batches], 0), rtol=1e-5)
  np.testing.assert_allclose(found["var"], np.mean([b.var(0) for b in batches], 0), rtol=1e-5)


def test_recalibration_without_batches_is_an_error():
  variables = NormOnly().init(jax.random.key(0), jnp.zeros((1, 4)), train=False)
  with pytest.raises(ValueError, match="at least one batch"):
    recalibrate_batch_stats(NormOnly(), variables, [])


def test_recalibration_leaves_a_model_without_batch_norm_alone():
  variables = Linear().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), train=False)
  assert recalibrate_batch_stats(Linear(), variables, []) is variables
