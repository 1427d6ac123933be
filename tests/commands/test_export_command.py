"""The export command on a run of seconds, and what it refuses."""

import importlib.metadata
import json
import re
from pathlib import Path

import jax.export
import numpy as np
import onnxruntime
import pytest
from command_helpers import TINY, run_command

from bcgd_jax.export.npz import read_npz

DEPLOYED = ("--config.data.mean=(0.5019607843137255,)", "--config.model.residual_alpha=stream")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def workdir(data_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "tiny"
  done = run_command("main", *TINY, *DEPLOYED, f"--workdir={path}", data_dir=data_dir)
  assert done.returncode == 0, done.stderr
  return path


def export(workdir, data_dir, output, *flags):
  return run_command(
    "export", f"--workdir={workdir}", f"--output={output}", *flags, data_dir=data_dir
  )


def test_the_file_is_verified_and_runs(workdir, data_dir, tmp_path):
  done = export(workdir, data_dir, tmp_path / "model.onnx", "--verify=70")
  assert (done.returncode, done.stderr) == (0, "")
  assert re.search(r"^Codes on 70 test images", done.stdout, re.MULTILINE)
  assert re.search(r"^layer1_act +71,680 +0 +- ", done.stdout, re.MULTILINE)
  assert re.search(r"^ONNX Runtime +\d+\.\d+% +0$", done.stdout, re.MULTILINE)
  size = (tmp_path / "model.onnx").stat().st_size
  assert done.stdout.rstrip().endswith(f"model.onnx, {size:,} bytes")
  session = onnxruntime.InferenceSession(
    tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
  )
  (logits,) = session.run(None, {"image": np.zeros((3, 8, 8, 1), np.uint8)})
  assert logits.shape == (3, 10)
  facts = session.get_modelmeta().custom_metadata_map
  assert (facts["model"], facts["weight_bits"], facts["activation_bits"]) == ("resnet8", "1", "4")
  assert json.loads(facts["class_names"]) == list("0123456789")
  assert facts["version"] == importlib.metadata.version("bcgd_jax")
  assert json.loads(facts["activation_steps"]).keys() >= {"layer1_act", "layer3_0/act1"}
  assert len(json.loads(facts["weight_scales"])["fc"]) == 1
  page = (Path(__file__).parents[2] / "docs/deploy.md").read_text()
  for key in facts:
    assert re.search(rf"^\| `{key}`|^\| .*, `{key}`", page, re.MULTILINE), key


def test_npz(workdir, data_dir, tmp_path):
  done = export(workdir, data_dir, tmp_path / "model.npz", "--format=npz", "--verify=20")
  assert (done.returncode, done.stderr) == (0, "")
  program = read_npz((tmp_path / "model.npz").read_bytes(), name="model.npz")
  assert program.facts["class_names"] == list("0123456789")


def test_stablehlo_takes_any_batch(workdir, data_dir, tmp_path):
  done = export(workdir, data_dir, tmp_path / "m.stablehlo", "--format=stablehlo", "--verify=20")
  assert (done.returncode, done.stderr) == (0, "")
  assert re.search(r"^StableHLO +\d+\.\d+% +0$", done.stdout, re.MULTILINE)
  network = jax.export.deserialize(bytearray((tmp_path / "m.stablehlo").read_bytes()))
  for count in (1, 7):
    assert network.call(np.zeros((count, 8, 8, 1), np.uint8)).shape == (count, 10)


@pytest.mark.parametrize(
  ("output", "flags", "words"),
  [
    ("model.onnx", ("--format=npz",), "--output must name a file that ends in .npz"),
    ("model.txt", (), "--output must name a file that ends in .onnx"),
    ("none/model.onnx", (), "--output must be a file in a folder that can be written to"),
    ("model.onnx", ("--verify=361",), "--verify must be at most the 360 test images, got 361"),
  ],
)
def test_bad_flags(workdir, data_dir, tmp_path, output, flags, words):
  done = export(workdir, data_dir, tmp_path / output, *flags)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {words}")
  assert done.stderr.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_refused(workdir, data_dir, tmp_path):
  record = workdir / "run.json"
  kept = record.read_bytes()
  record.unlink()
  try:
    done = export(workdir, data_dir, tmp_path / "model.onnx")
  finally:
    record.write_bytes(kept)
  assert done.returncode == 2
  assert "--workdir must be a finished run's" in done.stderr
  assert list(tmp_path.iterdir()) == []
