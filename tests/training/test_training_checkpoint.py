"""Checkpoints: what is saved comes back bit for bit, or not at all."""

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bcgd_jax.errors import UsageError
from bcgd_jax.training.checkpoint import CheckpointMeta, CheckpointStore


@flax.struct.dataclass
class State:
  step: jax.Array
  params: Any
  opt_state: Any
  unused: Any


def make_state() -> State:
  """Every container and dtype a training state may hold, with values that casts would spoil."""
  bits = np.array([0x7FC00001, 0xFF812345, 0x80000000, 0x00000001, 0x7F800000], np.uint32)
  params = {
    "conv": {"kernel": jnp.asarray(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4))},
    "odd": jnp.asarray(bits.view(np.float32)),  # NaNs with payloads, -0.0, a subnormal, infinity
    "half": jnp.array([1.0, -0.0, jnp.nan, 3.1], jnp.bfloat16),
    "half_ieee": jnp.array([1.0, 6e-8], jnp.float16),
    "codes": jnp.array([-1, 0, 1], jnp.int8),
    "image": jnp.array([[0, 255]], jnp.uint8),
    "key_data": jnp.array([2**32 - 1, 7], jnp.uint32),
    "mask": jnp.array([True, False]),
    "rank_one_of_none": jnp.zeros((0, 3), jnp.bfloat16),
    "alpha": jnp.array(-0.0, jnp.float32),
  }
  trained = {"conv": params["conv"], "alpha": params["alpha"]}
  only_conv = {"conv": True, "alpha": False}
  optimizer = optax.chain(
    optax.identity(),
    optax.masked(optax.trace(0.9), only_conv),
    optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
  )
  return State(
    step=jnp.array(7, jnp.int32),
    params=params,
    opt_state=optimizer.init(trained),
    unused={"none": None, "dict": {}, "tuple": (), "list": [jnp.array(1, jnp.int32), None]},
  )


def to_abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_bitwise_equal(actual: Any, expected: Any) -> None:
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  pairs = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
  for (path, a), e in pairs:
    assert (a.shape, a.dtype) == (e.shape, e.dtype), path
    assert np.asarray(a).tobytes() == np.asarray(e).tobytes(), path


class RoundTripTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _make_store(self, tmp_path: Path) -> None:
    self.directory = tmp_path / "run" / "checkpoints"
    self.store = CheckpointStore(self.directory, config_hash="abc")

  def save(self, tree: Any, step: int = 1) -> None:
    self.store.save(step, tree, phase="float", extra={})

  @parameterized.named_parameters(("abstract", to_abstract), ("arrays", lambda tree: tree))
  def test_state_comes_back_bit_for_bit(self, make_abstract):
    state = make_state()
    self.save(state, 7)
    restored = self.store.restore(7, make_abstract(state))
    assert_bitwise_equal(restored, state)
    for leaf in jax.tree.leaves(restored):
      self.assertIsInstance(leaf, jax.Array)
      self.assertFalse(leaf.committed)
      self.assertLen(leaf.devices(), 1)

  def test_meta_comes_back(self):
    extra = {"records": 12, "seconds": {"float": 0.1 + 0.2}, "done": False, "none": None}
    self.store.save(3, {"w": jnp.ones(2)}, phase="quantized", extra=extra)
    again = CheckpointStore(self.directory, config_hash="abc")
    self.assertEqual(again.latest(), CheckpointMeta(step=3, phase="quantized", extra=extra))
    self.assertEqual(again.steps(), (3,))
    self.assertEqual(sorted(p.name for p in self.directory.iterdir()), ["step_00000003"])
    self.assertEqual(
      sorted(p.name for p in (self.directory / "step_00000003").iterdir()),
      ["manifest.json", "state"],
    )

  def test_empty_directory_has_no_latest_and_is_not_created(self):
    self.assertIsNone(self.store.latest())
    self.assertEqual(self.store.steps(), ())
    self.assertFalse(self.directory.exists())

  def test_paths_of_any_characters_stay_apart(self):
    tree = {
      "a.b": jnp.array([1.0]),
      "a": {"b": jnp.array([2.0]), "c d": jnp.array([3.0]), "": jnp.array([4.0])},
      "ä%/2F": (jnp.array([5.0]), jnp.array([6.0])),
    }
    self.save(tree)
    assert_bitwise_equal(self.store.restore(1, to_abstract(tree)), tree)

  def test_a_single_array_is_a_tree(self):
    self.save(jnp.arange(3))
    assert_bitwise_equal(self.store.restore(1, jnp.zeros(3, jnp.int32)), jnp.arange(3))

  def test_numpy_leaves_come_back_as_jax_arrays(self):
    self.save({"a": np.arange(3, dtype=np.int32), "b": np.float32(2.5)})
    want = {"a": jnp.arange(3), "b": jnp.float32(2.5)}
    assert_bitwise_equal(self.store.restore(1, to_abstract(want)), want)

  def test_names_without_values_may_differ(self):
    self.save({"w": jnp.ones(2), "old": optax.EmptyState()})
    restored = self.store.restore(1, {"w": jnp.zeros(2), "new": None})
    assert_bitwise_equal(restored, {"w": jnp.ones(2), "new": None})

  def test_double_precision_only_under_x64(self):
    with jax.enable_x64(True):
      state = {"w": jnp.array([1 / 3, 1e-300]), "n": jnp.array(2**40)}
      self.save(state)
      self.assertEqual(state["w"].dtype, jnp.float64)
      assert_bitwise_equal(self.store.restore(1, to_abstract(state)), state)
    with self.assertRaisesRegex(ValueError, r"leaf 'n' must .* got int64; .* jax_enable_x64"):
      self.store.restore(1, to_abstract(state))


