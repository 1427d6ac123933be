"""The report of a finished run: figures, a page for people, a summary for programs."""

from pathlib import Path
from typing import Any

from bcgd_jax.report import figures, histograms, html, plotting
from bcgd_jax.report.files import read_json, write_atomic, write_json
from bcgd_jax.report.workdir import RunFiles, read_run_files

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
_PICTURE_FILES = ("curves.png", "weights.png", "alpha.png")


def write_report(workdir: Path) -> Path:
  """Writes `workdir`/report/ anew and returns the path of its report.html.

  summary.json holds float_test_accuracy and quantized_test_accuracy (fractions, null where the run
  has no such phase), weight_bits, activation_bits, float_bytes, quantized_bytes, phase_seconds
  ({phase: seconds}), model, dataset, num_parameters and num_test_examples. curves.png, weights.png
  and alpha.png are there as far as the run recorded what they show. report.html holds all of it in
  one file. Each file is replaced atomically, report.html last.

  Raises:
    UsageError: if a file of the run is missing (as run.json of an unfinished run) or invalid.
  """
  workdir = Path(workdir)
  files = read_run_files(workdir)
  summary = summarize_run(files.run)
  pictures = draw_pictures(files)
  page = html.report_page(
    summary, pictures=pictures, layers=files.run["layers"], config=files.config
  )
  folder = workdir / "report"
  folder.mkdir(exist_ok=True)
  for picture in pictures:
    write_atomic(folder / picture.file_name, picture.png)
  for stale in set(_PICTURE_FILES) - {picture.file_name for picture in pictures}:
    (folder / stale).unlink(missing_ok=True)
  write_json(folder / "summary.json", summary)
  path = folder / "report.html"
  write_atomic(path, page.encode())
  return path


def read_summary(workdir: Path) -> dict[str, Any]:
  """The figures of `workdir`/report/summary.json, as `write_report` left them.

  Raises:
    UsageError: if the file is missing or is not a JSON object.
  """
  return read_json(Path(workdir) / "report" / "summary.json")


def summarize_run(run: dict[str, Any]) -> dict[str, Any]:
  """The contents of summary.json, out of run.json."""
  return {key: run[key] for key in _SUMMARY_KEYS}


def draw_pictures(files: RunFiles) -> list[plotting.Picture]:
  """Curves, weights and alpha, as far as the run recorded what they show."""
  layers = [layer["path"] for layer in files.run["layers"]]
  order = [span.phase for span in plotting.phase_spans(files.records)]
  pictures = (
    figures.curves_picture(files.records),
    histograms.weights_picture(files.weights, order=order, layers=layers),
    figures.alpha_picture(files.records, layers),
  )
  return [picture for picture in pictures if picture is not None]
