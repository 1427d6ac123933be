"""Parameter counts, names, shapes and options of the models, by abstract evaluation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax.layers import weight_quantizers
from bcgd_jax.models import MODEL_NAMES, LayerFactory, Quantization, cifar_resnet, create_model
from bcgd_jax.numerics import Binary, Ternary, Uniform

# Compiling is most of the time these tests take; speed is not what they look at.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

_1W4A = Quantization(weight=Binary(), first=Binary(), last=Binary(), activation_bits=4)


def _create(name, quantization=_1W4A, num_classes=10, **kwargs):
  return create_model(name, num_classes=num_classes, quantization=quantization, **kwargs)


def _init_abstract(model, image_shape):
  x = jnp.zeros((1, *image_shape))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), x, False))


def _init(model, x):
  return _jit(lambda x: model.init(jax.random.key(0), x, False))(x)


def _shapes(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}


def _count(tree):
  return sum(int(np.prod(shape)) for shape in _shapes(tree).values())


def _alphas(model, image_shape):
  return [path for path in _shapes(_init_abstract(model, image_shape)) if path.endswith("/alpha")]


class ParameterTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # stem 27*16 = 432; stage 1: 6 * 9*16*16 = 13,824; stage 2: 9*16*32 + 5 * 9*32*32 = 50,688;
    # stage 3: 9*32*64 + 5 * 9*64*64 = 202,752; batch norm: 2 * (7*16 + 6*32 + 6*64) = 1,376;
    # dense: 64*10 + 10 = 650.
    ("resnet20", "resnet20", (32, 32, 3), 10, 269_722),
    # 3x3 convolutions with bias, input channels 3, 64, 128, 256, 256, 512, 512, 512:
    # 1,792 + 73,856 + 295,168 + 590,080 + 1,180,160 + 3 * 2,359,808 = 9,220,480;
    # batch norm: 2 * (64 + 128 + 2*256 + 4*512) = 5,504; dense: 512*10 + 10 = 5,130.
    ("vgg11", "vgg11", (32, 32, 3), 10, 9_231_114),
    # 25*1*32 = 800; 25*32*64 = 51,200; dense: 7*7*64*512 = 1,605,632 and 512*10 + 10 = 5,130;
    # batch norm: 2 * (32 + 64 + 512) = 1,216.
    ("lenet5", "lenet5", (28, 28, 1), 10, 1_663_978),
    # torchvision's published count. Stem 49*3*64 = 9,408. Stage 1: 4 * 9*64*64 = 147,456; stages 2
    # to 4 with c = 64, 128, 256 input channels: 9*c*2c + 3 * 9*2c*2c + c*2c = 128 c^2: 524,288 +
    # 2,097,152 + 8,388,608. Batch norm: 2 * (5*64 + 5*128 + 5*256 + 5*512) = 9,600.
    # Dense: 512*1000 + 1000 = 513,000.
    ("resnet18", "imagenet_resnet18", (224, 224, 3), 1000, 11_689_512),
    # The same with 1, 2, 4 and 1 more blocks of 2 * 9*w*w + 2 * 2*w parameters each:
    # 73,984 + 2 * 295,424 + 4 * 1,180,672 + 4,720,640 = 10,108,160 more.
    ("resnet34", "imagenet_resnet34", (224, 224, 3), 1000, 21_797_672),
  )
  def test_count_of_the_float_network(self, name, image_shape, num_classes, expected):
    model = _create(name, Quantization.none(), num_classes)
    self.assertEqual(_count(_init_abstract(model, image_shape)["params"]), expected)

  @parameterized.parameters(
    *[(name, "own") for name in MODEL_NAMES],
    ("resnet8", "stream"),
    ("imagenet_resnet18", "stream"),
    ("resnet8", "network"),
  )
  def test_quantization_adds_nothing_but_alphas(self, name, residual_alpha):
    image_shape = (32, 32, 3)
    floating = _init_abstract(_create(name, Quantization.none()), image_shape)
    quantized = _init_abstract(_create(name, residual_alpha=residual_alpha), image_shape)
    alphas = {p: s for p, s in _shapes(quantized).items() if p.endswith("/alpha")}
    self.assertNotEmpty(alphas)
    self.assertEqual(set(alphas.values()), {()})
    self.assertEqual(_shapes(quantized), {**_shapes(floating), **alphas})
    self.assertEqual(set(floating), {"params", "batch_stats"})
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(quantized)}
    self.assertEqual(dtypes, {np.dtype("float32")})
    # Names are chosen, not Flax's class-name counters such as "QuantConv_0".
    for path in _shapes(quantized):
      self.assertNotRegex(path, r"[A-Z]")

  @parameterized.parameters(
    ("resnet20", (32, 32, 3), 1_376), ("vgg11", (32, 32, 3), 5_504), ("lenet5", (28, 28, 1), 1_216)
  )
  def test_batch_norm_without_scale_and_bias(self, name, image_shape, expected):
    whole = _shapes(_init_abstract(_create(name), image_shape))
    bare = _shapes(_init_abstract(_create(name, batch_norm_affine=False), image_shape))
    # a batch norm is what has running statistics
    means = [path for path in whole if path.startswith("batch_stats/") and path.endswith("/mean")]
    norms = [path.removeprefix("batch_stats/").removesuffix("/mean") for path in means]
    gone = {f"params/{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias")}
    self.assertEqual({p: s for p, s in whole.items() if p not in gone}, bare)
    self.assertEqual(sum(int(np.prod(whole[path])) for path in gone), expected)

  @parameterized.named_parameters(
    ("resnet18", "imagenet_resnet18", (2, 2, 2, 2)),
    ("resnet34", "imagenet_resnet34", (3, 4, 6, 3)),
  )
  def test_names_map_onto_torchvision(self, name, num_blocks):
    expected = {}

    def add_conv(key, features, channels, size):
      expected[f"params/{key}/kernel"] = (size, size, channels, features)

    def add_norm(key, features):
      leaves = ("params/#/scale", "params/#/bias", "batch_stats/#/mean", "batch_stats/#/var")
      expected.update({leaf.replace("#", key): (features,) for leaf in leaves})

    # torchvision's module names, in which an index follows a dot.
    add_conv("conv1", 64, 3, 7)
    add_norm("bn1", 64)
    channels = 64
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), num_blocks, strict=True), 1):
      for block in range(blocks):
        prefix = f"layer{stage}.{block}"
        add_conv(f"{prefix}.conv1", width, channels, 3)
        add_norm(f"{prefix}.bn1", width)
        add_conv(f"{prefix}.conv2", width, width, 3)
        add_norm(f"{prefix}.bn2", width)
        if block == 0 and stage > 1:
          add_conv(f"{prefix}.downsample.0", width, channels, 1)
          add_norm(f"{prefix}.downsample.1", width)
        channels = width
    expected |= {"params/fc/kernel": (512, 1000), "params/fc/bias": (1000,)}

    translated = {
      re.sub(r"\.(\d)", r"_\1", path).replace(".", "/"): shape for path, shape in expected.items()
    }
    model = _create(name, Quantization.none(), 1000)
    self.assertEqual(_shapes(_init_abstract(model, (64, 64, 3))), translated)

  def test_initial_values(self):
    params = _init(_create("resnet8"), jnp.zeros((1, 8, 8, 1)))["params"]
    kernel = np.asarray(params["layer3_0"]["conv2"]["kernel"])
    # 36,864 draws of N(0, 2 / (9*64)): the sample deviation is good to 0.4 %.
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    dense = np.asarray(params["fc"]["kernel"])
    self.assertLessEqual(np.abs(dense).max(), 1 / 8)  # 64 inputs
    self.assertGreater(np.abs(dense).max(), 0.95 / 8)
    np.testing.assert_array_equal(params["fc"]["bias"], np.zeros(10))


class ShapeTest(parameterized.TestCase):
  @parameterized.parameters(
    *[(name, (8, 8, 1)) for name in MODEL_NAMES],
    *[(name, (28, 28, 1)) for name in ("resnet20", "vgg11", "lenet5")],
    *[(name, (32, 32, 3)) for name in ("resnet56", "vgg11", "lenet5")],
    ("resnet8", (1, 1, 1)),
    ("resnet20", (13, 9, 2)),
    ("vgg11", (3, 5, 1)),
    ("vgg11", (96, 64, 3)),
    ("lenet5", (1, 2, 4)),
    ("imagenet_resnet18", (224, 224, 3)),
    ("imagenet_resnet34", (65, 47, 3)),
  )
  def test_forward_accepts_any_size(self, name, image_shape):
    model = _create(name, num_classes=7)
    x = jax.ShapeDtypeStruct((3, *image_shape), jnp.float32)
    variables = _init_abstract(model, image_shape)
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, False), variables, x)
    self.assertEqual((logits.shape, logits.dtype), ((3, 7), jnp.float32))

  def _trace_widths(self, name, image_shape, paths):
    model = _create(name)
    variables = _init_abstract(model, image_shape)
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    _, state = jax.eval_shape(
      lambda v, x: model.apply(v, x, False, capture_intermediates=True, mutable=["intermediates"]),
      variables,
      x,
    )
    shapes = _shapes(state["intermediates"])
    return [shapes[f"{path}/__call__/0"][1:3] for path in paths]

  def test_map_sizes_of_the_imagenet_network(self):
    # Stem, then (after pooling to 56) the four stages; both 3x3/2 and 1x1/2 halve.
    paths = ("conv1", "layer1_0/conv1", "layer1_1", "layer2_1", "layer3_1", "layer4_1")
    widths = self._trace_widths("imagenet_resnet18", (224, 224, 3), paths)
    self.assertEqual(widths, [(n, n) for n in (112, 56, 56, 28, 14, 7)])
    widths = self._trace_widths(
      "imagenet_resnet18", (224, 224, 3), ("layer2_0/conv1", "layer2_0/downsample_0")
    )
    self.assertEqual(widths, [(28, 28), (28, 28)])

  def test_map_sizes_of_vgg_stop_at_one(self):
    paths = [f"conv{i}" for i in range(1, 9)]
    widths = self._trace_widths("vgg11", (32, 32, 3), paths)
    self.assertEqual(widths, [(n, n) for n in (32, 16, 8, 8, 4, 4, 2, 2)])
    widths = self._trace_widths("vgg11", (9, 5, 1), paths)
    self.assertEqual(widths, [(9, 5), (4, 2), (2, 1), (2, 1), (2, 1), (2, 1), (2, 1), (2, 1)])

  def test_strided_convolution_is_padded_symmetrically(self):
    # An oracle in float64: pad by 3 on every side, then correlate at every other position.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 10, 10, 2))
    layers = LayerFactory(
      quantization=Quantization.none(),
      batch_norm="global",
      batch_norm_affine=True,
      axis_name=None,
      dtype=jnp.float32,
    )
    conv = layers.conv(4, 7, stride=2, quantizer=None, name="conv")
    images = jnp.asarray(x, jnp.float32)
    actual, variables = conv.init_with_output(jax.random.key(0), images)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    expected = np.zeros((1, 5, 5, 4))
    for i in range(5):
      for j in range(5):
        window = padded[0, 2 * i : 2 * i + 7, 2 * j : 2 * j + 7]
        expected[0, i, j] = np.einsum("hwc,hwco->o", window, kernel)
    np.testing.assert_allclose(actual, expected, atol=1e-5)  # 98 float32 products of O(0.1)


class QuantizationOptionTest(parameterized.TestCase):
  @parameterized.parameters(
    ("resnet8", "conv1/kernel", "fc/kernel"),
    ("vgg11", "conv1/kernel", "fc/kernel"),
    ("lenet5", "conv1/kernel", "fc2/kernel"),
    ("imagenet_resnet18", "conv1/kernel", "fc/kernel"),
  )
  def test_first_and_last_follow_their_fields(self, name, first, last):
    model = _create(name, Quantization(weight=Binary(), first=Ternary(), last=Uniform(4)))
    x = jnp.zeros((1, 8, 8, 3))
    found = weight_quantizers(model, x, False, rngs=jax.random.key(0))
    self.assertEqual(found[first], Ternary())
    self.assertEqual(found[last], Uniform(4))
    others = {path: q for path, q in found.items() if path not in (first, last)}
    self.assertNotEmpty(others)
    self.assertEqual(set(others.values()), {Binary()})

    kernels = {p for p in _shapes(_init_abstract(model, (8, 8, 3))["params"]) if "kernel" in p}
    self.assertEqual(set(found), kernels)
    inner = _create(name, Quantization(weight=Binary()))
    found = weight_quantizers(inner, x, False, rngs=jax.random.key(0))
    self.assertEqual(set(found), kernels - {first, last})
    floating = _create(name, Quantization.none())
    self.assertEmpty(weight_quantizers(floating, x, False, rngs=jax.random.key(0)))

  @parameterized.parameters(
    # own: the stem and two a block. stream: one inner a block and one a stage; network: one in all.
    ("resnet8", 1 + 2 * 3, 3 + 3, 3 + 1),
    ("resnet20", 1 + 2 * 9, 9 + 3, 9 + 1),
    ("imagenet_resnet18", 1 + 2 * 8, 8 + 4, 8 + 1),
    ("imagenet_resnet34", 1 + 2 * 16, 16 + 4, 16 + 1),
  )
  def test_streams_share_alphas(self, name, own, stream, network):
    image_shape = (8, 8, 3)
    self.assertLen(_alphas(_create(name), image_shape), own)
    shared = _alphas(_create(name, residual_alpha="stream"), image_shape)
    self.assertLen(shared, stream)
    self.assertIn("params/layer1_act/alpha", shared)
    shared = _alphas(_create(name, residual_alpha="network"), image_shape)
    self.assertLen(shared, network)
    self.assertIn("params/residual_act/alpha", shared)

  def test_residual_sums_of_a_stream_count_in_alphas(self):
    model = _create("resnet14", residual_alpha="stream")
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = _init(model, x)
    # Distinct alphas, so that a block with the wrong one would be seen.
    for index, path in enumerate(("layer1_act", "layer2_act", "layer3_act")):
      variables["params"][path]["alpha"] = jnp.float32((0.3, 0.17, 0.23)[index])
    _, state = _jit(lambda v, x: model.apply(v, x, True, capture_intermediates=True, mutable=True))(
      variables, x
    )
    outputs = state["intermediates"]
    stem = outputs["layer1_act"]["__call__"]
    self.assertLen(stem, 3)  # the stem and two blocks
    for stage, alpha in ((1, 0.3), (2, 0.17), (3, 0.23)):
      for index in range(2):
        codes = np.asarray(outputs[f"layer{stage}_{index}"]["__call__"][0]) / np.float32(alpha)
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-5)  # codes up to 15, float32
        self.assertGreater(codes.max(), 0.5)

  def test_alpha_init_reaches_every_activation(self):
    quantization = Quantization(activation_bits=2, alpha_init=0.75)
    params = _init(_create("lenet5", quantization), jnp.zeros((1, 1, 1, 1)))["params"]
    alphas = [float(params[f"act{index}"]["alpha"]) for index in (1, 2, 3)]
    self.assertEqual(alphas, [0.75] * 3)


class ErrorTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("name", {"name": "resnet21"}, r"name must be one of resnet8, .*lenet5, got 'resnet21'"),
    ("batch_norm", {"batch_norm": "local"}, "batch_norm must be one of global, per_replica"),
    (
      "residual_alpha",
      {"residual_alpha": "all"},
      "residual_alpha must be one of own, stream, network",
    ),
    ("stream", {"name": "vgg11", "residual_alpha": "stream"}, 'must be "own" for vgg11'),
    ("num_classes", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
  )
  def test_create_model(self, change, message):
    arguments = {"name": "resnet8", "num_classes": 10, "quantization": _1W4A, **change}
    with self.assertRaisesRegex(ValueError, message):
      create_model(**arguments)

  def test_activation_bits(self):
    for bits in (0, 9):
      with self.assertRaisesRegex(ValueError, rf"activation_bits must be in \[1, 8\], got {bits}"):
        Quantization(activation_bits=bits)

  def test_depth(self):
    for depth in (2, 18, 21):
      with self.assertRaisesRegex(ValueError, f"depth must be 6n \\+ 2 .* got {depth}"):
        cifar_resnet(depth)

  def test_images(self):
    model = _create("resnet8")
    with self.assertRaisesRegex(TypeError, "x must be floating, got uint8"):
      model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8), False)
    with self.assertRaisesRegex(ValueError, r"got shape \(8, 8, 1\)"):
      model.init(jax.random.key(0), jnp.zeros((8, 8, 1)), False)

  def test_models_are_values(self):
    self.assertEqual(_create("resnet8"), _create("resnet8"))
    self.assertEqual(hash(_create("resnet8")), hash(_create("resnet8")))
    self.assertNotEqual(_create("resnet8"), _create("resnet8", Quantization.none()))
