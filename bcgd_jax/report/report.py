"""The report of a run, finished or not: figures, a page for people, a summary for programs."""

from pathlib import Path
from typing import Any

from bcgd_jax.report import figures, histograms, html, plotting, predictions, watching
from bcgd_jax.report.files import read_json, write_atomic, write_json
from bcgd_jax.report.overview import Overview, finished_overview, unfinished_overview
from bcgd_jax.report.workdir import RunFiles, read_run_files

_SUMMARY_FILE = "summary.json"
_SUMMARY_KEYS = (
  "model",
  "dataset",
  "num_parameters",
  "num_test_examples",
  "weight_bits",
  "activation_bits",
  "float_bytes",
  "quantized_bytes",
  "float_test_accuracy",
  "quantized_test_accuracy",
  "phase_seconds",
)
_PICTURE_FILES = (
  "curves.png",
  "predictions.png",
  "weights.png",
  "alpha.png",
  "codes.png",
  "dead.png",
  "optimizer.png",
  "speed.png",
)


def write_report(workdir: Path) -> Path:
  """Writes `workdir`/report/ anew and returns the path of its report.html.

  summary.json, of a finished run alone, holds float_test_accuracy and quantized_test_accuracy
  (fractions, null where the run has no such phase), weight_bits, activation_bits, float_bytes,
  quantized_bytes, phase_seconds ({phase: seconds}), model, dataset, num_parameters and
  num_test_examples. The figures are there as far as the run has recorded what they show: curves,
  predictions, weights, alpha, codes, dead, optimizer and speed, all .png. report.html holds all of
  it in one file. Each file is replaced atomically, report.html last. Nothing else in the workdir is
  touched, so that the run may go on meanwhile.

  Raises:
    UsageError: if the folder is not that of a run with metrics, or a file of the run is invalid.
  """
  return write_report_of(read_run_files(workdir), workdir)


def write_report_of(files: RunFiles, workdir: Path) -> Path:
  """`write_report` of files that were read before."""
  pictures = draw_pictures(files)
  page = html.report_page(
    make_overview(files), pictures=pictures, run=files.run, config=files.config
  )
  folder = Path(workdir) / "report"
  folder.mkdir(exist_ok=True)
  for picture in pictures:
    write_atomic(folder / picture.file_name, picture.png)
  for stale in set(_PICTURE_FILES) - {picture.file_name for picture in pictures}:
    (folder / stale).unlink(missing_ok=True)
  if files.run is None:
    (folder / _SUMMARY_FILE).unlink(missing_ok=True)
  else:
    write_json(folder / _SUMMARY_FILE, summarize_run(files.run))
  path = folder / "report.html"
  write_atomic(path, page.encode())
  return path


def make_overview(files: RunFiles) -> Overview:
  """What stands at the top of the page."""
  if files.run is None:
    return unfinished_overview(files.config, files.records)
  return finished_overview(summarize_run(files.run))


def read_summary(workdir: Path) -> dict[str, Any]:
  """The figures of `workdir`/report/summary.json, as `write_report` left them.

  Raises:
    UsageError: if the file is missing or is not a JSON object.
  """
  return read_json(Path(workdir) / "report" / _SUMMARY_FILE)


def summarize_run(run: dict[str, Any]) -> dict[str, Any]:
  """The contents of summary.json, out of run.json."""
  return {key: run[key] for key in _SUMMARY_KEYS}


def draw_pictures(files: RunFiles) -> list[plotting.Picture]:
  """Every figure that the run has recorded something for."""
  layers = [] if files.run is None else [layer["path"] for layer in files.run["layers"]]
  order = [span.phase for span in plotting.phase_spans(files.records)]
  pictures = (
    figures.curves_picture(files.records),
    predictions.predictions_picture(files.gallery),
    histograms.weights_picture(files.weights, order=order, layers=layers),
    figures.alpha_picture(files.records, layers),
    watching.codes_picture(files.records, layers),
    watching.dead_picture(files.records, layers),
    watching.optimizer_picture(files.records),
    watching.speed_picture(files.records),
  )
  return [picture for picture in pictures if picture is not None]
