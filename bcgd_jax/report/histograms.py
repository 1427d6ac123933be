"""Histograms of the float weights before and after quantized training, and their levels."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from bcgd_jax.report import plotting
from bcgd_jax.report.plotting import COLORS, DPI, Picture

_MAX_LAYERS = 6
_MAX_PERCENT_LABELS = 4
_BEFORE, _AFTER, _LEVELS = COLORS[0], COLORS[1], "#1f2328"

_Entry = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
  """The two phases compared: path -> entry of weights.json; empty where there is no such phase."""

  before_phase: str | None
  after_phase: str | None
  before: Mapping[str, _Entry]
  after: Mapping[str, _Entry]


def choose_phases(weights: Mapping[str, Mapping[str, _Entry]], order: Sequence[str]) -> Chosen:
  """After: the last phase with codes. Before: the last phase without codes that precedes it.

  Args:
    weights: as weights.json.
    order: the phases in the order they ran; phases it does not name come last.
  """
  phases = sorted(weights, key=lambda phase: order.index(phase) if phase in order else len(order))
  coded = [phase for phase in phases if any(entry["codes"] for entry in weights[phase].values())]
  after = coded[-1] if coded else None
  plain = (
    [phase for phase in phases[: phases.index(after)] if phase not in coded] if after else phases
  )
  before = plain[-1] if plain else None
  return Chosen(before, after, weights.get(before or "", {}), weights.get(after or "", {}))


def weights_picture(
  weights: Mapping[str, Mapping[str, _Entry]], *, order: Sequence[str], layers: Sequence[str]
) -> Picture | None:
  """Up to six layers, evenly spread from first to last; None if there is nothing to draw.

  Args:
    weights: as weights.json.
    order: the phases in the order they ran.
    layers: the layers' paths in forward order.
  """
  chosen = choose_phases(weights, order)
  quantized = [path for path, entry in chosen.after.items() if entry["codes"]]
  candidates = plotting.order_paths(quantized or chosen.before, layers)
  paths = _spread([path for path in candidates if _is_drawable(chosen, path)])
  if not paths:
    return None
  num_rows = math.ceil(len(paths) / 2)
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 0.6 + 2.0 * num_rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(num_rows, min(2, len(paths)), squeeze=False)
    for axes in grid.flat[len(paths) :]:
      axes.remove()
    for axes, path in zip(grid.flat, paths, strict=False):
      axes.set_title(plotting.short_path(path), parse_math=False)
      _draw_layer(axes, chosen.before.get(path), chosen.after.get(path))
    _add_legend(figure, chosen)
    png = plotting.render(figure)
  shown = f"{len(paths)} of {len(candidates)} {'quantized ' if quantized else ''}layers"
  return Picture(
    file_name="weights.png",
    png=png,
    title="Weights before and after" if chosen.before and chosen.after else "Weights",
    alt=f"Histograms of the weights of {shown}: {', '.join(map(plotting.short_path, paths))}."
    + _levels_in_words(chosen, paths),
    caption=_caption(chosen, shown),
  )


def _spread(paths: Sequence[str]) -> list[str]:
  picks = np.linspace(0, len(paths) - 1, min(len(paths), _MAX_LAYERS)).round().astype(int)
  return [paths[index] for index in picks]


def _is_drawable(chosen: Chosen, path: str) -> bool:
  entries = [side[path] for side in (chosen.before, chosen.after) if path in side]
  return all(
    sum(entry["counts"]) > 0
    and np.all(np.isfinite(entry["edges"]))
    and np.all(np.diff(entry["edges"]) > 0)
    and np.all(np.isfinite(entry["scale"] or [0.0]))
    for entry in entries
  )


def _draw_layer(axes: Axes, before: _Entry | None, after: _Entry | None) -> None:
  if before is not None:
    axes.stairs(*_density(before), fill=True, color=_BEFORE, alpha=0.35)
  if after is not None:
    axes.stairs(*_density(after), color=_AFTER, linewidth=1.3)
  axes.set_ylim(bottom=0)
  axes.set_yticks([])
  axes.set_ylabel("density")
  axes.set_xlabel("weight")
  if after is not None and after["codes"]:
    _draw_levels(axes, after)


def _density(entry: _Entry) -> tuple[np.ndarray, np.ndarray]:
  # Area 1, so that the two phases compare although their bins differ in width.
  counts, edges = np.array(entry["counts"], dtype=np.float64), np.array(entry["edges"])
  return counts / (counts.sum() * np.diff(edges)), edges


def _levels(entry: _Entry) -> list[tuple[int, float]]:
  """(code, share of the weights) in rising order; codes no weight takes are left out."""
  total = sum(entry["codes"].values())
  return sorted((int(code), count / total) for code, count in entry["codes"].items() if count)


def _draw_levels(axes: Axes, entry: _Entry) -> None:
  right = axes.twinx()
  codes, shares = (np.array(column) for column in zip(*_levels(entry), strict=True))
  scale = np.array(entry["scale"])
  middles = codes * scale.mean()
  right.vlines(middles, 0, shares, color=_LEVELS, linewidth=1.2)
  right.plot(middles, shares, linestyle="none", marker="o", markersize=4, color=_LEVELS)
  if scale.size > 1:
    right.hlines(shares, codes * scale.min(), codes * scale.max(), color=_LEVELS, linewidth=0.8)
  if len(codes) <= _MAX_PERCENT_LABELS:
    for middle, share in zip(middles, shares, strict=True):
      right.annotate(
        f"{100 * share:.0f} %",
        (middle, share),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
      )
  right.set_ylim(0, 1.3 * shares.max())
  right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
  right.locator_params(axis="y", nbins=4)
  right.set_ylabel("share")
  right.spines["right"].set_visible(True)


def _add_legend(figure: Figure, chosen: Chosen) -> None:
  handles: list[Patch | Line2D] = []
  if chosen.before:
    label = f"float weights after phase '{chosen.before_phase}'"
    handles.append(Patch(color=_BEFORE, alpha=0.35, label=plotting.literal(label)))
  if chosen.after:
    label = f"float weights after phase '{chosen.after_phase}'"
    handles.append(Line2D([], [], color=_AFTER, linewidth=1.3, label=plotting.literal(label)))
    label = "the latter, quantized (share, right)"
    handles.append(Line2D([], [], color=_LEVELS, marker="o", markersize=4, label=label))
  figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def _levels_in_words(chosen: Chosen, paths: Sequence[str]) -> str:
  words = []
  for path in paths:
    entry = chosen.after.get(path)
    if entry is not None and entry["codes"]:
      levels = _levels(entry)
      if len(levels) <= _MAX_PERCENT_LABELS:
        shares = ", ".join(f"{100 * share:.0f} % at code {code}" for code, share in levels)
      else:
        shares = f"{len(levels)} levels, the largest share {100 * max(s for _, s in levels):.0f} %"
      words.append(f" {plotting.short_path(path)}: {shares}.")
  return "".join(words)


def _caption(chosen: Chosen, shown: str) -> str:
  text = f"The weights the optimizer keeps in float, as densities of area 1; {shown}."
  if not chosen.after:
    return text
  text += " Black: the values the network computes with, at the height of their share (right axis)."
  if any(len(entry["scale"] or []) > 1 for entry in chosen.after.values()):
    text += (
      " Scales differ by channel: a level stands at the mean scale, its bar spans all of them."
    )
  return text
