"""The loss with a teacher, alone, in a step and in whole runs."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_helpers as helpers
from jax.experimental.compilation_cache import compilation_cache
from tiny_config import tiny_config

from bcgd_jax.data import train_batches
from bcgd_jax.errors import UsageError
from bcgd_jax.report.records import read_metrics
from bcgd_jax.training import run as run_module
from bcgd_jax.training.distillation import distillation, teacher_logits
from bcgd_jax.training.loop import train_and_evaluate
from bcgd_jax.training.parallel import AXIS_NAME, Parallel
from bcgd_jax.training.run import Hooks, abstract_tree, load_phase, load_teacher, open_run
from bcgd_jax.training.state import create_state
from bcgd_jax.training.steps import StepOptions, normalize, train_step

TEMPERATURE = 3.0


@pytest.fixture(autouse=True, scope="module")
def data_dir(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    yield


@pytest.fixture(autouse=True, scope="module")
def compilation_cache_dir(tmp_path_factory):
  """Runs of one configuration compile the same programs: the first one's serve the others."""
  changes = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in changes}
  for values in (changes, before):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    if values is changes:
      yield


def numpy_log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def numpy_softmax(logits):
  return np.exp(numpy_log_softmax(logits))


def numpy_losses(student, teacher, labels, *, weight, temperature, smoothing=0.0):
  """The formula, in float64: of each example."""
  classes = student.shape[-1]
  target = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
  label_loss = -(target * numpy_log_softmax(student)).sum(axis=-1)
  p, q = numpy_softmax(teacher / temperature), numpy_softmax(student / temperature)
  divergence = (p * np.log(p / q)).sum(axis=-1)
  return (1 - weight) * label_loss + weight * temperature**2 * divergence


def random_logits(num_examples=6, classes=5):
  rng = np.random.default_rng(11)
  student, teacher = rng.normal(scale=3.0, size=(2, num_examples, classes))
  return student, teacher, rng.integers(0, classes, num_examples).astype(np.int32)


@pytest.mark.parametrize(
  ("weight", "temperature", "smoothing"), [(0.3, 4.0, 0.0), (0.7, 1.0, 0.1), (1.0, 0.5, 0.1)]
)
def test_loss_against_numpy(weight, temperature, smoothing):
  student, teacher, labels = random_logits()
  settings = {"weight": weight, "temperature": temperature}
  expected = numpy_losses(student, teacher, labels, smoothing=smoothing, **settings)
  loss_fn = distillation(label_smoothing=smoothing, **settings)
  with jax.enable_x64(True):
    found = loss_fn(jnp.asarray(student), {"label": labels}, jnp.asarray(teacher))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
  narrow = [jnp.asarray(logits, jnp.float32) for logits in (student, teacher)]
  found = loss_fn(narrow[0], {"label": labels}, narrow[1])
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
  loss_fn = distillation(weight=1.0, temperature=TEMPERATURE)
  batch = {"label": np.zeros(6, np.int32)}
  with jax.enable_x64(True):
    logits = jnp.asarray(random_logits()[0])
    losses, pull_back = jax.vjp(lambda student: loss_fn(student, batch, logits), logits)
    # rounding of the two softmaxes, times T^2
    np.testing.assert_allclose(losses, 0.0, atol=1e-14)
    np.testing.assert_allclose(pull_back(jnp.ones(6))[0], 0.0, atol=1e-14)


def test_gradient_at_high_temperature_is_the_difference_of_centred_logits():
  # Hinton et al. 2015, equation 4, times T^2: without that factor the gradient would vanish
  student, teacher, labels = random_logits()
  difference = student - teacher
  expected = (difference - difference.mean(axis=-1, keepdims=True)) / student.shape[-1]
  with jax.enable_x64(True):
    for temperature in (1e4, 1e5):
      loss_fn = distillation(weight=1.0, temperature=temperature)
      one = jax.grad(lambda *example, f=loss_fn: f(*example))
      found = jax.vmap(one)(jnp.asarray(student), {"label": labels}, jnp.asarray(teacher))
      np.testing.assert_allclose(found, expected, atol=50 / temperature)


class Linear(nn.Module):
  """logits = x @ kernel on flattened images: without batch norm, parts of a batch add up."""

  @nn.compact
  def __call__(self, x, train):
    del train
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(helpers.NUM_CLASSES, use_bias=False, name="dense")(x)


