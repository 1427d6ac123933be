"""A suite's figures, out of its records: curves, blending, a bar a row."""

import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bcgd_jax.report import plotting
from bcgd_jax.report.plotting import COLORS, DPI, Picture
from bcgd_jax.suites.spec import Suite

Record = Mapping[str, Any]


def suite_pictures(suite: Suite, records: Sequence[Record]) -> list[Picture]:
  """The figures that the finished runs have data for."""
  done = [r for r in records if r["status"] == "done"]
  pictures = (curves_picture(suite, done), blending_picture(suite, done), bars_picture(suite, done))
  return [picture for picture in pictures if picture is not None]


def bars_picture(suite: Suite, done: Sequence[Record]) -> Picture | None:
  """Test error of each row: a bar at the mean, a dot a seed; None if nothing has run."""
  rows = [row.name for row in suite.rows if any(r["row"] == row.name for r in done)]
  if not rows:
    return None
  errors = {name: [100 * (1 - r["test_accuracy"]) for r in _of(done, name)] for name in rows}
  means = {name: statistics.fmean(values) for name, values in errors.items()}
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 1.0 + 0.34 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    colors = [COLORS[0] if _is_float(done, name) else COLORS[1] for name in rows]
    axes.barh(places, list(means.values()), color=colors, height=0.62, alpha=0.75)
    for place, name in zip(places, rows, strict=True):
      axes.plot(errors[name], [place] * len(errors[name]), "o", color="#1f2328", markersize=3)
      text = f"{means[name]:.2f}"
      edge = max(*errors[name], means[name])
      axes.annotate(
        text, (edge, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
      )
    axes.set_yticks(places, [plotting.literal(name) for name in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("test error, %")
    axes.grid(axis="x")
    axes.set_title("Test error of each row")
    png = plotting.render(figure)
  return Picture(
    file_name="bars.png",
    png=png,
    title="Test error of each row",
    caption="Bars are means over seeds, dots single seeds; blue is float, orange quantized.",
    alt="Bar chart of test error: "
    + "; ".join(f"{name} {mean:.2f} %" for name, mean in means.items())
    + ".",
  )


def curves_picture(suite: Suite, done: Sequence[Record]) -> Picture | None:
  """Validation accuracy against epochs, mean over seeds with their range; None without curves."""
  rows = [row.name for row in suite.rows if any(r["validation"] for r in _of(done, row.name))]
  if not rows:
    return None
  colors = _colors(len(rows))
  ends = []
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 4.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    lows = []
    for name, color in zip(rows, colors, strict=True):
      points: dict[float, list[float]] = collections.defaultdict(list)
      for record in _of(done, name):
        # a run that changes its weights after the last step is scored twice there: the last counts
        for epoch, accuracy in {
          round(p["epoch"], 3): p["accuracy"] for p in record["validation"]
        }.items():
          points[epoch].append(100 * accuracy)
      epochs = sorted(points)
      means = [statistics.fmean(points[epoch]) for epoch in epochs]
      axes.plot(epochs, means, color=color, label=plotting.literal(name), linewidth=1.3)
      low, high = [min(points[e]) for e in epochs], [max(points[e]) for e in epochs]
      axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
      ends.append(f"{name} ends at {means[-1]:.2f} %")
      lows += means
    # a first epoch may lie anywhere; what is compared lies in the upper half of the values
    top = max(lows)
    axes.set_ylim(max(0.0, top - 2.5 * (top - float(np.median(lows))) - 1.0), top + 0.5)
    axes.set_xlabel("epoch, over all phases")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("validation accuracy, %")
    axes.grid(axis="y")
    axes.set_title("Validation accuracy along training")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    png = plotting.render(figure)
  return Picture(
    file_name="curves.png",
    png=png,
    title="Validation accuracy along training",
    caption=(
      "Lines are means over seeds, bands their range. Rows that share a float phase share its "
      "curve. The axis does not start at zero."
    ),
    alt="Line chart of validation accuracy against epochs: " + "; ".join(ends) + ".",
  )


def blending_picture(suite: Suite, done: Sequence[Record]) -> Picture | None:
  """Test accuracy against rho times steps, a line a group of rows; None without such a group."""
  names = {row.name: row.blending for row in suite.rows if row.blending}
  groups: dict[str, dict[str, list[Record]]] = collections.defaultdict(dict)
  for name, group in names.items():
    own = _of(done, name)
    if own:
      groups[group][name] = own
  groups = {group: rows for group, rows in groups.items() if len(rows) > 1}
  if not groups:
    return None
  facts = []
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shift = 0.012 * (np.arange(len(groups)) - (len(groups) - 1) / 2)
    for (group, rows), color, aside in zip(
      groups.items(), _colors(len(groups)), shift, strict=True
    ):
      cells = sorted(rows.values(), key=lambda own: own[0]["rho_steps"])
      doses = np.array([own[0]["rho_steps"] for own in cells])
      scores = [[100 * r["test_accuracy"] for r in own] for own in cells]
      means = np.array([statistics.fmean(s) for s in scores])
      spread = [statistics.stdev(s) if len(s) > 1 else 0.0 for s in scores]
      # a tenth is where the symmetric logarithm of the axis turns linear: room for 0 beside it
      x = doses * (1 + aside) + 0.1 * aside
      axes.errorbar(x, means, spread, color=color, marker="o", markersize=5, capsize=3, label=group)
      for dose, values in zip(x, scores, strict=True):
        axes.plot([dose] * len(values), values, ".", color=color, alpha=0.45, markersize=5)
      facts += [f"{group} at {d:.2g}: {m:.2f} %" for d, m in zip(doses, means, strict=True)]
    axes.set_xscale("symlog", linthresh=0.1)
    ticks = sorted({round(own[0]["rho_steps"], 2) for g in groups.values() for own in g.values()})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("rho x steps (0 is BinaryConnect; the authors' 200 CIFAR epochs: 0.78)")
    axes.set_ylabel("test accuracy, %")
    axes.grid(axis="y")
    axes.set_title("With and without blending")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    png = plotting.render(figure)
  return Picture(
    file_name="blending.png",
    png=png,
    title="With and without blending",
    caption=(
      "Mean over seeds with one standard deviation, small dots single seeds. The axis is "
      "logarithmic above 0.1 and linear below."
    ),
    alt="Test accuracy against rho times steps. " + "; ".join(facts) + ".",
  )


def _of(done: Sequence[Record], name: str) -> list[Record]:
  return [r for r in done if r["row"] == name]


def _is_float(done: Sequence[Record], name: str) -> bool:
  first = _of(done, name)[0]
  return first["weight_bits"] == 32 and first["activation_bits"] == 32


def _colors(count: int) -> list[Any]:
  if count <= len(COLORS):
    return list(COLORS[:count])
  return list(matplotlib.colormaps["tab20"](np.linspace(0.0, 1.0, count)))
