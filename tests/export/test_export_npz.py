"""Exported .npz files: read back, read by NumPy alone, and refused where a byte has changed."""

import ast
import io
from pathlib import Path

import npz_reader
import numpy as np
import pytest
from export_helpers import make_case, make_images

from bcgd_jax.errors import UsageError
from bcgd_jax.export.interpreter import run_program
from bcgd_jax.export.npz import read_npz, write_npz
from bcgd_jax.models import Quantization
from bcgd_jax.numerics import Binary, Ternary, Uniform

SHAPE = (9, 10, 1)


def quantize(weight, *, first, last, bits=4):
  return Quantization(weight=weight, first=first, last=last, activation_bits=bits)


CASES = {
  # every kind of node, and weights of 1, 2, 4, 8 and 16 bits and float
  "binary": ("resnet8", SHAPE, quantize(Binary(), first=Binary(), last=Binary()), "network"),
  "own": ("resnet8", SHAPE, quantize(Ternary(), first=Uniform(8), last=Ternary()), "own"),
  "uniform": ("resnet8", SHAPE, quantize(Uniform(3), first=None, last=None, bits=2), "stream"),
  "projections": (
    *("imagenet_resnet18", (33, 34, 3)),
    *(quantize(Binary(channel_axis=-1), first=Uniform(4), last=Uniform(4)), "stream"),
  ),
  "lenet5": ("lenet5", (14, 13, 1), quantize(Binary(), first=None, last=Uniform(8)), "own"),
}


def make_program(name):
  model, shape, quantization, residual_alpha = CASES[name]
  return make_case(model, shape, quantization, residual_alpha=residual_alpha)[2]


@pytest.fixture(scope="module")
def data():
  return write_npz(make_program("binary"))


@pytest.mark.parametrize("name", CASES)
def test_numpy_alone_has_the_same_codes(name, tmp_path):
  program = make_program(name)
  path = tmp_path / "model.npz"
  path.write_bytes(write_npz(program))
  images = make_images(program.image.shape, count=2)
  expected = run_program(program, images)
  found = npz_reader.run(*npz_reader.load(path), images)
  assert found.keys() - {"image"} == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_the_reader_of_numpy_alone_imports_nothing_else():
  text = Path(npz_reader.__file__).read_text()
  names = {
    alias.name
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.Import | ast.ImportFrom)
    for alias in node.names
  }
  assert names == {"hashlib", "json", "numpy"}
  assert len(text.splitlines()) <= 110


@pytest.mark.parametrize("name", CASES)
def test_reading_is_the_inverse_of_writing(name):
  program = make_program(name)
  data = write_npz(program)
  found = read_npz(data, name="model.npz")
  assert write_npz(found) == data  # every array and number
  assert [type(node) for node in found.nodes] == [type(node) for node in program.nodes]
  images = make_images(program.image.shape, count=2)
  for key, value in run_program(program, images).items():
    np.testing.assert_array_equal(run_program(found, images)[key], value, err_msg=key)
  assert found.facts == program.facts


def test_one_bit_takes_one_bit(data):
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    assert file["0.weights"].size == 3 * 3 * 1 * 16 / 8


def test_every_flipped_byte_is_refused(data):
  rng = np.random.default_rng(0)
  places = {0, len(data) - 1, len(data) - 71, len(data) - 72, *rng.integers(0, len(data), 200)}
  for place in places:
    changed = bytearray(data)
    changed[place] ^= 1 << int(rng.integers(8))
    with pytest.raises(UsageError, match=r"model\.npz must .*checksum"):
      read_npz(bytes(changed), name="model.npz")


@pytest.mark.parametrize("size", [0, 10, 71, 1000, -1])
def test_a_file_cut_off_is_refused(data, size):
  with pytest.raises(UsageError, match=r"model\.npz must end with its checksum"):
    read_npz(data[:size], name="model.npz")


def test_a_later_format_is_refused(data, monkeypatch):
  monkeypatch.setattr("bcgd_jax.export.npz.FORMAT_VERSION", 2)
  later = write_npz(make_program("binary"))
  monkeypatch.undo()
  with pytest.raises(UsageError, match=r"format version 1, got 2"):
    read_npz(later, name="model.npz")
