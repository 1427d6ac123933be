"""Times reading an image folder: python -m bcgd_jax.benchmarks.input_pipeline [--folder=DIR].

Images a second, and a second and core, of our pipeline, of tf.data with decode_and_crop_jpeg and of
a PyTorch DataLoader with Pillow: random-resized crop to 224 pixels, flip, batches of uint8. The
pipelines take turns; each figure is a median over the repetitions.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from bcgd_jax.benchmarks.jpeg_folder import write_image_folder
from bcgd_jax.benchmarks.opponents import list_images
from bcgd_jax.benchmarks.pipeline_process import (
  PIPELINES,
  Measurement,
  PipelineOptions,
  PipelineProcess,
)
from bcgd_jax.benchmarks.rotation import paired_ratios, time_in_rotation
from bcgd_jax.command import local_folder, run_command
from bcgd_jax.errors import UsageError
from bcgd_jax.report import Table, print_table, write_json
from bcgd_jax.report.files import write_atomic
from bcgd_jax.report.tables import Column
from bcgd_jax.training.environment import describe_commit, processor_name, usable_cores

NOT_INSTALLED = "not installed"
_MODULES = {
  "ours": "grain",
  "ours_threads": "grain",
  "tf_data": "tensorflow",
  "pytorch": "torch",
}
_OUR_PACKAGES = ("grain", "numpy", "opencv-python-headless", "simplejpeg")
_PACKAGES = {
  "ours": _OUR_PACKAGES,
  "ours_threads": _OUR_PACKAGES,
  "tf_data": ("tensorflow",),
  "pytorch": ("torch", "pillow"),
}
_TITLES = {
  "ours": "bcgd_jax, processes",
  "ours_threads": "bcgd_jax, threads",
  "tf_data": "tf.data, decode_and_crop_jpeg, threads",
  "pytorch": "PyTorch DataLoader, Pillow, processes",
}
# Of a worker, more than any pipeline holds: ours has 2 + 4 and the one it works on.
_BUFFERED_BATCHES = 10
_MIN_CPU_SECONDS = 0.03  # Linux counts in hundredths
_NUM_CLASSES = 30  # of the photographs made; every one that packages ship, twice

_FOLDER = flags.DEFINE_string("folder", None, "An image folder; made for the run by default.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 2000, "Photographs made where no folder is given.")
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of worker processes or threads.")
_ROWS = flags.DEFINE_list("rows", list(PIPELINES), "The pipelines to time.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the images handed out.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a batch.")
_NUM_BATCHES = flags.DEFINE_integer("num_batches", 32, "Batches timed in a repetition.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 7, "How often each pipeline takes its turn.")
_JSON = flags.DEFINE_string("json", None, "A file for the rows; the table in .md is put beside it.")

Row = dict[str, Any]


def main() -> None:
  names, workers = _ROWS.value, [_positive("workers", text) for text in _WORKERS.value]
  for name in names:
    if name not in PIPELINES:
      raise UsageError(f"--rows must be of {', '.join(PIPELINES)}, got {name!r}.")
  for flag in (_NUM_IMAGES, _IMAGE_SIZE, _BATCH_SIZE, _NUM_BATCHES, _REPETITIONS):
    _positive(flag.name, flag.value)
  with _open_folder() as folder:
    facts = _describe(folder)
    rows = []
    for num_workers in workers:
      options = PipelineOptions(
        folder=folder,
        batch_size=_BATCH_SIZE.value,
        image_size=_IMAGE_SIZE.value,
        num_workers=num_workers,
        num_batches=_NUM_BATCHES.value,
        num_untimed=_BUFFERED_BATCHES * (num_workers + 1),
      )
      rows += time_pipelines(names, options, repetitions=_REPETITIONS.value)
  rows = [{**row, **facts} for row in rows]
  print_table(make_table(rows))
  if _JSON.value:
    path = Path(_JSON.value)
    write_json(path, rows)
    write_atomic(path.with_suffix(".md"), make_page(rows).encode())


def time_pipelines(
  names: Sequence[str], options: PipelineOptions, *, repetitions: int
) -> list[Row]:
  """A row a pipeline: measured in turns, or said not to be installed.

  Raises:
    UsageError: if a repetition is too short for its CPU time to be told.
    TrainingError: if a pipeline fails.
  """
  found = [name for name in names if importlib.util.find_spec(_MODULES[name])]
  with contextlib.ExitStack() as stack:
    # one after the other: what starts beside a running one would be slowed by it
    processes = {}
    for name in found:
      processes[name] = stack.enter_context(PipelineProcess(name, options))
      processes[name].wait_until_ready()
    measured: dict[str, list[Measurement]] = {name: [] for name in found}

    def measure(name: str) -> None:
      measured[name].append(processes[name].measure())

    time_in_rotation(
      {name: functools.partial(measure, name) for name in found}, num_rounds=repetitions
    )
  check_long_enough(measured)
  num_images = options.batch_size * options.num_batches
  return [
    {
      "name": name,
      "workers": options.num_workers,
      "status": "measured" if name in found else NOT_INSTALLED,
      **summarize(name, measured, num_images=num_images),
      "images_per_repetition": num_images,
      "repetitions": repetitions,
      "batch_size": options.batch_size,
      "image_size": options.image_size,
      "versions": _versions(name),
    }
    for name in names
  ]


def check_long_enough(measured: Mapping[str, Sequence[Measurement]]) -> None:
  """Raises UsageError if a repetition is too short for its CPU time to be told."""
  for name, repeated in measured.items():
    shortest = min(m.cpu_seconds for m in repeated)
    if shortest < _MIN_CPU_SECONDS:
      raise UsageError(
        f"--num_batches must be large enough for {_MIN_CPU_SECONDS} s of CPU time, got "
        f"{shortest:.2f} s of {name}."
      )


def summarize(name: str, measured: Mapping[str, Sequence[Measurement]], *, num_images: int) -> Row:
  """The figures of one pipeline; None where it, or what it is compared with, was not measured.

  A core is a second of CPU time a second: images_per_second_per_core = images / CPU seconds, all
  processes and threads of the pipeline included. Ratios are of that figure, taken within each
  repetition; their median is given.

  Args:
    name: of the pipeline.
    measured: name -> its repetitions, as many for each.
    num_images: in a repetition.
  """
  own = measured.get(name)
  cpu = {key: [m.cpu_seconds for m in value] for key, value in measured.items()}
  row: Row = {
    "images_per_second": None,
    "images_per_second_per_core": None,
    "images_per_second_per_core_range": None,
    "cores": None,
  }
  if own:
    per_core = [num_images / seconds for seconds in cpu[name]]
    row = {
      "images_per_second": statistics.median(num_images / m.seconds for m in own),
      "images_per_second_per_core": statistics.median(per_core),
      "images_per_second_per_core_range": [min(per_core), max(per_core)],
      "cores": statistics.median(m.cpu_seconds / m.seconds for m in own),
    }
  for opponent in ("pytorch", "tf_data"):
    both = own and measured.get(opponent)
    ratio = paired_ratios(cpu[opponent], cpu[name])[1] if both else None
    row[f"ratio_to_{opponent}"] = ratio
  return row


def make_table(rows: Sequence[Row]) -> Table:
  """The rows as they are printed."""
  return Table(
    title="Reading an image folder",
    columns=(
      Column("Pipeline"),
      Column("Workers", numeric=True),
      Column("Images / s", numeric=True),
      Column("Cores", numeric=True),
      Column("Images / s and core", numeric=True),
      Column("/ PyTorch", numeric=True),
      Column("/ tf.data", numeric=True),
    ),
    rows=tuple(_cells(row) for row in rows),
  )


def _cells(row: Row) -> tuple[str, ...]:
  head = (_TITLES[row["name"]], str(row["workers"]))
  if row["status"] == NOT_INSTALLED:
    return (*head, NOT_INSTALLED, "-", "-", "-", "-")
  return (
    *head,
    f"{row['images_per_second']:.0f}",
    f"{row['cores']:.2f}",
    f"{row['images_per_second_per_core']:.0f}",
    *(
      "-" if row[key] is None else f"{row[key]:.2f}"
      for key in ("ratio_to_pytorch", "ratio_to_tf_data")
    ),
  )


def make_page(rows: Sequence[Row]) -> str:
  """The rows as a page in Markdown; all that it says is in them."""
  first, table = rows[0], make_table(rows)
  command = (
    f"python -m bcgd_jax.benchmarks.input_pipeline --batch_size={first['batch_size']} "
    f"--num_batches={first['images_per_repetition'] // first['batch_size']} "
    f"--repetitions={first['repetitions']} --image_size={first['image_size']}"
  )
  parts = [
    f"# {table.title}",
    f"`{command}`: {first['num_images']} JPEGs of {first['mean_bytes'] / 1000:.0f} kB on average; "
    f"{first['cpu']}, {first['cpu_cores']} cores, load average {first['load_average']:.1f} before "
    "it began.",
    table.to_markdown(),
    "Medians of repetitions in turns. Cores: CPU seconds a second, of all processes of a pipeline; "
    "less than its workers where other programs had the rest. The ratios are of images a second "
    "and core. Versions and settings are in the JSON file.",
  ]
  return "\n\n".join(parts) + "\n"


@contextlib.contextmanager
def _open_folder() -> Iterator[Path]:
  """The folder to read: the one given, or photographs made for the run."""
  if _FOLDER.value is not None:
    yield local_folder(_FOLDER.value, flag="--folder")
    return
  with tempfile.TemporaryDirectory(prefix="photographs-") as scratch:
    num_classes = min(_NUM_CLASSES, _NUM_IMAGES.value)
    write_image_folder(
      Path(scratch), num_train=_NUM_IMAGES.value, num_val=num_classes, num_classes=num_classes
    )
    yield Path(scratch)


def _describe(folder: Path) -> dict[str, Any]:
  """What all rows have in common."""
  paths, _ = list_images(folder)
  return {
    "num_images": len(paths),
    "mean_bytes": statistics.fmean(Path(path).stat().st_size for path in paths),
    "cpu": processor_name(),
    "cpu_cores": usable_cores(),
    "load_average": os.getloadavg()[0],
    "python": platform.python_version(),
    "commit": describe_commit(),
  }


def _versions(name: str) -> dict[str, str]:
  versions = {}
  for package in _PACKAGES[name]:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = NOT_INSTALLED
  return versions


def _positive(name: str, value: Any) -> int:
  try:
    number = int(value)
  except ValueError:
    number = 0
  if number < 1:
    raise UsageError(f"--{name} must be at least 1, got {value}.")
  return number


if __name__ == "__main__":
  run_command(main, interrupted="nothing was written")
