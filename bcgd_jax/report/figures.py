"""Figures over the steps of a run: loss and accuracy, and alpha."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bcgd_jax.report import plotting
from bcgd_jax.report.formats import format_percent
from bcgd_jax.report.plotting import DPI, Picture, Span

_MAX_NAMED_LINES = 10
_LOG_RANGE = 30.0  # a loss that falls by more than this is drawn on a logarithmic axis
_SMOOTH_FROM = 60  # records in a phase from which on a running mean is drawn as well

_Records = Sequence[Mapping[str, Any]]


def curves_picture(records: _Records) -> Picture | None:
  """Training loss above, accuracy below, over steps; None if nothing was recorded to draw.

  Accuracy is that of the validation split, or of the training batches where a run has no such
  split, with a point for the test accuracy at the end of each phase.
  """
  spans = plotting.phase_spans(records)
  train, validation, test = (
    [record for record in records if record["kind"] == kind]
    for kind in ("train", "validation", "test")
  )
  if not (train or validation or test):
    return None
  measured, name = (validation, "validation") if validation else (train, "training")
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 5.4), dpi=DPI, layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(2, 1, sharex=True)
    _draw_by_phase(loss_axes, train, spans, "loss", smooth=True)
    _label_loss(loss_axes, [record["loss"] for record in train])
    _draw_by_phase(accuracy_axes, measured, spans, "accuracy", smooth=not validation)
    _draw_test_points(accuracy_axes, test, spans)
    title = f"{name.capitalize()} accuracy (line) and test accuracy (diamonds)"
    plotting.set_title(accuracy_axes, title, above_names=False)
    accuracy_axes.set_ylabel("accuracy")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    plotting.mark_phases(loss_axes, spans, named=True)
    plotting.mark_phases(accuracy_axes, spans, named=False)
    plotting.label_steps(accuracy_axes)
    png = plotting.render(figure)
  return Picture(
    file_name="curves.png",
    png=png,
    title="Loss and accuracy",
    alt=_curves_alt(spans, train, measured, test, name),
    caption=(
      f"Training loss and {name} accuracy over the optimizer's steps, the phases tinted. A thin"
      " line is as recorded, a thick one over it the running mean. The accuracy axis does not start"
      " at zero."
    ),
  )


def alpha_picture(records: _Records, layers: Sequence[str]) -> Picture | None:
  """The step size alpha of each quantized activation over steps; None if the run has no alpha.

  Args:
    records: the metrics.
    layers: the layers' paths in forward order, for the order of colours and names.
  """
  recorded = [record for record in records if record["kind"] == "alpha"]
  series: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)
  for record in recorded:
    for path, value in record["alpha"].items():
      series[path].append((record["step"], value))
  if not series:
    return None
  paths = plotting.order_paths(series, layers)
  phases = {record["phase"] for record in recorded}
  spans = [span for span in plotting.phase_spans(records) if span.phase in phases]
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(paths)))
    for path, color in zip(paths, colors, strict=True):
      steps, values = zip(*series[path], strict=True)
      axes.plot(steps, values, color=color, marker="o" if len(steps) == 1 else None)
    plotting.set_title(axes, "alpha of each quantized activation", above_names=True)
    axes.set_ylabel("alpha")
    plotting.mark_phases(axes, spans, named=True)
    plotting.label_steps(axes)
    _name_lines(figure, axes, paths, colors)
    png = plotting.render(figure)
  return Picture(
    file_name="alpha.png",
    png=png,
    title="alpha over time",
    alt=_alpha_alt(paths, series),
    caption=(
      "alpha is the distance between two levels of a quantized ReLU, in units of its input; each"
      " activation learns its own. Colours run from the first layer (dark) to the last (light)."
    ),
  )


def _draw_by_phase(
  axes: Axes, records: _Records, spans: Sequence[Span], field: str, *, smooth: bool
) -> None:
  # A line a phase: from one phase to the next the network changes, so no line joins them.
  for span in spans:
    own = [record for record in records if record["phase"] == span.phase]
    if not own:
      continue
    steps = np.array([record["step"] for record in own])
    values = np.array([record[field] for record in own], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    many = smooth and len(own) >= _SMOOTH_FROM
    marker = "o" if len(own) <= 40 else None
    axes.plot(
      steps,
      values,
      color=span.color,
      alpha=0.35 if many else 1.0,
      linewidth=0.8 if many else 1.6,
      marker=marker,
      markersize=3,
    )
    if many:
      axes.plot(*_running_mean(steps, values, len(own) // 20), color=span.color)


def _running_mean(steps: np.ndarray, values: np.ndarray, window: int) -> tuple[np.ndarray, ...]:
  # Only whole windows, each drawn at its middle: no padding bends the ends.
  kernel = np.full(window, 1.0 / window)
  return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")


def _label_loss(axes: Axes, losses: Sequence[float]) -> None:
  finite = [loss for loss in losses if math.isfinite(loss)]
  logarithmic = bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _LOG_RANGE
  if logarithmic:
    axes.set_yscale("log")
  title = "Training loss" + (" (logarithmic axis)" if logarithmic else "")
  plotting.set_title(axes, title, above_names=True)
  axes.set_ylabel("loss (nats an example)")


def _draw_test_points(axes: Axes, test: _Records, spans: Sequence[Span]) -> None:
  colors = {span.phase: span.color for span in spans}
  for record in test:
    color = colors[record["phase"]]
    point = (record["step"], record["accuracy"])
    axes.plot(*point, marker="D", markersize=7, color=color, markeredgecolor="white", zorder=5)
    axes.annotate(
      f"test {format_percent(record['accuracy'])}",
      point,
      xytext=(-8, -14),
      textcoords="offset points",
      ha="right",
      color=color,
      weight="bold",
      bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
      zorder=6,
    )


def _name_lines(figure: Figure, axes: Axes, paths: Sequence[str], colors: np.ndarray) -> None:
  names = [plotting.literal(plotting.short_path(path)) for path in paths]
  if len(paths) <= _MAX_NAMED_LINES:
    axes.legend(axes.get_lines(), names, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return
  scale = ScalarMappable(
    BoundaryNorm(np.arange(len(paths) + 1) - 0.5, len(paths)), ListedColormap(list(colors))
  )
  shown = np.unique(np.linspace(0, len(paths) - 1, _MAX_NAMED_LINES).round().astype(int))
  bar = figure.colorbar(scale, ax=axes, ticks=shown.tolist(), pad=0.01)
  bar.ax.set_yticklabels([names[index] for index in shown], fontsize=7)
  bar.ax.invert_yaxis()
  bar.minorticks_off()


def _curves_alt(
  spans: Sequence[Span], train: _Records, measured: _Records, test: _Records, name: str
) -> str:
  parts = [f"Two line charts over {spans[-1].end:,} optimizer steps."]
  for span in spans:
    first_last = [record["loss"] for record in train if record["phase"] == span.phase]
    reached = [record["accuracy"] for record in measured if record["phase"] == span.phase]
    tested = [record["accuracy"] for record in test if record["phase"] == span.phase]
    facts = []
    if first_last:
      facts.append(f"training loss from {first_last[0]:.3g} to {first_last[-1]:.3g}")
    if reached:
      facts.append(f"{name} accuracy ending at {format_percent(reached[-1])}")
    if tested:
      facts.append(f"test accuracy {format_percent(tested[-1])}")
    if facts:
      parts.append(f"Phase {span.phase}: {', '.join(facts)}.")
  return " ".join(parts)


def _alpha_alt(paths: Sequence[str], series: Mapping[str, Sequence[tuple[int, float]]]) -> str:
  ends = [values[-1][1] for values in series.values()]
  return (
    f"Line chart of alpha for {len(paths)} activations, from {plotting.short_path(paths[0])} to"
    f" {plotting.short_path(paths[-1])}; the last values lie between {min(ends):.3g} and"
    f" {max(ends):.3g}."
  )
