"""The benchmark of inference compares the same networks, and says so where they are not faster."""

import json
import subprocess
import sys

import jax
import numpy as np
import onnxruntime
import pytest

from bcgd_jax.benchmarks import inference_models
from bcgd_jax.benchmarks.float_onnx import make_float_onnx
from bcgd_jax.benchmarks.inference_models import FLOAT, INT8, XLA
from bcgd_jax.benchmarks.inference_tables import latency_tables, make_page, size_table
from bcgd_jax.models import Quantization, create_model

COMMAND = [sys.executable, "-m", "bcgd_jax.benchmarks.inference"]


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("resnet8", (13, 12, 1)),
    ("imagenet_resnet18", (34, 35, 3)),
    ("vgg11", (17, 16, 3)),
    ("lenet5", (14, 15, 1)),
  ],
)
def test_the_float_file_is_the_float_network(name, shape):
  model = create_model(name, num_classes=5, quantization=Quantization.none())
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, *shape)).astype(np.float32)
  variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(x)
  variables = jax.tree.map(
    lambda leaf: leaf + 0.1 * np.abs(rng.normal(size=leaf.shape)).astype(np.float32), variables
  )
  expected = model.apply(variables, x, train=False)
  data = make_float_onnx(model, variables, image_shape=shape).SerializeToString()
  session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
  (found,) = session.run(None, {"image": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.long
def test_rows_are_written(tmp_path):
  path = tmp_path / "rows.json"
  flags = ["--models=resnet8", "--image_size=16", "--batch_sizes=2", "--threads=1", "--rounds=3"]
  done = subprocess.run(
    [*COMMAND, *flags, f"--json={path}"], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  rows = {row["network"]: row for row in json.loads(path.read_text())}
  assert list(rows) == [FLOAT, INT8, XLA, *inference_models.VARIANTS]
  for row in rows.values():
    assert (row["model"], row["batch_size"], row["threads"]) == ("resnet8", 2, 1)
    assert 0 < row["median_seconds"] <= row["p99_seconds"]
    assert row["images_per_second"] == pytest.approx(2 / row["median_seconds"])
    assert row["load_seconds"] > row["median_seconds"]
    assert 0 < row["peak_bytes"] < 2**30
    assert row["inferences"] >= 3
  assert rows[FLOAT]["ratio_to_float"] == rows[INT8]["ratio_to_int8"] == 1.0
  sizes = [rows[name]["file_bytes"] for name in ("1W4A", "2W4A", "4W4A", INT8, FLOAT)]
  assert sizes == sorted(sizes)
  assert "Inference of resnet8, 16 x 16 pixels, batch 2, threads: 1" in done.stdout
  assert "## Files of resnet8" in path.with_suffix(".md").read_text()


def make_row(network, *, ratio, quartiles):
  return {
    "model": "resnet8",
    "network": network,
    "image_size": 32,
    "batch_size": 1,
    "threads": 0,
    "rounds": 3,
    "cpu_cores": 2,
    "file_bytes": 1000,
    "load_seconds": 0.01,
    "peak_bytes": None,
    "median_seconds": 0.001,
    "p99_seconds": 0.002,
    "images_per_second": 1000.0,
    "ratio_to_float": ratio,
    "ratio_to_float_quartiles": quartiles,
    "ratio_to_int8": 1.0,
    "ratio_to_int8_quartiles": [1.0, 1.0],
    "device": "a processor",
    "cpu_flags": [],
    "python": "3.11",
    "jax": "0.10",
    "onnxruntime": "1.20",
    "commit": "",
  }


@pytest.mark.parametrize(
  ("ratio", "quartiles", "words"),
  [
    (0.5, [0.4, 0.6], "2.0 x as fast"),
    (0.9, [0.8, 0.96], "not faster here"),
    (1.5, [1.4, 1.6], "not faster here"),
  ],
)
def test_what_is_not_faster_is_said_to_be_so(ratio, quartiles, words):
  rows = [
    make_row(FLOAT, ratio=1.0, quartiles=[1.0, 1.0]),
    make_row(INT8, ratio=0.5, quartiles=[0.5, 0.5]),
    make_row("1W4A", ratio=ratio, quartiles=quartiles),
  ]
  (table,) = latency_tables(rows)
  assert table.rows[0][-2:] == table.rows[1][-2:] == ("-", "-")
  assert table.rows[2][-2:] == (words, "not faster here")
  assert table.title.endswith("threads: all 2")
  assert size_table(rows).rows[2][-1] == "-"
  assert "no VNNI, no AMX" in make_page(rows)


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--models=resnet21", "--models must be of resnet20, imagenet_resnet18"),
    ("--batch_sizes=0", "--batch_sizes must be whole numbers of at least 1, got '0'"),
    ("--threads=-1", "--threads must be whole numbers of at least 0, got '-1'"),
  ],
)
def test_bad_flags(flag, words):
  done = subprocess.run([*COMMAND, flag], capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {words}")
