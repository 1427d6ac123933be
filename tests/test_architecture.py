"""Imports point one way, names with an underscore stay at home, files stay small."""

import ast
import inspect
from pathlib import Path

import pytest

from bcgd_jax.numerics import ALPHA_RANGE
from bcgd_jax.optim import bcgd

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bcgd_jax"
MAX_LINES = 400

# What each part may import of the others; `errors`, which imports nothing, is open to all.
ALLOWED = {
  "errors": set(),
  "command": {"errors"},
  "numerics": set(),
  "optim": set(),
  "layers": {"numerics"},
  "models": {"numerics", "layers"},
  "data": {"errors", "command"},
  "report": {"errors", "command"},
  "training": {"errors", "numerics", "layers", "models", "optim", "data", "report"},
  "cli": {"errors", "command", "training"},
  "compilation_cache": set(),
  "export": {
    *("errors", "command", "cli", "compilation_cache", "numerics", "layers", "models", "data"),
    *("report", "training"),
  },
  "theory": {"errors", "command", "numerics", "optim", "report"},
  "suites": {"errors", "command", "report", "training"},
  "benchmarks": {
    "errors",
    "command",
    "numerics",
    "layers",
    "models",
    "optim",
    "data",
    "export",
    "report",
    "training",
  },
}
ALLOWED[""] = {*ALLOWED, ""}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
  """The sub-package a file belongs to; "" for the commands and the package itself."""
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return parts[0] if len(parts) > 1 or parts[0] in ALLOWED else ""


def imports_of(path: Path) -> list[tuple[str, list[str]]]:
  """(module, imported names) of every import in a file, those inside functions too."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [(alias.name, []) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative imports hide the direction"
      found.append((node.module or "", [alias.name for alias in node.names]))
  return found


def ours(module: str, names: list[str]) -> list[list[str]]:
  """Dotted parts below bcgd_jax of what an import brings in."""
  if module.split(".")[0] != "bcgd_jax":
    return []
  below = module.split(".")[1:]
  return [below] if below else [[name] for name in names] or [[""]]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
  part = part_of(path)
  for module, names in imports_of(path):
    for below in ours(module, names):
      target = below[0] if below[0] in ALLOWED else ""
      assert target == part or target in ALLOWED[part], f"{path} imports {module} ({names})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_stay_in_their_package(path):
  for module, names in imports_of(path):
    inside = module.startswith(f"bcgd_jax.{part_of(path)}") and part_of(path)
    private = [part for part in [*module.split("."), *names] if part.startswith("_")]
    assert inside or not [name for name in private if name != "__future__"], f"{path}: {module}"


@pytest.mark.parametrize("folder", ["bcgd_jax", "configs", "tests"])
def test_files_stay_small(folder):
  lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
  assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_the_method_needs_neither_flax_nor_the_training_packages():
  """numerics and optim serve Haiku, Equinox, NNX or plain JAX: only jax, optax, numpy."""
  for part in ("numerics", "optim"):
    for path in (PACKAGE / part).rglob("*.py"):
      roots = {module.split(".")[0] for module, _ in imports_of(path)}
      assert not roots & {"flax", "ml_collections", "absl", "tensorflow_datasets", "grain"}, path


def test_layer_and_optimizer_clamp_alpha_to_one_range():
  """optim imports nothing of ours, so it repeats the default that the layer reads."""
  assert inspect.signature(bcgd).parameters["alpha_range"].default == ALPHA_RANGE
