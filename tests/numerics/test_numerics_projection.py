"""Projection of parameter trees, and the bytes of the encoded tree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bcgd_jax import numerics

MODES = (("eager", lambda f: f), ("jitted", jax.jit))
QUANTIZERS = {
  "conv/kernel": numerics.Binary(),
  "blocks/1/kernel": numerics.Uniform(4, channel_axis=-1),
}


def _make_params():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  return {
    "conv": {"kernel": draw(3, 3, 2, 5), "bias": draw(5)},
    "blocks": [{"kernel": draw(4, 4)}, {"kernel": draw(4, 6)}],
    "alpha": jnp.float32(0.2),
  }


class ProjectionTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f"{mode}_{straight}", transform, straight)
    for mode, transform in MODES
    for straight in (False, True)
  )
  def test_quantizes_the_named_leaves_only(self, transform, straight):
    params = _make_params()
    project = transform(numerics.make_projection(QUANTIZERS, straight_through=straight))
    projected = project(params)
    expected = _make_params()
    expected["conv"]["kernel"] = transform(numerics.Binary())(params["conv"]["kernel"])
    expected["blocks"][1]["kernel"] = transform(QUANTIZERS["blocks/1/kernel"])(
      params["blocks"][1]["kernel"]
    )
    jax.tree.map(np.testing.assert_array_equal, projected, expected)

  def test_other_leaves_are_the_same_objects(self):
    params = _make_params()
    for straight in (False, True):
      projected = numerics.make_projection(QUANTIZERS, straight_through=straight)(params)
      self.assertIs(projected["conv"]["bias"], params["conv"]["bias"])
      self.assertIs(projected["blocks"][0]["kernel"], params["blocks"][0]["kernel"])
      self.assertIs(projected["alpha"], params["alpha"])

  @parameterized.named_parameters(*MODES)
  def test_straight_through_derivative_is_the_cotangent(self, transform):
    params = _make_params()
    upstream = jax.tree.map(lambda p: jnp.cos(p), params)

    def loss(params):
      projected = numerics.make_projection(QUANTIZERS, straight_through=True)(params)
      return sum(
        jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (projected, upstream)), strict=True)
      )

    jax.tree.map(np.testing.assert_array_equal, transform(jax.grad(loss))(params), upstream)

  def test_missing_path_names_the_existing_ones_when_traced(self):
    project = numerics.make_projection({"conv/kernal": numerics.Binary(), **QUANTIZERS})
    for call in (project, jax.jit(project), lambda p: jax.eval_shape(project, p)):
      with self.assertRaisesRegex(ValueError, "got 'conv/kernal'; existing paths: .*'conv/kernel'"):
        call(_make_params())
    with self.assertRaisesRegex(ValueError, "got 'conv'; existing"):
      numerics.make_projection({"conv": numerics.Binary()})(_make_params())
    with self.assertRaisesRegex(ValueError, "got 'a/kernel'"):
      numerics.make_projection({"a/kernel": numerics.Binary()})({"a": {}, "b": jnp.ones(2)})

  def test_later_changes_of_the_mapping_have_no_effect(self):
    quantizers = dict(QUANTIZERS)
    project = numerics.make_projection(quantizers)
    quantizers["nowhere"] = numerics.Binary()
    project(_make_params())

  @parameterized.named_parameters(("optax", optax.MaskedNode()), ("none", None))
  def test_masked_leaves_are_skipped(self, mask):
    params = _make_params()
    params["conv"]["kernel"] = mask
    projected = numerics.make_projection(QUANTIZERS)(params)
    self.assertIs(projected["conv"]["kernel"], mask)
    self.assertLen(np.unique(projected["blocks"][1]["kernel"][:, 0]), 4)

  def test_masked_subtree_is_skipped(self):
    params = _make_params()
    params["blocks"] = optax.MaskedNode()
    projected = jax.jit(numerics.make_projection(QUANTIZERS))(params)
    self.assertEqual(projected["blocks"], optax.MaskedNode())
    self.assertLen(np.unique(projected["conv"]["kernel"]), 2)

  def test_inside_optax_masked(self):
    project = numerics.make_projection(QUANTIZERS)

    def update(updates, state, params):
      projected = project(params)
      return jax.tree.map(lambda q, p: q - p, projected, params), state

    inner = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    params = _make_params()
    is_conv = {"conv": True, "blocks": False, "alpha": False}
    transformation = optax.masked(inner, is_conv)
    updates, _ = transformation.update(params, transformation.init(params), params)
    np.testing.assert_array_equal(
      updates["conv"]["kernel"],
      numerics.Binary()(params["conv"]["kernel"]) - params["conv"]["kernel"],
    )
    self.assertIs(updates["blocks"][1]["kernel"], params["blocks"][1]["kernel"])

  def test_path_names_one_leaf(self):
    params = {"a": {"b": jnp.float32([1.0, 3.0])}, "c": jnp.float32([1.0, 3.0])}
    projected = numerics.make_projection({"a/b": numerics.Binary()})(params)
    np.testing.assert_array_equal(projected["a"]["b"], [2.0, 2.0])
    np.testing.assert_array_equal(projected["c"], [1.0, 3.0])

  def test_empty_mapping_returns_the_same_leaves(self):
    params = _make_params()
    for a, b in zip(
      *map(jax.tree.leaves, (numerics.make_projection({})(params), params)), strict=True
    ):
      self.assertIs(a, b)


class QuantizeParamsTest(parameterized.TestCase):
  def test_tree_and_bytes(self):
    params = _make_params()
    stored = numerics.quantize_params(params, QUANTIZERS)
    # conv/kernel: 3*3*2*5 = 90 codes of 1 bit -> 12 bytes, 1 scale -> 4           =  16
    # blocks/1/kernel: 4*6 = 24 codes of 4 bits -> 12 bytes, 6 scales -> 24          =  36
    # conv/bias 5, blocks/0/kernel 16, alpha 1: 22 floats of 4 bytes                 =  88
    self.assertEqual(stored.num_bytes, 16 + 36 + 88)
    self.assertIsInstance(stored.num_bytes, int)
    self.assertIsInstance(stored.tree["conv"]["kernel"], numerics.Encoded)
    self.assertIs(stored.tree["conv"]["bias"], params["conv"]["bias"])
    decoded = jax.tree.map(
      lambda leaf: leaf.decode(jnp.float32) if isinstance(leaf, numerics.Encoded) else leaf,
      stored.tree,
      is_leaf=lambda leaf: isinstance(leaf, numerics.Encoded),
    )
    projected = numerics.make_projection(QUANTIZERS)(params)
    jax.tree.map(np.testing.assert_array_equal, decoded, projected)

  @parameterized.named_parameters(
    ("binary", numerics.Binary(), 2 + 4),  # ceil(9 / 8) + one scale
    ("ternary", numerics.Ternary(), 3 + 4),  # ceil(18 / 8)
    ("uniform3", numerics.Uniform(3), 4 + 4),  # ceil(27 / 8)
    ("uniform8", numerics.Uniform(8), 9 + 4),
    ("stacked", numerics.Vmapped(numerics.Binary(), 1), 2 + 3 * 4),  # a scale for each of 3 rows
  )
  def test_packed_bytes_round_up(self, quantizer, num_bytes):
    params = {"kernel": jnp.ones((3, 3)), "half": jnp.ones(5, jnp.bfloat16)}
    stored = numerics.quantize_params(params, {"kernel": quantizer})
    self.assertEqual(stored.num_bytes, num_bytes + 10)  # bfloat16: 5 * 2

  def test_float_tree_counts_its_own_bytes(self):
    params = _make_params()
    stored = numerics.quantize_params(params, {})
    self.assertEqual(stored.num_bytes, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))

  def test_missing_path(self):
    with self.assertRaisesRegex(ValueError, "existing paths"):
      numerics.quantize_params(_make_params(), {"conv": numerics.Binary()})