class PlacementTest(parameterized.TestCase):
  """Several devices: any layout may be saved; restored arrays go into every mapping."""

  @pytest.fixture(autouse=True)
  def _make_store(self, tmp_path: Path) -> None:
    self.store = CheckpointStore(tmp_path, config_hash="abc")
    self.mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    self.tree = {"w": jnp.arange(16, dtype=jnp.float32), "n": jnp.array(3, jnp.int32)}

  def step(self, state: Any, batch: jax.Array) -> Any:
    mean = jax.lax.pmean(batch.mean(), "data")
    return {"w": state["w"] + mean, "n": state["n"] + 1}

  def map_step(self, mapping: str) -> Any:
    if mapping == "pmap":
      return jax.pmap(self.step, axis_name="data", in_axes=(None, 0), out_axes=None)
    spec = (PartitionSpec(), PartitionSpec("data"))
    return jax.jit(
      jax.shard_map(
        self.step, mesh=self.mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False
      )
    )

  @parameterized.parameters("pmap", "shard_map")
  def test_mapped_step_takes_what_was_restored_and_its_result_is_saved(self, mapping):
    step = self.map_step(mapping)
    batch = jnp.arange(16, dtype=jnp.float32).reshape(8, 2)  # mean 7.5
    self.store.save(3, self.tree, phase="a", extra={})
    after = step(self.store.restore(3, to_abstract(self.tree)), batch)
    self.assertLen(after["w"].devices(), 8)
    self.store.save(4, after, phase="a", extra={})
    restored = self.store.restore(4, to_abstract(after))
    want = {"w": jnp.arange(16, dtype=jnp.float32) + 7.5, "n": jnp.array(4, jnp.int32)}
    assert_bitwise_equal(restored, want)
    assert_bitwise_equal(step(restored, batch)["n"], jnp.array(5, jnp.int32))

  @parameterized.named_parameters(("split", "data"), ("replicated", None))
  def test_named_sharding_is_kept(self, axis):
    sharding = NamedSharding(self.mesh, PartitionSpec(axis))
    placed = {"w": jax.device_put(self.tree["w"], sharding), "n": self.tree["n"]}
    self.store.save(1, placed, phase="a", extra={})
    abstract = {"w": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=sharding), "n": placed["n"]}
    for wanted in (abstract, placed):
      restored = self.store.restore(1, wanted)
      assert_bitwise_equal(restored, self.tree)
      self.assertEqual(restored["w"].sharding, sharding)
      self.assertFalse(restored["n"].committed)


class ArgumentsTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _make_store(self, tmp_path: Path) -> None:
    self.directory = tmp_path
    self.store = CheckpointStore(tmp_path, config_hash="abc")

  @parameterized.named_parameters(
    (
      "number",
      {"a": {"b": 1.0}},
      TypeError,
      r"leaf .a/b. must be .* got float; .*jnp.asarray",
    ),
    ("abstract", {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}, TypeError, "ShapeDtypeStruct"),
    ("string", {"a": np.array(["x"])}, ValueError, "leaf 'a' must be numeric .* got dtype <U1"),
    ("float64", {"a": np.zeros(2)}, ValueError, "leaf 'a' must .* float64; .* jax_enable_x64"),
    ("byte_order", {"a": np.zeros(2, ">f4")}, ValueError, "leaf 'a' must .* got >f4"),
    ("no_leaf", {"a": None}, ValueError, "at least one array with a value"),
    ("no_value", {"a": np.zeros((0, 2), np.float32)}, ValueError, "at least one array with a"),
    ("same_path", {"a/b": np.int32(1), "a": {"b": np.int32(2)}}, ValueError, "two at 'a/b'"),
  )
  def test_tree_that_would_not_come_back_is_refused(self, tree, error, text):
    with self.assertRaisesRegex(error, text):
      self.store.save(1, tree, phase="a", extra={})
    self.assertIsNone(self.store.latest())

  def test_typed_key_is_refused_with_the_remedy(self):
    with self.assertRaisesRegex(ValueError, r"leaf 'rng' .* jax\.random\.key_data\(key\)"):
      self.store.save(1, {"rng": jax.random.key(0)}, phase="a", extra={})

  @parameterized.named_parameters(
    ("negative", {"step": -1}, ValueError, "step must be >= 0, got -1"),
    ("array", {"step": np.int32(1)}, TypeError, "step must be a Python int, got int32"),
    ("bool", {"step": True}, TypeError, "step must be a Python int, got bool"),
    ("phase", {"phase": ""}, ValueError, "phase must be a non-empty string"),
    ("nan", {"extra": {"a": float("nan")}}, ValueError, "extra must hold JSON values"),
    ("tuple", {"extra": {"a": (1, 2)}}, ValueError, "extra must be a dict that JSON gives back"),
    ("int_key", {"extra": {1: 2}}, ValueError, "extra must be a dict that JSON gives back"),
    ("array_value", {"extra": {"a": np.int32(1)}}, ValueError, "extra must hold JSON values"),
    ("list", {"extra": []}, ValueError, "extra must be a dict"),
  )
  def test_save_arguments(self, changed, error, text):
    arguments = {"step": 1, "tree": {"w": jnp.ones(1)}, "phase": "a", "extra": {}} | changed
    with self.assertRaisesRegex(error, text):
      self.store.save(**arguments)

  @parameterized.named_parameters(
    ("keep", {"keep": 1}, ValueError, "keep must be >= 2, got 1"),
    ("keep_type", {"keep": 2.0}, TypeError, "keep must be a Python int, got float"),
    ("hash", {"config_hash": ""}, ValueError, "config_hash must be a non-empty string"),
  )
  def test_store_arguments(self, changed, error, text):
    with self.assertRaisesRegex(error, text):
      CheckpointStore(self.directory, **({"config_hash": "abc"} | changed))

  def test_file_in_place_of_the_directory(self):
    (self.directory / "file").write_text("x")
    with self.assertRaisesRegex(UsageError, "must be a directory, got the file .*/file"):
      CheckpointStore(self.directory / "file", config_hash="abc")

  def test_unknown_step(self):
    self.store.save(4, {"w": jnp.ones(1)}, phase="a", extra={})
    with self.assertRaisesRegex(ValueError, r"step must be one of \[4\], got 5"):
      self.store.restore(5, {"w": jnp.ones(1)})

  def test_every_difference_between_trees_is_listed(self):
    saved = {"same": jnp.ones(2), "a": jnp.ones(2), "b": jnp.ones(2), "only_saved": jnp.ones(1)}
    self.store.save(1, saved, phase="a", extra={})
    wanted = {
      "same": jnp.ones(2),
      "a": jnp.ones((2, 1)),
      "b": jnp.ones(2, jnp.bfloat16),
      "only_wanted": {"w": jnp.array(1, jnp.int32)},
    }
    with self.assertRaises(ValueError) as caught:
      self.store.restore(1, to_abstract(wanted))
    self.assertEqual(
      str(caught.exception).splitlines()[1:],
      [
        "  dtype of b: wanted bfloat16, saved float32",
        "  missing in the checkpoint: only_wanted/w int32[]",
        "  only in the checkpoint: only_saved float32[1]",
        "  shape of a: wanted [2, 1], saved [2]",
      ],
    )

  def test_long_lists_of_differences_are_cut(self):
    self.store.save(1, {"w": jnp.ones(1)}, phase="a", extra={})
    wanted = {f"w{i}": jnp.ones(1) for i in range(40)}
    with self.assertRaisesRegex(ValueError, r"and 21 more differences$"):
      self.store.restore(1, wanted)
