"""What the figures share: the look, the phases on the step axis, names of layers, PNG bytes.

Drawn on matplotlib's own Figure with the Agg canvas: no pyplot, no display, no state between calls.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bcgd_jax.report.tables import Table

# Okabe and Ito's palette, told apart with every common colour blindness; one colour a phase.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DPI = 200  # twice the 100 at which the figures' sizes are meant

_STYLE: dict[Any, Any] = {
  "font.size": 9.0,
  "axes.titlesize": 10.0,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#8c959f",
  "axes.labelcolor": "#1f2328",
  "text.color": "#1f2328",
  "text.usetex": False,
  "xtick.color": "#57606a",
  "ytick.color": "#57606a",
  "grid.color": "#d0d7de",
  "grid.linewidth": 0.6,
  "legend.frameon": False,
  "legend.fontsize": 8.0,
  "lines.linewidth": 1.6,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
  """A finished figure: file name, PNG bytes, heading, caption, and `alt` for who cannot see it.

  `table`, where there is one, is shown below it: its title is its caption.
  """

  file_name: str
  png: bytes
  title: str
  caption: str
  alt: str
  table: Table | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
  """The steps of one phase: it begins after step `start` and ends with step `end`."""

  phase: str
  start: int
  end: int
  color: str


def phase_spans(records: Iterable[Mapping[str, Any]]) -> list[Span]:
  """The phases in order of appearance; one that took no step has start == end."""
  ends: dict[str, int] = {}
  for record in records:
    ends[record["phase"]] = max(record["step"], ends.get(record["phase"], 0))
  spans: list[Span] = []
  start = 0
  for phase, end in ends.items():
    # Colours go to phases that took steps, so that a calibration in between does not take one.
    taken = sum(span.end > span.start for span in spans)
    spans.append(Span(phase, start, max(start, end), COLORS[taken % len(COLORS)]))
    start = spans[-1].end
  return spans


def plot_style() -> contextlib.AbstractContextManager[None]:
  """The look of all figures, in force inside a `with` block only."""
  return matplotlib.rc_context(_STYLE)


def mark_phases(axes: Axes, spans: Sequence[Span], *, named: bool) -> None:
  """Limits the axis to the phases that took steps and tints each one's ground in its colour.

  `named` writes each phase's name above its ground: see `set_title`.
  """
  drawn = [span for span in spans if span.end > span.start]
  for span in drawn:
    axes.axvspan(span.start, span.end, color=span.color, alpha=0.07, linewidth=0, zorder=0)
    if named:
      axes.text(
        (span.start + span.end) / 2,
        1.01,
        span.phase,
        color=span.color,
        ha="center",
        va="bottom",
        weight="bold",
        transform=axes.get_xaxis_transform(),
        parse_math=False,
      )
  if drawn:
    margin = 0.01 * (drawn[-1].end - drawn[0].start)
    axes.set_xlim(drawn[0].start - margin, drawn[-1].end + margin)
  axes.grid(axis="y")


def set_title(axes: Axes, title: str, *, above_names: bool) -> None:
  """The title of axes over steps, clear of the phases' names where these are shown."""
  axes.set_title(title, pad=18.0 if above_names else None)


def label_steps(axes: Axes) -> None:
  """Labels the horizontal axis as steps of the optimizer, in whole numbers."""
  axes.set_xlabel("optimizer step")
  axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
  axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def order_paths(found: Iterable[str], layers: Sequence[str]) -> list[str]:
  """`found` in the order of `layers`, whose paths equal them or contain them; strangers last."""

  def position(path: str) -> int:
    inside = [i for i, layer in enumerate(layers) if path == layer or path.startswith(f"{layer}/")]
    return max(inside, key=lambda i: len(layers[i]), default=len(layers))

  return sorted(found, key=position)


def short_path(path: str) -> str:
  """The path without the parameter's own name: "stage1/relu/alpha" -> "stage1/relu"."""
  head, _, last = path.rpartition("/")
  return head if head and last in ("kernel", "alpha") else path


def literal(text: str) -> str:
  """`text` for a legend or tick, where matplotlib would read between two dollars as formula."""
  return text.replace("$", r"\$")


def render(figure: Figure) -> bytes:
  """The figure as PNG bytes; the same figure gives the same bytes."""
  FigureCanvasAgg(figure)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
  return buffer.getvalue()
