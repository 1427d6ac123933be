"""Times inference on the CPU: python -m bcgd_jax.benchmarks.inference --models=resnet20.

Exported networks of 1-, 2- and 4-bit weights and 4-bit activations beside the same network in
float, by ONNX Runtime and by XLA, and beside ONNX Runtime's own 8-bit quantization of it, in turns;
each ratio is the median of those within a round. Weights and images are random.
"""

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from absl import flags

from bcgd_jax.benchmarks.inference_models import FLOAT, INT8, SIZES, VARIANTS, write_files
from bcgd_jax.benchmarks.inference_process import (
  Footprint,
  Options,
  measure_footprint,
  measure_latency,
  run_apart,
)
from bcgd_jax.benchmarks.rotation import paired_ratios
from bcgd_jax.command import run_command
from bcgd_jax.errors import UsageError
from bcgd_jax.report import Table, print_table, write_json
from bcgd_jax.report.files import write_atomic
from bcgd_jax.report.tables import Column
from bcgd_jax.training.environment import describe_environment

_MODELS = flags.DEFINE_list(
  "models", ["resnet20", "imagenet_resnet18"], f"Networks, of {', '.join(SIZES)}."
)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "32"], "Images at once.")
_THREADS = flags.DEFINE_list("threads", ["1", "0"], "Threads; 0 is one a core.")
_IMAGE_SIZE = flags.DEFINE_integer(
  "image_size", 0, "Side of the images; 0 is the network's own.", 0
)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each network takes its turn.", 1)
_JSON = flags.DEFINE_string("json", None, "A file for the rows; the table in .md is put beside it.")

Row = dict[str, Any]

# A time that is not clearly below this share of the other is not called faster.
_FASTER = 0.95


def main() -> None:
  models = _MODELS.value
  for model in models:
    if model not in SIZES:
      raise UsageError(f"--models must be of {', '.join(SIZES)}, got {model!r}.")
  batch_sizes = _numbers("batch_sizes", _BATCH_SIZES.value, minimum=1)
  threads = _numbers("threads", _THREADS.value, minimum=0)
  rows: list[Row] = []
  for model in models:
    found = time_model(model, batch_sizes=batch_sizes, threads=threads, rounds=_ROUNDS.value)
    print_table(size_table(found))
    for table in latency_tables(found):
      print_table(table)
    rows += found
  if _JSON.value:
    path = Path(_JSON.value)
    write_json(path, rows)
    write_atomic(path.with_suffix(".md"), make_page(rows).encode())


def time_model(
  model: str, *, batch_sizes: Sequence[int], threads: Sequence[int], rounds: int
) -> list[Row]:
  """One row for each network, batch size and number of threads.

  Returns:
    Rows with the keys of the tables, of `describe_environment`, and: file_bytes; load_seconds, from
    the file to the first logits; peak_bytes, see `Footprint`; median_seconds and p99_seconds of an
    inference of a batch; ratio_to_float and ratio_to_int8, medians of the ratios within a round,
    with their quartiles; cpu_flags, those of VNNI and AMX that the processor has.
  """
  image_size, num_classes = SIZES[model]
  image_size = _IMAGE_SIZE.value or image_size
  environment = describe_environment() | {
    "onnxruntime": onnxruntime.__version__,
    "cpu_flags": _cpu_flags(),
  }
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    files = write_files(model, Path(folder), image_size=image_size, num_classes=num_classes)
    for batch_size, count in itertools.product(batch_sizes, threads):
      options = Options(image_size=image_size, batch_size=batch_size, threads=count, rounds=rounds)
      footprints = {
        name: run_apart(measure_footprint, path, options) for name, path in files.items()
      }
      seconds = run_apart(measure_latency, files, options)
      common = {
        "model": model,
        "image_size": image_size,
        "num_classes": num_classes,
        "batch_size": batch_size,
        "threads": count,
        "rounds": rounds,
        **environment,
      }
      for name, path in files.items():
        figures = _figures(name, seconds, footprints[name], batch_size=batch_size)
        rows.append({"network": name, "file_bytes": path.stat().st_size, **figures, **common})
  return rows


def _figures(
  name: str, seconds: dict[str, list[list[float]]], footprint: Footprint, *, batch_size: int
) -> Row:
  every = [value for turn in seconds[name] for value in turn]
  medians = {key: [statistics.median(turn) for turn in turns] for key, turns in seconds.items()}
  figures: Row = {
    "load_seconds": footprint.load_seconds,
    "peak_bytes": footprint.peak_bytes,
    "inferences": len(every),
    "median_seconds": statistics.median(every),
    "p99_seconds": float(np.percentile(every, 99)),
    "images_per_second": batch_size / statistics.median(every),
  }
  for key, baseline in (("float", FLOAT), ("int8", INT8)):
    low, middle, high = paired_ratios(medians[name], medians[baseline])
    figures |= {f"ratio_to_{key}": middle, f"ratio_to_{key}_quartiles": [low, high]}
  return figures


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


def _cpu_flags() -> list[str]:
  """What makes 8-bit products fast, as Linux names it."""
  info = Path("/proc/cpuinfo")
  found = set(info.read_text().split()) if info.exists() else set()
  return sorted(found & {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


def _numbers(flag: str, values: Sequence[str], *, minimum: int) -> list[int]:
  for value in values:
    if not value.isdecimal() or int(value) < minimum:
      raise UsageError(f"--{flag} must be whole numbers of at least {minimum}, got {value!r}.")
  return [int(value) for value in values]


if __name__ == "__main__":
  run_command(main, interrupted="nothing was written")
