"""The rows of the benchmark of inference as tables and as a page."""

from collections.abc import Sequence
from typing import Any

from bcgd_jax.benchmarks.inference_models import FLOAT, INT8, VARIANTS
from bcgd_jax.report import Table
from bcgd_jax.report.tables import Column

Row = dict[str, Any]

# A time that is not clearly below this share of the other is not called faster.
_FASTER = 0.95


def size_table(rows: Sequence[Row]) -> Table:
  """File, load time and memory, of the first batch size and number of threads."""
  first = rows[0]
  same = [r for r in rows if all(r[k] == first[k] for k in ("batch_size", "threads"))]
  sizes = {row["network"]: row["file_bytes"] for row in same}
  return Table(
    title=f"Files of {_describe(first)}",
    columns=(
      Column("Network"),
      Column("File, bytes", numeric=True),
      Column("Float is larger", numeric=True),
      Column("Int8 is larger", numeric=True),
      Column("Load, ms", numeric=True),
      Column("Peak memory, MiB", numeric=True),
    ),
    rows=tuple(
      (
        row["network"],
        f"{row['file_bytes']:,}",
        f"{sizes[FLOAT] / row['file_bytes']:.1f} x",
        f"{sizes[INT8] / row['file_bytes']:.1f} x",
        f"{1000 * row['load_seconds']:.0f}",
        "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
      )
      for row in same
    ),
  )


def latency_tables(rows: Sequence[Row]) -> list[Table]:
  """One for each batch size and number of threads."""
  keys = dict.fromkeys((row["batch_size"], row["threads"]) for row in rows)
  return [
    _latency_table([r for r in rows if (r["batch_size"], r["threads"]) == key]) for key in keys
  ]


def _latency_table(rows: Sequence[Row]) -> Table:
  first = rows[0]
  threads = first["threads"] or f"all {first['cpu_cores']}"
  return Table(
    title=f"Inference of {_describe(first)}, batch {first['batch_size']}, threads: {threads}",
    columns=(
      Column("Network"),
      Column("Median, ms", numeric=True),
      Column("p99, ms", numeric=True),
      Column("Images / s", numeric=True),
      Column("/ float", numeric=True),
      Column("Quartiles", numeric=True),
      Column("/ int8", numeric=True),
      Column("Quartiles", numeric=True),
      Column("Beside float"),
      Column("Beside int8"),
    ),
    rows=tuple(_cells(row) for row in rows),
  )


def _cells(row: Row) -> tuple[str, ...]:
  cells = [
    row["network"],
    f"{1000 * row['median_seconds']:.2f}",
    f"{1000 * row['p99_seconds']:.2f}",
    f"{row['images_per_second']:,.0f}",
  ]
  for key in ("float", "int8"):
    low, high = row[f"ratio_to_{key}_quartiles"]
    cells += [f"{row[f'ratio_to_{key}']:.3f}", f"{low:.3f} to {high:.3f}"]
  return (*cells, _verdict(row, "float"), _verdict(row, "int8"))


def _verdict(row: Row, key: str) -> str:
  """Of ours: how many times as fast, or that it is not."""
  if row["network"] not in VARIANTS:
    return "-"
  _, high = row[f"ratio_to_{key}_quartiles"]
  if high >= _FASTER:
    return "not faster here"
  return f"{1 / row[f'ratio_to_{key}']:.1f} x as fast"


def make_page(rows: Sequence[Row]) -> str:
  """All tables as a page, with what it needs to be made again."""
  first = rows[0]
  models = list(dict.fromkeys(row["model"] for row in rows))
  flags_ = {
    "models": models,
    "batch_sizes": dict.fromkeys(row["batch_size"] for row in rows),
    "threads": dict.fromkeys(row["threads"] for row in rows),
    "rounds": [first["rounds"]],
  }
  texts = " ".join(f"--{key}={','.join(map(str, values))}" for key, values in flags_.items())
  facts = (
    f"{first['device']} ({', '.join(first['cpu_flags']) or 'no VNNI, no AMX'}), "
    f"{first['cpu_cores']} cores, Python {first['python']}, jax {first['jax']}, ONNX Runtime "
    f"{first['onnxruntime']}, commit {first['commit'] or 'unknown'}."
  )
  parts = ["# Inference on a CPU", f"`python -m bcgd_jax.benchmarks.inference {texts}`", facts]
  for model in models:
    found = [row for row in rows if row["model"] == model]
    for table in (size_table(found), *latency_tables(found)):
      parts += [f"## {table.title}", table.to_markdown()]
  return "\n\n".join(parts) + "\n"


def _describe(row: Row) -> str:
  return f"{row['model']}, {row['image_size']} x {row['image_size']} pixels"