@functools.cache
def teacher_and_variables():
  """A teacher with batch norm whose running statistics are not those of the batch."""
  model = helpers.TinyNet(axis_name=None, dtype=jnp.float32)
  x = jnp.zeros((1, *helpers.IMAGE_SHAPE), jnp.float32)
  variables = jax.jit(lambda: model.init(jax.random.key(5), x, train=False))()
  statistics = jax.tree.map(lambda leaf: leaf * 2.0 + 0.1, variables["batch_stats"])
  return model, {"params": variables["params"], "batch_stats": statistics}


def linear_step(*, weight, axis_name=None, parts=1, smoothing=0.0):
  """The teacher's variables, a student's state and the options that distil one into the other."""
  teacher, variables = teacher_and_variables()
  options = StepOptions(
    model=Linear(),
    eval_model=Linear(),
    tx=optax.with_extra_args_support(optax.sgd(0.1)),
    loss_fn=distillation(weight=weight, temperature=TEMPERATURE, label_smoothing=smoothing),
    mean=(0.0,),
    std=(1.0,),
    axis_name=axis_name,
    seed_key=jax.random.key(0),
    accumulate_steps=parts,
    aux_fn=teacher_logits(teacher),
  )
  student = Linear().init(jax.random.key(2), jnp.zeros((1, *helpers.IMAGE_SHAPE)), train=False)
  return variables, create_state(student, options.tx), options


@pytest.mark.parametrize("mode", ["unmapped", "pmap", "shard_map"])
def test_step_in_parts_and_on_devices_against_numpy(mode):
  batch = helpers.make_batches(np.float32, 1)[0]
  axis_name = None if mode == "unmapped" else AXIS_NAME
  variables, state, options = linear_step(weight=0.4, axis_name=axis_name, parts=2, smoothing=0.1)
  kernel = np.asarray(state.params["dense"]["kernel"], np.float64)
  images = batch["image"].reshape(helpers.BATCH, -1)
  model, _ = teacher_and_variables()
  teacher = jax.jit(lambda x: model.apply(variables, x, train=False))(batch["image"])
  teacher = np.asarray(teacher, np.float64)
  step = functools.partial(train_step, options=options)
  if mode == "unmapped":
    after, metrics = jax.jit(step)(state, variables, batch)
  else:
    parallel = Parallel(mode, tuple(jax.devices()[:4]))
    mapped = parallel.map_step(step, num_replicated=2, donate=True)
    state, teacher_variables = parallel.replicate((state, variables))
    after, metrics = mapped(state, teacher_variables, parallel.place_batch(batch))
    chex.assert_trees_all_equal(jax.device_get(teacher_variables), variables)  # not donated

  student = images @ kernel
  settings = {"weight": 0.4, "temperature": TEMPERATURE, "smoothing": 0.1}
  losses = numpy_losses(student, teacher, batch["label"], **settings)
  np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-5)
  target = np.eye(helpers.NUM_CLASSES)[batch["label"]] * 0.9 + 0.1 / helpers.NUM_CLASSES
  soft_difference = numpy_softmax(student / TEMPERATURE) - numpy_softmax(teacher / TEMPERATURE)
  slope = 0.6 * (numpy_softmax(student) - target) + 0.4 * TEMPERATURE * soft_difference
  expected = kernel - 0.1 * images.T @ slope / helpers.BATCH
  np.testing.assert_allclose(after.params["dense"]["kernel"], expected, atol=1e-6)


def test_gradient_reaches_the_student_alone():
  variables, state, options = linear_step(weight=1.0)
  batch = helpers.make_batches(np.float32, 1)[0]

  def loss(teacher_params):
    teacher = variables | {"params": teacher_params}
    return train_step(state, teacher, batch, options=options)[1]["loss"]

  gradient = jax.jit(jax.grad(loss))(variables["params"])
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))
  _, metrics = jax.jit(functools.partial(train_step, options=options))(state, variables, batch)
  assert float(metrics["grad_norm"]) > 0.1


def distilled_config(weight):
  """4 float and 8 distilled steps of LeNet-5 on 64 digits, with every step logged."""
  config = tiny_config() | {"selection": "last", "log_every_steps": 1, "checkpoint_every_steps": 2}
  config["model"]["name"] = "lenet5"  # compiles sooner than a ResNet
  config["data"]["validation_examples"] = 0
  config["float"] |= {"epochs": 1.0}
  config["quantized"] |= {"epochs": 2.0, "distill_weight": weight, "recalibrate_batches": 0}
  return config


