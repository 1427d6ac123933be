"""What a suite is: rows of (configuration, overrides, seeds), from a file with `get_suite()`."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcgd_jax.errors import UsageError

SUITES_FOLDER = Path("configs/suites")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
  """One row of a suite's table: a configuration, run once a seed.

  Attributes:
    name: unique in the suite; it names the row's folder, too.
    config: path of a configuration file from the current folder, such as
      "configs/digits_resnet8_1w4a.py".
    overrides: dotted keys and values on top of it, such as {"quantized.rho": 0.0}.
    seeds: a run each.
    blending: rows with the same text here are one line of the figure "accuracy against rho times
      steps"; "" is in none.
    paper: the paper's accuracy for this row as a fraction, where it could be read there.
  """

  name: str
  config: str
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seeds: tuple[int, ...] = (0,)
  blending: str = ""
  paper: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
  """A list of rows under a title.

  Attributes:
    name: of the suite.
    title: heading of its table.
    rows: in the order of the table; runs start in order of seeds, then of rows.
    baseline: name of the row that the others are compared with, seed by seed.
    notes: lines below the table, such as what differs from the paper.
  """

  name: str
  title: str
  rows: tuple[Row, ...]
  baseline: str
  notes: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    names = [row.name for row in self.rows]
    if len(set(names)) != len(names) or not names:
      raise UsageError(f"rows must be one or more, with distinct names, got {names}.")
    if self.baseline not in names:
      raise UsageError(
        f"baseline must be the name of a row, one of {names}, got {self.baseline!r}."
      )
    for row in self.rows:
      if not row.seeds or len(set(row.seeds)) != len(row.seeds):
        raise UsageError(f"seeds of row {row.name!r} must be distinct, got {row.seeds}.")


def load_suite(name: str) -> Suite:
  """The suite of a name (configs/suites/NAME.py below the current folder) or of a path.

  Raises:
    UsageError: if there is no such file, or it does not define a suite.
  """
  path = Path(name) if name.endswith(".py") else SUITES_FOLDER / f"{name}.py"
  if not path.is_file():
    known = sorted(p.stem for p in SUITES_FOLDER.glob("*.py"))
    found = f"{SUITES_FOLDER} here has {known}" if known else f"there is no {SUITES_FOLDER} here"
    raise UsageError(f"--suite must be a name or a path of a suite file, got {name!r}; {found}.")
  suite = load_module(path, needs="get_suite").get_suite()
  if not isinstance(suite, Suite):
    raise UsageError(f"{path}: get_suite() must return a Suite, got {type(suite).__name__}.")
  return suite


def load_module(path: Path, *, needs: str) -> Any:
  """A Python file as a module.

  Raises:
    UsageError: if the file is not there, or does not define `needs`.
  """
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None or not path.is_file():
    raise UsageError(f"{path} must be a Python file.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, needs):
    raise UsageError(f"{path} must define {needs}().")
  return module
