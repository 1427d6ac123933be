"""What the README shows, runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bcgd_jax

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
  return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_five_line_example_trains_a_strangers_network():
  (code,) = blocks("python")
  names: dict = {}
  exec(code, names)  # the example itself is what is tested
  key = jax.random.key(0)
  x = jax.random.normal(key, (64, 8))
  y = jnp.sign(jnp.sum(x[:, :3], axis=1))
  params = {
    "hidden": {"kernel": 0.3 * jax.random.normal(key, (8, 32))},
    "out": {"kernel": 0.1 * jax.random.normal(key, (32, 1))},
  }

  def loss(params):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"])
    return jnp.mean(((hidden @ params["out"]["kernel"])[:, 0] - y) ** 2)

  optimizer = names["optimizer"]
  with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes dtypes

    @jax.jit
    def step(params, state):
      value, grads = jax.value_and_grad(lambda p: loss(names["quantize"](p)))(params)
      updates, state = optimizer.update(grads, state, params)
      return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    losses = []
    for _ in range(300):
      params, state, value = step(params, state)
      losses.append(float(value))
  assert losses[-1] < 0.5 * losses[0]
  quantized = names["quantize"](params)
  assert len(np.unique(np.asarray(quantized["hidden"]["kernel"]))) == 2


@pytest.mark.parametrize("command", re.findall(r"python -m (bcgd_jax(?:\.\w+)+)", README))
def test_commands_exist(command):
  path = ROOT / command.replace(".", "/")
  assert path.with_name(f"{path.name}.py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|launch)/\w+\.\w+", README))))
def test_files_exist(path):
  assert (ROOT / path).exists()


def test_linked_files_exist():
  links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README) if "://" not in link]
  assert links
  assert [link for link in links if not (ROOT / link).exists()] == []


def test_linked_headings_exist():
  headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
  anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
  links = re.findall(r"\]\(#([^)]+)\)", README)
  assert links
  assert set(links) <= anchors


@pytest.mark.parametrize("name", ["Binary", "Ternary", "quantized_relu", "bcgd", "QuantReLU"])
def test_public_names_are_at_the_top(name):
  assert getattr(bcgd_jax, name).__doc__


def test_importing_the_method_needs_none_of_the_training_packages():
  code = (
    "import sys, bcgd_jax;"
    "print([m for m in ('grain', 'ml_collections', 'tensorflow_datasets', 'matplotlib')"
    " if m in sys.modules])"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


def test_times_of_inference_are_the_committed_ones():
  rows = json.loads((ROOT / "docs/results/benchmarks/inference_cpu.json").read_text())
  alone = [row for row in rows if (row["batch_size"], row["threads"]) == (1, 1)]
  sizes = {
    row["model"]: row["file_bytes"] for row in alone if row["network"] == "float, ONNX Runtime"
  }
  expected = {
    (
      f"{sizes[row['model']] / row['file_bytes']:.1f} x",
      f"{row['ratio_to_float']:.3f}",
      f"{row['ratio_to_int8']:.3f}",
    )
    for row in alone
  }
  (table,) = re.findall(r"\| Network \| File \|.*\n.*\n((?:\|.*\n)+)", README)
  found = [tuple(line.strip("| ").split(" | ")[2:]) for line in table.splitlines()]
  assert len(found) == 7
  assert set(found) <= expected
