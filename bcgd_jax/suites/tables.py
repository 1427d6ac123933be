"""A suite's table: a row a configuration, mean and standard deviation over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bcgd_jax.report import Table
from bcgd_jax.report.formats import format_bytes
from bcgd_jax.report.tables import Column
from bcgd_jax.suites.spec import Suite

Record = Mapping[str, Any]


def suite_table(suite: Suite, records: Sequence[Record]) -> Table:
  """The suite's rows in order; those without a finished run say "not run" or "failed".

  Accuracies are those the last phase ends with. "Against" is the difference in test accuracy to
  the baseline's run of the same seed, in points: mean and standard deviation over seeds.
  Standard deviations are of the sample (n - 1).
  """
  has_paper = any(row.paper is not None for row in suite.rows)
  columns = [
    Column("Row"),
    Column("W / A bits", numeric=True),
    Column("rho x steps", numeric=True),
    Column("Epochs", numeric=True),
    Column("Validation, %", numeric=True),
    Column("Test, %", numeric=True),
    Column("Seeds", numeric=True),
    Column(f"Against {suite.baseline}", numeric=True),
    Column("Train loss", numeric=True),
    Column("Size", numeric=True),
    *([Column("Paper, %", numeric=True)] if has_paper else []),
  ]
  rows = []
  for row in suite.rows:
    own = [r for r in records if r["row"] == row.name]
    done = [r for r in own if r["status"] == "done"]
    paper = [f"{100 * row.paper:.2f}" if row.paper is not None else "-"] if has_paper else []
    # the baseline is not compared with itself
    scores = {} if row.name == suite.baseline else _baseline_scores(suite, records)
    cells = _cells(done, scores) if done else _empty_cells(own)
    rows.append((row.name, *cells, *paper))
  return Table(title=suite.title, columns=tuple(columns), rows=tuple(rows))


def _baseline_scores(suite: Suite, records: Sequence[Record]) -> dict[int, float]:
  """Test accuracy of the baseline by seed, as far as it has run."""
  found = [r for r in records if r["row"] == suite.baseline and r["status"] == "done"]
  return {r["seed"]: r["test_accuracy"] for r in found}


def mean_and_deviation(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
  """ "91.23 ± 0.12"; without a deviation for one value."""
  sign = "+" if signed else ""
  mean = f"{statistics.fmean(values):{sign}.{digits}f}"
  return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _cells(done: Sequence[Record], baseline: Mapping[int, float]) -> list[str]:
  first = done[0]
  paired = [100 * (r["test_accuracy"] - baseline[r["seed"]]) for r in done if r["seed"] in baseline]
  return [
    f"{first['weight_bits']} / {first['activation_bits']}",
    "-" if first["rho_steps"] is None else f"{first['rho_steps']:.3g}",
    " + ".join(f"{epochs:g}" for epochs in first["epochs"].values()),
    _validation(done),
    mean_and_deviation([100 * r["test_accuracy"] for r in done], 2),
    str(len(done)),
    "-" if not paired else mean_and_deviation(paired, 2, signed=True),
    mean_and_deviation([r["train_loss"] for r in done], 4),
    format_bytes(first["quantized_bytes"]),
  ]


def _validation(done: Sequence[Record]) -> str:
  if not all(r["validation"] for r in done):
    return "-"
  return mean_and_deviation([100 * r["validation"][-1]["accuracy"] for r in done], 2)


def _empty_cells(own: Sequence[Record]) -> list[str]:
  status = "failed" if any(r["status"] == "failed" for r in own) else "not run"
  return ["-", "-", "-", "-", status, "0", "-", "-", "-"]
