"""Numerics inside other people's mappings: shard_map with its default check, pmap, vmap, scan."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bcgd_jax import numerics

NUM_DEVICES = 4
ALPHA = np.float32(0.4)


def _draw_batch():
  rng = np.random.default_rng(0)
  x = rng.normal(0.3, 0.7, (8, 6)).astype(np.float32)
  # Integers: every sum of cotangent times proxy is exact in float32, in any order.
  upstream = rng.integers(-8, 9, x.shape).astype(np.float32)
  return x, upstream


def _differentiate(x, upstream, alpha, ste="clipped"):
  def loss(x, alpha):
    return jnp.sum(upstream * numerics.quantized_relu(x, alpha, num_bits=2, ste=ste))

  return jax.grad(loss, argnums=(0, 1))(x, alpha)


def _make_mesh(axis_type):
  return jax.make_mesh((NUM_DEVICES,), ("data",), axis_types=(axis_type,))


def _place(mesh, spec, *arrays):
  return [jax.device_put(a, NamedSharding(mesh, spec)) for a in arrays]


AXIS_TYPES = (("auto", AxisType.Auto), ("explicit", AxisType.Explicit))


class ShardMapTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f"{name}_{mode}_{'callable' if callable(ste) else ste}", axis_type, transform, ste)
    for name, axis_type in AXIS_TYPES
    for mode, transform in (("eager", lambda f: f), ("jitted", jax.jit))
    for ste in ("clipped", lambda x, alpha, num_levels: jnp.sign(x))
  )
  def test_gradient_taken_inside_equals_one_device(self, axis_type, transform, ste):
    x, upstream = _draw_batch()
    mesh = _make_mesh(axis_type)
    mapped = jax.shard_map(
      lambda x, u, a: _differentiate(x, u, a, ste=ste),
      mesh=mesh,
      in_specs=(P("data"), P("data"), P()),
      out_specs=(P("data"), P()),
    )
    in_x, in_alpha = transform(mapped)(
      *_place(mesh, P("data"), x, upstream), *_place(mesh, P(), ALPHA)
    )
    expected_x, expected_alpha = _differentiate(x, upstream, ALPHA, ste=ste)
    self.assertNotEqual(float(expected_alpha), 0.0)
    np.testing.assert_array_equal(in_x, expected_x)
    np.testing.assert_array_equal(in_alpha, expected_alpha)

  @parameterized.named_parameters(*AXIS_TYPES)
  def test_gradient_taken_outside_equals_one_device(self, axis_type):
    x, upstream = _draw_batch()
    mesh = _make_mesh(axis_type)
    apply = jax.shard_map(
      lambda x, a: numerics.quantized_relu(x, a, num_bits=2),
      mesh=mesh,
      in_specs=(P("data"), P()),
      out_specs=P("data"),
    )
    (x_placed, upstream_placed), (alpha,) = (
      _place(mesh, P("data"), x, upstream),
      _place(mesh, P(), ALPHA),
    )
    y, vjp = jax.vjp(apply, x_placed, alpha)
    np.testing.assert_array_equal(y, numerics.quantized_relu(x, ALPHA, num_bits=2))
    for actual, expected in zip(
      vjp(upstream_placed), _differentiate(x, upstream, ALPHA), strict=True
    ):
      np.testing.assert_array_equal(actual, expected)

  @parameterized.named_parameters(*AXIS_TYPES)
  def test_automatic_partitioning_equals_one_device(self, axis_type):
    x, upstream = _draw_batch()
    mesh = _make_mesh(axis_type)
    gradients = jax.jit(_differentiate)(
      *_place(mesh, P("data"), x, upstream), *_place(mesh, P(), ALPHA)
    )
    for actual, expected in zip(gradients, _differentiate(x, upstream, ALPHA), strict=True):
      np.testing.assert_array_equal(actual, expected)

  def test_alpha_of_each_device_and_a_shared_x(self):
    x, upstream = _draw_batch()
    alphas = np.float32([0.1, 0.2, 0.4, 0.8])
    mapped = jax.shard_map(
      lambda x, u, a: jax.tree.map(lambda g: g[None], _differentiate(x, u, a[0])[1:]),
      mesh=_make_mesh(AxisType.Auto),
      in_specs=(P(), P(), P("data")),
      out_specs=P("data"),
    )
    expected = [_differentiate(x, upstream, alpha)[1] for alpha in alphas]
    np.testing.assert_array_equal(jax.jit(mapped)(x, upstream, alphas)[0], expected)

  def test_without_the_check_each_device_keeps_its_own_sum(self):
    x, upstream = _draw_batch()
    mapped = jax.shard_map(
      lambda x, u, a: _differentiate(x, u, a)[1][None],
      mesh=_make_mesh(AxisType.Auto),
      in_specs=(P("data"), P("data"), P()),
      out_specs=P("data"),
      check_vma=False,
    )
    parts = np.split(x, NUM_DEVICES), np.split(upstream, NUM_DEVICES)
    expected = [_differentiate(a, b, ALPHA)[1] for a, b in zip(*parts, strict=True)]
    np.testing.assert_array_equal(jax.jit(mapped)(x, upstream, ALPHA), expected)

  @parameterized.named_parameters(
    ("binary", numerics.Binary()),
    ("lloyd", numerics.Ternary()),
    ("sort", numerics.Ternary("sort")),
    ("uniform", numerics.Uniform(4, lloyd_steps=2)),
  )
  def test_quantizers_of_shared_and_of_own_weights(self, q):
    w = np.random.default_rng(1).standard_normal((NUM_DEVICES, 3, 5)).astype(np.float32)
    w_shared = w[0]

    def apply(w, w_shared):
      project = numerics.straight_through(q)
      gradient = jax.grad(lambda v: jnp.sum(project(v) * w[0]))(w_shared)
      return project(w[0])[None], project(w_shared), gradient

    own, shared, gradient = jax.jit(
      jax.shard_map(
        apply,
        mesh=_make_mesh(AxisType.Auto),
        in_specs=(P("data"), P()),
        out_specs=(P("data"), P(), P()),
      )
    )(w, w_shared)
    # One rounding of the scale may differ between the programs.
    np.testing.assert_allclose(own, np.stack([q(v) for v in w]), rtol=1e-6)
    np.testing.assert_allclose(shared, q(w_shared), rtol=1e-6)
    np.testing.assert_allclose(gradient, w.sum(axis=0), rtol=1e-5, atol=1e-6)


class OtherMappingTest(parameterized.TestCase):
  def test_pmap_sums_over_its_own_examples(self):
    x, upstream = _draw_batch()
    split = [v.reshape(NUM_DEVICES, 2, 6) for v in (x, upstream)]
    mapped = jax.pmap(
      _differentiate, in_axes=(0, 0, None), axis_name="data", devices=jax.devices()[:NUM_DEVICES]
    )
    in_x, in_alpha = mapped(*split, ALPHA)
    expected_x, expected_alpha = _differentiate(x, upstream, ALPHA)
    np.testing.assert_array_equal(np.reshape(in_x, x.shape), expected_x)
    np.testing.assert_array_equal(np.sum(in_alpha), expected_alpha)

  def test_scan_and_checkpoint(self):
    x, _ = _draw_batch()

    def apply(x, alpha, wrap):
      def body(carry, row):
        y = wrap(lambda r: numerics.quantized_relu(r, alpha, num_bits=2))(row)
        return carry + jnp.sum(y), None

      return jax.lax.scan(body, jnp.float32(0.0), x)[0]

    expected = _differentiate(x, np.ones_like(x), ALPHA)
    for wrap in (lambda f: f, jax.checkpoint):
      actual = jax.jit(jax.grad(lambda x, a, wrap=wrap: apply(x, a, wrap), argnums=(0, 1)))(
        x, ALPHA
      )
      jax.tree.map(np.testing.assert_array_equal, actual, expected)
