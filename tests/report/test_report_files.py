"""JSON with non-finite numbers, atomic writes, and what the readers reject."""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import fake_run
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bcgd_jax.errors import UsageError
from bcgd_jax.report import files, records, workdir


def _reject_constant(name: str) -> Any:
  raise AssertionError(f"not standard JSON: {name}")


class JsonTest(parameterized.TestCase):
  def test_non_finite_numbers_are_standard_json_and_come_back(self):
    value = {"a": [math.nan, math.inf, -math.inf, 1.5], "b": {"c": math.nan}, "d": "Nan"}
    text = files.dump_json(value)
    strict = json.loads(text, parse_constant=_reject_constant)
    self.assertEqual(
      strict, {"a": ["NaN", "Infinity", "-Infinity", 1.5], "b": {"c": "NaN"}, "d": "Nan"}
    )
    back = files.load_json(text)
    self.assertTrue(math.isnan(back["a"][0]) and math.isnan(back["b"]["c"]))
    self.assertEqual(back["a"][1:], [math.inf, -math.inf, 1.5])
    self.assertEqual(back["d"], "Nan")

  def test_bare_nan_of_other_writers_is_read(self):
    self.assertTrue(math.isnan(files.load_json('{"a": NaN}')["a"]))

  def test_array_values_become_plain(self):
    value = {
      "numpy": np.float32(0.5),
      "jax": jnp.float32(0.25),
      "nan": np.float32("nan"),
      "list": np.arange(3),
      "tuple": (1, True, None),
    }
    self.assertEqual(
      json.loads(files.dump_json(value)),
      {"numpy": 0.5, "jax": 0.25, "nan": "NaN", "list": [0, 1, 2], "tuple": [1, True, None]},
    )

  def test_floats_round_trip_exactly(self):
    values = np.random.default_rng(0).normal(size=100).tolist()
    self.assertEqual(files.load_json(files.dump_json(values)), values)

  def test_other_types_are_named(self):
    with self.assertRaisesRegex(TypeError, "object"):
      files.dump_json({"a": object()})


class AtomicWriteTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_replaces_and_leaves_no_temporary(self):
    path = self.folder / "a.txt"
    files.write_atomic(path, b"old")
    files.write_atomic(path, b"new")
    self.assertEqual(path.read_bytes(), b"new")
    self.assertEqual(os.listdir(self.folder), ["a.txt"])

  def test_failure_before_the_rename_keeps_the_old_file(self):
    path = self.folder / "a.txt"
    files.write_atomic(path, b"old")
    broken = mock.patch.object(os, "replace", side_effect=OSError("disk full"))
    with broken, self.assertRaisesRegex(OSError, "disk full"):
      files.write_atomic(path, b"new")
    self.assertEqual(path.read_bytes(), b"old")
    self.assertEqual(os.listdir(self.folder), ["a.txt"])

  def test_others_may_read_the_file(self):
    path = self.folder / "a.txt"
    previous = os.umask(0o022)
    try:
      files.write_atomic(path, b"x")
    finally:
      os.umask(previous)
    self.assertEqual(path.stat().st_mode & 0o777, 0o644)


class ReadMetricsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.path = self.folder / "metrics.jsonl"

  def test_reads_what_was_written(self):
    expected = fake_run.make_records()
    fake_run.write_records(self.folder, expected)
    self.assertEqual(records.read_metrics(self.folder), expected)

  def test_missing_file_is_named(self):
    with self.assertRaisesRegex(UsageError, "metrics.jsonl is missing"):
      records.read_metrics(self.folder)

  @parameterized.named_parameters(
    ("cut", b'{"step": 2, "phase": "flo'),
    ("cut_number", b'{"step": 2'),
    ("zeros", b"\0\0\0\0\0\0\0\0"),
    ("nothing", b""),
  )
  def test_torn_last_line_is_dropped(self, tail: bytes):
    whole = b'{"step": 1, "phase": "float", "kind": "note"}\n'
    self.path.write_bytes(whole + tail)
    self.assertEqual([r["step"] for r in records.read_metrics(self.folder)], [1])
    self.assertEqual([line for line, _ in records.read_metric_lines(self.path)], [whole])

  def test_whole_last_line_without_newline_is_kept(self):
    line = b'{"step": 1, "phase": "float", "kind": "note"}'
    self.path.write_bytes(line)
    self.assertEqual([kept for kept, _ in records.read_metric_lines(self.path)], [line + b"\n"])

  @parameterized.named_parameters(
    ("not_json", "{step: 1}", "one JSON object"),
    ("blank", "", "one JSON object"),
    ("list", "[1]", "one JSON object"),
    ("no_step", '{"phase": "a", "kind": "b"}', '"step" must be an integer >= 0, got None'),
    ("negative", '{"step": -1, "phase": "a", "kind": "b"}', "got -1"),
    ("bool_step", '{"step": true, "phase": "a", "kind": "b"}', "got True"),
    ("float_step", '{"step": 1.0, "phase": "a", "kind": "b"}', "got 1.0"),
    ("no_phase", '{"step": 1, "kind": "b"}', '"phase" must be a string'),
    ("no_kind", '{"step": 1, "phase": "b"}', '"kind" must be a string'),
    ("no_loss", '{"step": 1, "phase": "a", "kind": "train", "accuracy": 1}', '"loss" of a "train"'),
    (
      "text_loss",
      '{"step": 1, "phase": "a", "kind": "train", "loss": "low", "accuracy": 1}',
      "'low'",
    ),
    ("no_score", '{"step": 1, "phase": "a", "kind": "test"}', '"accuracy" of a "test"'),
    ("alpha", '{"step": 1, "phase": "a", "kind": "alpha", "alpha": {"p": null}}', '"alpha" of a'),
    ("codes", '{"step": 1, "phase": "a", "kind": "codes"}', '"changed" of a "codes" record'),
    ("dead", '{"step": 1, "phase": "a", "kind": "dead", "dead": [0.5]}', "got [0.5]"),
    ("timing", '{"step": 1, "phase": "a", "kind": "b", "timing": 3}', '"timing" must map names'),
    (
      "text_rho",
      '{"step": 1, "phase": "a", "kind": "train", "loss": 1, "accuracy": 1, "rho": "no"}',
      '"rho" of a "train" record must be a number, got \'no\'',
    ),
  )
  def test_bad_line_is_named(self, line: str, message: str):
    good = '{"step": 1, "phase": "float", "kind": "note"}\n'
    self.path.write_text(f"{good}{line}\n{good}", encoding="utf-8")
    with self.assertRaises(UsageError) as caught:
      records.read_metrics(self.folder)
    self.assertIn(f"{self.path}:2: ", str(caught.exception))
    self.assertIn(message, str(caught.exception))

  def test_nan_loss_is_a_number(self):
    record = {"step": 1, "phase": "a", "kind": "train", "loss": math.nan, "accuracy": 0.1}
    fake_run.write_records(self.folder, [record])
    self.assertTrue(math.isnan(records.read_metrics(self.folder)[0]["loss"]))


class ReadRunFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = fake_run.write_run(Path(self.enter_context(tempfile.TemporaryDirectory())))

  def test_reads_all(self):
    found = workdir.read_run_files(self.folder)
    self.assertEqual(found.run, fake_run.make_run())
    self.assertEqual(found.records, fake_run.make_records())
    self.assertEqual(found.weights, fake_run.make_weights())
    self.assertEqual(found.config, fake_run.CONFIG)

  @parameterized.parameters("config.json", "metrics.jsonl")
  def test_missing_file_is_named(self, name: str):
    (self.folder / name).unlink()
    with self.assertRaises(UsageError) as caught:
      workdir.read_run_files(self.folder)
    self.assertIn(f"{self.folder / name} is missing", str(caught.exception))

  def test_folder_of_something_else_is_named(self):
    (self.folder / "config.json").unlink()
    with self.assertRaisesRegex(UsageError, f"{self.folder} is not the folder of a run"):
      workdir.read_run_files(self.folder)

  @parameterized.parameters("", '{"step": 1, "phase": "float", "kind": "tr')
  def test_metrics_without_a_whole_record_are_named(self, text: str):
    (self.folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    with self.assertRaisesRegex(UsageError, "metrics.jsonl has no record yet"):
      workdir.read_run_files(self.folder)

  def test_run_that_goes_on(self):
    (self.folder / "run.json").unlink()
    self.assertIsNone(workdir.read_run_files(self.folder).run)

  @parameterized.named_parameters(
    ("no_block", {"model": {"name": "a"}}, '"data" must be an object, got None'),
    ("no_key", {"model": {}, "data": {"dataset": "a"}}, 'model: "name" is missing'),
    ("number", {"model": {"name": "a"}, "data": {"dataset": 3}}, "a string, got 3"),
  )
  def test_configuration_of_a_run_that_goes_on_is_checked(self, config: Any, message: str):
    (self.folder / "run.json").unlink()
    files.write_json(self.folder / "config.json", config)
    with self.assertRaisesRegex(UsageError, f"config.json: .*{message}"):
      workdir.read_run_files(self.folder)

  def test_weights_are_optional(self):
    (self.folder / "weights.json").unlink()
    self.assertEqual(workdir.read_run_files(self.folder).weights, {})

  @parameterized.parameters("run.json", "config.json", "weights.json")
  def test_broken_json_is_named(self, name: str):
    path = self.folder / name
    path.write_bytes(path.read_bytes()[:-10])
    with self.assertRaisesRegex(UsageError, f"{name} must hold one JSON object"):
      workdir.read_run_files(self.folder)

  @parameterized.named_parameters(
    ("accuracy", "float_test_accuracy", 98.6, r"a fraction in \[0, 1\] or null, got 98.6"),
    ("nan_accuracy", "quantized_test_accuracy", math.nan, "got nan"),
    ("bytes", "float_bytes", 1.5, "an integer >= 0, got 1.5"),
    ("bits", "weight_bits", "1", "an integer >= 0 or null, got '1'"),
    ("model", "model", 8, "a string, got 8"),
    ("seconds", "phase_seconds", {"float": "12"}, "an object of numbers"),
    ("layers", "layers", {}, "a list, got {}"),
    ("layer", "layers", [1], r"layers\[0\] must be an object, got 1"),
    ("layer_field", "layers", [{"path": "a"}], r'layers\[0\]: "kind" is missing'),
  )
  def test_bad_field_of_run_is_named(self, key: str, value: Any, message: str):
    files.write_json(self.folder / "run.json", {**fake_run.make_run(), key: value})
    with self.assertRaisesRegex(UsageError, f"run.json: .*{message}"):
      workdir.read_run_files(self.folder)

  def test_missing_field_of_run_is_named(self):
    run = fake_run.make_run()
    del run["num_parameters"]
    files.write_json(self.folder / "run.json", run)
    with self.assertRaisesRegex(UsageError, '"num_parameters" is missing; it must be an integer'):
      workdir.read_run_files(self.folder)

  @parameterized.named_parameters(
    ("edges", "edges", [0.0, 1.0]),
    ("counts", "counts", None),
    ("negative", "counts", [-1] * 20),
    ("codes_without_scale", "scale", None),
    ("code_names", "codes", {"one": 3}),
  )
  def test_bad_histogram_is_named(self, key: str, value: Any):
    weights = fake_run.make_weights()
    weights["quantized"]["stem/conv/kernel"][key] = value
    files.write_json(self.folder / "weights.json", weights)
    with self.assertRaisesRegex(UsageError, '"stem/conv/kernel" in phase "quantized"'):
      workdir.read_run_files(self.folder)


if __name__ == "__main__":
  absltest.main()
