"""What docs/deploy.md shows, runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_helpers import make_case
from PIL import Image

from bcgd_jax.data.crops import center_crop
from bcgd_jax.export import integer
from bcgd_jax.export.interpreter import run_program
from bcgd_jax.export.onnx import make_onnx
from bcgd_jax.models import Quantization
from bcgd_jax.numerics import Binary

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/deploy.md").read_text()
BINARY = Quantization(weight=Binary(), first=Binary(), last=Binary(), activation_bits=4)
NAMES = [f"thing {label}" for label in range(7)]


def classify(folder, program, path):
  """What the page's script prints, in a Python that has no jax."""
  (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
  (folder / "classify.py").write_text(script)
  (folder / "model.onnx").write_bytes(make_onnx(program).SerializeToString())
  for package in ("jax", "flax", "bcgd_jax"):
    (folder / f"{package}.py").write_text("raise ImportError('not on this machine')\n")
  done = subprocess.run(
    [sys.executable, "classify.py", "model.onnx", path],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(folder)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, "")
  return re.findall(r"^ *(\d+\.\d)%  (.+)$", done.stdout, re.MULTILINE)


def make_program(shape, **facts):
  *_, program = make_case("resnet8", shape, BINARY, residual_alpha="network")
  program.facts.update(class_names=NAMES, **facts)
  return program


def check(lines, program, pixels):
  (logits,) = run_program(program, pixels[None])["logits"].astype(np.float64)
  shares = np.exp(logits) / np.exp(logits).sum()
  best = np.argsort(-shares)[:5]
  assert [name for _, name in lines] == [NAMES[index] for index in best]
  assert [float(share) for share, _ in lines] == pytest.approx(100 * shares[best], abs=0.06)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_script_classifies_an_image_file(channels, tmp_path):
  program = make_program((11, 12, channels))
  pixels = np.random.default_rng(0).integers(0, 256, (11, 12, channels), dtype=np.uint8)
  Image.fromarray(pixels.squeeze()).save(tmp_path / "image.png")
  check(classify(tmp_path, program, "image.png"), program, pixels)


@pytest.mark.parametrize("size", [(50, 37), (30, 41)])
def test_the_script_crops_photographs_as_evaluation_does(size, tmp_path):
  program = make_program((16, 16, 3), eval_resize=18)
  pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / "photograph.png")
  lines = classify(tmp_path, program, "photograph.png")
  check(lines, program, center_crop(pixels, resize=18, size=16))


def test_every_kind_of_node_has_a_row_with_its_fields():
  rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE, re.MULTILINE))
  kinds = {kind.__name__: kind for kind in integer.Node.__args__}
  assert kinds.keys() <= rows.keys()
  for name, kind in kinds.items():
    fields = kind.__dataclass_fields__.keys() - {"name", "step", "scheme", "bound", "num_bits"}
    assert fields == set(re.findall(r"`(\w+)`", rows[name])), name


def test_every_fact_has_a_row():
  *_, program = make_case("resnet8", (8, 8, 1), BINARY)
  (table,) = re.findall(r"values other than text as JSON:\n\n(.*?)\n\n", PAGE, re.DOTALL)
  known = set(re.findall(r"`(\w+)`", table))
  assert program.facts.keys() <= known
