"""Lines over the steps of a run: one a phase, or one a layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from bcgd_jax.report import plotting
from bcgd_jax.report.plotting import Span

_LOG_RANGE = 30.0  # values that span more than this factor are drawn on a logarithmic axis
_MAX_NAMED_LINES = 10
_SMOOTH_FROM = 60  # records in a phase from which on a running mean is drawn as well

Records = Sequence[Mapping[str, Any]]
Series = Mapping[str, Sequence[tuple[int, float]]]


def draw_by_phase(
  axes: Axes, records: Records, spans: Sequence[Span], field: str, *, smooth: bool
) -> None:
  """A line a phase: from one phase to the next the network changes, so no line joins them.

  Args:
    axes: to draw on.
    records: of one kind, each with the number `field`; those that are not finite leave a gap.
    spans: the phases, for their colours.
    field: what is drawn.
    smooth: whether a long phase gets a running mean over the line as recorded.
  """
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
      axes.plot(*running_mean(steps, values, len(own) // 20), color=span.color)


def running_mean(
  steps: np.ndarray, values: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
  """Means over whole windows, each at its middle: no padding bends the ends."""
  kernel = np.full(window, 1.0 / window)
  return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")


def set_log_axis(axes: Axes, values: Sequence[float]) -> bool:
  """Draws on a logarithmic axis where positive values span a wide range; returns whether it did."""
  finite = [value for value in values if math.isfinite(value)]
  wide = bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _LOG_RANGE
  if wide:
    axes.set_yscale("log")
  return wide


def layer_series(records: Records, kind: str, field: str) -> Series:
  """path -> [(step, value)], out of the records of `kind` whose `field` maps paths to numbers."""
  series: dict[str, list[tuple[int, float]]] = {}
  for record in records:
    if record["kind"] == kind:
      for path, value in record[field].items():
        series.setdefault(path, []).append((record["step"], value))
  return series


def spans_of_kind(records: Records, kind: str) -> list[Span]:
  """The phases that have records of `kind`."""
  phases = {record["phase"] for record in records if record["kind"] == kind}
  return [span for span in plotting.phase_spans(records) if span.phase in phases]


def draw_layers(figure: Figure, axes: Axes, series: Series, paths: Sequence[str]) -> None:
  """A line a layer, from dark for the first of `paths` to light for the last, with their names."""
  colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(paths)))
  for path, color in zip(paths, colors, strict=True):
    steps, values = zip(*series[path], strict=True)
    axes.plot(steps, values, color=color, marker="o" if len(steps) == 1 else None)
  _name_lines(figure, axes, paths, colors)


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
