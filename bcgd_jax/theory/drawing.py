"""What the theory's figures share: their size, legends and labels."""

from collections.abc import Mapping
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bcgd_jax.report.plotting import DPI

GREY = "#57606a"  # of lines that are no estimator's


def make_figure(width: float = 10.5) -> Figure:
  """A figure for panels in one row."""
  return Figure(figsize=(width, 3.7), dpi=DPI, layout="constrained")


def add_legend(
  figure: Figure, axes: Axes, dashes: Mapping[str, Literal["-", ":"]] | None = None
) -> None:
  """The labels of `axes` below all panels, and after them what each style of dashes means."""
  handles, labels = axes.get_legend_handles_labels()
  for label, style in (dashes or {}).items():
    handles.append(Line2D([], [], color=GREY, linestyle=style))
    labels.append(label)
  figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def label_steps(*all_axes: Axes) -> None:
  """Names the horizontal axis and draws level lines."""
  for axes in all_axes:
    axes.set_xlabel("descent step")
    axes.grid(axis="y")
