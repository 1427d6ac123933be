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

import numpy as np
import onnxruntime
from absl import flags

from bcgd_jax.benchmarks.inference_models import FLOAT, INT8, SIZES, write_files
from bcgd_jax.benchmarks.inference_process import (
  Footprint,
  Options,
  measure_footprint,
  measure_latency,
  run_apart,
)
from bcgd_jax.benchmarks.inference_tables import Row, latency_tables, make_page, size_table
from bcgd_jax.benchmarks.rotation import paired_ratios
from bcgd_jax.command import run_command
from bcgd_jax.errors import UsageError
from bcgd_jax.report import print_table, write_json
from bcgd_jax.report.files import write_atomic
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