class WrongLabels:
  """A source with every label replaced by another."""

  def __init__(self, source):
    self._source = source

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    element = self._source[index]
    return element | {"label": (element["label"] + 3) % 10}


class StoppedError(Exception):
  """What ends a run in the middle of these tests."""


def ends_of(config, workdir, devices):
  """What the last phase ended with, as host arrays, and the last checkpoint's whole state."""
  run = open_run(config, workdir, devices=devices)
  tree = run.store.restore(run.store.latest().step, abstract_tree(run, run.phases[-1]))
  return jax.device_get((load_phase(run, run.phases[-1]), tree))


def test_run_stopped_inside_the_distilled_phase_ends_like_one_that_is_not(tmp_path):
  config = distilled_config(0.5) | {"parallel": "shard_map"}
  config["quantized"] |= {"accumulate_steps": 2, "label_smoothing": 0.1, "ema_decay": 0.5}
  devices = jax.devices()[:2]

  def stop(step):
    if step == 9:  # checkpoints are of steps 6 and 8 of the distilled phase
      raise StoppedError

  with pytest.raises(StoppedError):
    train_and_evaluate(config, tmp_path / "cut", devices=devices, hooks=Hooks(on_step=stop))
  train_and_evaluate(config, tmp_path / "cut", devices=devices)
  train_and_evaluate(config, tmp_path / "whole", devices=devices)
  found, expected = (ends_of(config, tmp_path / name, devices) for name in ("cut", "whole"))
  chex.assert_trees_all_equal(found, expected)
  losses = [
    [r["loss"] for r in read_metrics(tmp_path / name) if r["kind"] == "train"]
    for name in ("cut", "whole")
  ]
  assert losses[0] == losses[1]
  assert len(losses[0]) == 12


def test_at_weight_1_the_phase_before_teaches_and_labels_do_not(tmp_path, monkeypatch):
  devices = jax.devices()[:2]
  config = distilled_config(1.0) | {"parallel": "pmap"}
  train_and_evaluate(config | {"phases": ("float",)}, tmp_path / "float", devices=devices)
  config["float"]["start_from"] = str(tmp_path / "float")
  train_and_evaluate(config, tmp_path / "true", devices=devices)

  # the loss of the step after a checkpoint, by hand; the student has left its teacher by then
  run = open_run(config, tmp_path / "true", devices=devices)
  before, phase = run.phases
  state = run.store.restore(6, abstract_tree(run, phase))["state"]
  with train_batches(run.dataset, run.data_options, start_step=6) as batches:
    batch = next(batches)
  x = normalize(jnp.asarray(batch["image"]), run.settings.data.mean, run.settings.data.std)
  student, _ = phase.host_model.apply(
    {"params": state.params, "batch_stats": state.batch_stats}, x, train=True, mutable="batch_stats"
  )
  expected = numpy_losses(
    np.asarray(student),
    np.asarray(before.options.eval_model.apply(load_phase(run, before), x, train=False)),
    batch["label"],
    weight=1.0,
    temperature=phase.settings.distill_temperature,
  )
  records = [r for r in read_metrics(tmp_path / "true") if r["kind"] == "train"]
  # an activation next to a threshold may get another code
  np.testing.assert_allclose(records[6]["loss"], expected.mean(), rtol=1e-3)

  load = run_module.load_dataset

  def with_wrong_labels(options):
    dataset = load(options)
    return dataclasses.replace(dataset, train=WrongLabels(dataset.train))

  monkeypatch.setattr(run_module, "load_dataset", with_wrong_labels)
  train_and_evaluate(config, tmp_path / "wrong", devices=devices)
  found, expected = (ends_of(config, tmp_path / name, devices) for name in ("wrong", "true"))
  chex.assert_trees_all_equal(found, expected)
  wrong = [r for r in read_metrics(tmp_path / "wrong") if r["kind"] == "train"]
  assert [r["accuracy"] for r in wrong] != [r["accuracy"] for r in records]


def test_missing_teacher_is_named(tmp_path):
  run = open_run(distilled_config(0.5), tmp_path / "run", devices=jax.devices()[:1])
  assert load_teacher(run, run.phases[0]) is None
  with pytest.raises(UsageError, match=r"phases/float must hold a finished phase 'float'"):
    load_teacher(run, run.phases[1])
