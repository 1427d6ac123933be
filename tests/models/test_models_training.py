"""The models under gradients, batch-norm modes, devices and dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.sharding import AxisType, Mesh, PartitionSpec

from bcgd_jax.models import Quantization, create_model
from bcgd_jax.numerics import Binary

# Compiling is most of the time these tests take; speed is not what they look at.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

_1W4A = Quantization(weight=Binary(), first=Binary(), last=Binary(), activation_bits=4)


def _create(name, quantization=_1W4A, **kwargs):
  return create_model(name, num_classes=10, quantization=quantization, **kwargs)


def _draw(batch, image_shape, seed=0):
  rng = np.random.default_rng(seed)
  images = jnp.asarray(rng.normal(size=(batch, *image_shape)), jnp.float32)
  return images, jnp.asarray(rng.integers(10, size=batch), jnp.int32)


def _init(model, images):
  return _jit(lambda x: model.init(jax.random.key(0), x, False))(images)


def _loss(params, batch_stats, images, labels, *, model):
  variables = {"params": params, "batch_stats": batch_stats}
  logits, state = model.apply(variables, images, True, mutable=["batch_stats"])
  picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
  return -jnp.mean(picked), (state["batch_stats"], logits)


def _trace_gradient(model, variables, images, labels):
  fn = jax.value_and_grad(functools.partial(_loss, model=model), has_aux=True)
  return fn(variables["params"], variables["batch_stats"], images, labels)


_differentiate = _jit(_trace_gradient, static_argnums=0)


def _paths(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


class GradientStepTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("resnet8", "resnet8", (8, 8, 1), 8, "own"),
    ("resnet8_stream", "resnet8", (8, 8, 1), 8, "stream"),
    ("resnet8_network", "resnet8", (8, 8, 1), 8, "network"),
    ("vgg11", "vgg11", (8, 8, 1), 8, "own"),
    ("lenet5", "lenet5", (8, 8, 1), 8, "own"),
    ("imagenet_resnet18", "imagenet_resnet18", (64, 64, 3), 2, "own"),
  )
  def test_every_parameter_gets_a_finite_gradient(self, name, image_shape, batch, residual_alpha):
    model = _create(name, residual_alpha=residual_alpha)
    images, labels = _draw(batch, image_shape)
    variables = _init(model, images)
    (loss, (batch_stats, logits)), grads = _differentiate(model, variables, images, labels)
    self.assertEqual((logits.shape, logits.dtype), ((batch, 10), jnp.float32))
    self.assertTrue(np.isfinite(loss))
    self.assertEqual(jax.tree.structure(grads), jax.tree.structure(variables["params"]))
    # A bias before batch norm, as VGG's convolutions have it, is subtracted again.
    silent = {p for p in _paths(grads) if name == "vgg11" and "conv" in p and p.endswith("/bias")}
    for path, grad in _paths(grads).items():
      self.assertTrue(np.isfinite(grad).all(), path)
      if path not in silent:
        self.assertGreater(np.abs(grad).max(), 0, path)
    for path, value in _paths(batch_stats).items():
      self.assertFalse(np.array_equal(value, _paths(variables["batch_stats"])[path]), path)

  @parameterized.parameters("resnet20", "imagenet_resnet34")
  def test_larger_models_take_a_step_abstractly(self, name):
    model = _create(name)
    images, labels = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in _draw(2, (32, 32, 3)))
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)
    (loss, _), grads = jax.eval_shape(
      functools.partial(_trace_gradient, model), variables, images, labels
    )
    self.assertEqual(loss.shape, ())
    self.assertEqual(
      jax.tree.map(lambda x: (x.shape, x.dtype), grads),
      jax.tree.map(lambda x: (x.shape, x.dtype), variables["params"]),
    )

  def test_evaluation_uses_running_statistics(self):
    model = _create("resnet8", Quantization.none())
    images, _ = _draw(4, (8, 8, 1))
    variables = _init(model, images)
    evaluate = _jit(lambda x: model.apply(variables, x, False))
    together = evaluate(images)
    alone = jnp.concatenate([evaluate(images[i : i + 1]) for i in range(4)])
    # The same float32 sums, batched differently.
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


class BatchNormTest(parameterized.TestCase):
  def _differentiate_mapped(self, model, variables, images, labels, num_devices):
    mesh = Mesh(np.asarray(jax.devices()[:num_devices]), ("devices",), axis_types=(AxisType.Auto,))
    replicated, split = PartitionSpec(), PartitionSpec("devices")

    def step(variables, images, labels):
      (loss, (stats, logits)), grads = _trace_gradient(model, variables, images, labels)
      loss, grads = jax.lax.pmean((loss, grads), "devices")
      return loss, jax.tree.map(lambda s: s[None], stats), logits, grads

    mapped = jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(replicated, split, split),
      out_specs=(replicated, split, split, replicated),
      check_vma=False,
    )
    return _jit(mapped)(variables, images, labels)

  def test_global_equals_one_device_and_per_replica_its_own_part(self):
    num_devices = 4
    images, labels = _draw(8, (8, 8, 1))
    # Parts of unlike statistics, so that local and global ones differ.
    images = images + jnp.repeat(jnp.arange(4.0), 2)[:, None, None, None]
    # Float activations and weights: codes would flip with the rounding of another sum order.
    single = _create("resnet8", Quantization.none())
    variables = _init(single, images)
    (loss, (stats, logits)), grads = _differentiate(single, variables, images, labels)
    # Float32 sums of up to 512 terms in another order, through ten layers.
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)

    shared = _create("resnet8", Quantization.none(), axis_name="devices")
    # Initialisation needs no mapping, also in training mode.
    jax.eval_shape(lambda x: shared.init(jax.random.key(0), x, True), images)
    outcome = self._differentiate_mapped(shared, variables, images, labels, num_devices)
    close(outcome[0], loss)
    for device in range(num_devices):
      jax.tree.map(lambda a, b, d=device: close(a[d], b), outcome[1], stats)
    close(outcome[2], logits)
    jax.tree.map(close, outcome[3], grads)

    local = _create("resnet8", Quantization.none(), axis_name="devices", batch_norm="per_replica")
    outcome = self._differentiate_mapped(local, variables, images, labels, num_devices)
    self.assertGreater(np.abs(outcome[2] - logits).max(), 0.1)
    for device in range(num_devices):
      part = slice(2 * device, 2 * device + 2)
      (_, (part_stats, part_logits)), _ = _differentiate(
        single, variables, images[part], labels[part]
      )
      jax.tree.map(lambda a, b, d=device: close(a[d], b), outcome[1], part_stats)
      close(outcome[2][part], part_logits)

  def test_momentum_and_epsilon(self):
    model = _create("resnet8", Quantization.none())
    images, _ = _draw(4, (8, 8, 1))
    variables = _init(model, images)
    _, state = _jit(
      lambda x: model.apply(variables, x, True, mutable=True, capture_intermediates=True)
    )(images)
    y = np.asarray(state["intermediates"]["conv1"]["__call__"][0], np.float64)
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    stats = state["batch_stats"]["bn1"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-6)
    normalised = state["intermediates"]["bn1"]["__call__"][0]
    # Float32 on values up to about 5.
    np.testing.assert_allclose(normalised, (y - mean) / np.sqrt(var + 1e-5), atol=2e-5)


class DtypeTest(parameterized.TestCase):
  @parameterized.parameters("resnet8", "vgg11", "lenet5", "imagenet_resnet18")
  def test_bfloat16_computes_only_the_convolutions_in_bfloat16(self, name):
    model = _create(name, dtype=jnp.bfloat16)
    images, labels = _draw(4, (16, 16, 3))

    def trace(images):
      variables = model.init(jax.random.key(0), images, False)
      _, state = model.apply(variables, images, True, mutable=True, capture_intermediates=True)
      return variables, state["intermediates"], _trace_gradient(model, variables, images, labels)

    variables, outputs, (_, grads) = jax.eval_shape(trace, images)
    for tree in (variables, grads):
      self.assertEqual({x.dtype for x in jax.tree.leaves(tree)}, {np.dtype("float32")})
    for path, output in jax.tree_util.tree_leaves_with_path(outputs):
      layer = jax.tree_util.keystr(path, simple=True, separator="/").split("/__call__")[0]
      layer = layer.split("/")[-1]
      inner = layer.startswith(("conv", "layer", "downsample_0")) or layer == "fc1"
      expected = jnp.bfloat16 if inner else jnp.float32
      self.assertEqual(output.dtype, expected, layer)

  def test_bfloat16_is_close_to_float32(self):
    images, labels = _draw(8, (8, 8, 1))
    single = _create("resnet8", Quantization.none())
    variables = _init(single, images)
    half = _create("resnet8", Quantization.none(), dtype=jnp.bfloat16)
    (_, (_, expected)), _ = _differentiate(single, variables, images, labels)
    (_, (_, actual)), _ = _differentiate(half, variables, images, labels)
    # Eight bits of mantissa through eight layers, logits of about 1.
    np.testing.assert_allclose(actual, expected, atol=0.05)
    quantized = _create("resnet8", dtype=jnp.bfloat16)
    variables = _init(quantized, images)
    (loss, _), grads = _differentiate(quantized, variables, images, labels)
    self.assertTrue(all(np.isfinite(x).all() for x in jax.tree.leaves((loss, grads))))

  @parameterized.parameters("resnet8", "vgg11", "lenet5", "imagenet_resnet18")
  def test_float64_is_float64_throughout(self, name):
    with jax.enable_x64(True):
      model = _create(name, dtype=jnp.float64)
      images, labels = _draw(2, (8, 8, 1))
      variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)
      wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), variables)
      (loss, aux), grads = jax.eval_shape(
        functools.partial(_trace_gradient, model), wide, images, labels
      )
      for leaf in jax.tree.leaves((loss, aux, grads)):
        self.assertEqual(leaf.dtype, jnp.float64)
