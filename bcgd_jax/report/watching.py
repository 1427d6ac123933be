"""Figures that tell how a run fares: optimizer, changed codes, dead activations, speed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bcgd_jax.report import lines, plotting
from bcgd_jax.report.formats import format_percent
from bcgd_jax.report.lines import Records
from bcgd_jax.report.plotting import DPI, Picture, Span


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
  """One quantity of the training records over steps."""

  field: str
  title: str
  label: str
  is_fraction: bool = False
  unit: str = ""


_OPTIMIZER = (
  _Panel(field="learning_rate", title="Learning rate", label="learning rate"),
  _Panel(field="rho", title="rho, the weight of blending", label="rho"),
  _Panel(field="grad_norm", title="Norm of the gradient", label="norm"),
)
_SPEED = (
  _Panel(field="step_seconds", title="Time of a step", label="seconds", unit=" s"),
  _Panel(
    field="input_wait_share",
    title="Share of it spent waiting for input",
    label="share",
    is_fraction=True,
  ),
)


def optimizer_picture(records: Records) -> Picture | None:
  """Learning rate, rho where there is any, and gradient norm; None if none was recorded."""
  blends = any(record.get("rho") for record in records if record["kind"] == "train")
  panels = [panel for panel in _OPTIMIZER if panel.field != "rho" or blends]
  return _panel_picture(
    records,
    panels,
    file_name="optimizer.png",
    title="Optimizer",
    caption=(
      "Learning rate and rho of the last step before each report; the norm of the gradient, over"
      " all parameters, is the mean over the steps since the report before."
    ),
  )


def speed_picture(records: Records) -> Picture | None:
  """Time of a step and the share of it that is waiting for input; None if none was recorded."""
  return _panel_picture(
    records,
    _SPEED,
    file_name="speed.png",
    title="Speed",
    caption=(
      "Means over the steps since the report before, without compilation, validation and"
      " checkpoints. Waiting for input costs nothing while the devices are still busy with earlier"
      " steps: the share bounds from above what the input costs. Near 100 %, the input sets the"
      " pace."
    ),
  )


def codes_picture(records: Records, layers: Sequence[str]) -> Picture | None:
  """Fraction of weights whose code changed, in all and by layer; None if none was recorded.

  Args:
    records: the metrics.
    layers: the layers' paths in forward order.
  """
  series = lines.layer_series(records, "codes", "changed")
  total = [r for r in records if r["kind"] == "train" and "codes_changed" in r]
  if not series or not total:
    return None
  paths = plotting.order_paths(series, layers)
  spans = lines.spans_of_kind(records, "codes")
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 5.8), dpi=DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    lines.draw_by_phase(top, total, spans, "codes_changed", smooth=True)
    plotting.set_title(top, "Of all quantized weights", above_names=True)
    lines.draw_layers(figure, bottom, series, paths)
    plotting.set_title(bottom, "By layer", above_names=False)
    _finish_axes((top, bottom), spans, fractions=(True, True), label="weights changed")
    png = plotting.render(figure)
  first, last = total[0], total[-1]
  return Picture(
    file_name="codes.png",
    png=png,
    title="Changed codes",
    alt=(
      f"Two line charts of the weights whose code changed between reports: from"
      f" {format_percent(first['codes_changed'])} at step {first['step']:,} to"
      f" {format_percent(last['codes_changed'])} at step {last['step']:,} of all, and by layer for"
      f" {len(paths)} layers."
    ),
    caption=(
      "The fraction of weights whose integer code is another one than at the report before. It"
      " falls as the quantized network settles; a layer that stays high swings between codes."
      " Colours run from the first layer (dark) to the last (light)."
    ),
  )


def dead_picture(records: Records, layers: Sequence[str]) -> Picture | None:
  """Fraction of dead channels of each activation over steps; None if none was recorded.

  Args:
    records: the metrics.
    layers: the layers' paths in forward order.
  """
  series = lines.layer_series(records, "dead", "dead")
  if not series:
    return None
  paths = plotting.order_paths(series, layers)
  spans = lines.spans_of_kind(records, "dead")
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    lines.draw_layers(figure, axes, series, paths)
    plotting.set_title(axes, "Dead channels of each activation", above_names=True)
    _finish_axes((axes,), spans, fractions=(True,), label="channels dead")
    png = plotting.render(figure)
  ends = {path: values[-1][1] for path, values in series.items()}
  worst = max(paths, key=ends.__getitem__)
  return Picture(
    file_name="dead.png",
    png=png,
    title="Dead activations",
    alt=(
      f"Line chart of the dead channels of {len(paths)} activations; at the end"
      f" {plotting.short_path(worst)} has most, {format_percent(ends[worst])}."
    ),
    caption=(
      "The fraction of an activation's channels that are 0 everywhere on one fixed batch of"
      " training images. What lies before a dead channel gets no gradient. Colours run from the"
      " first layer (dark) to the last (light)."
    ),
  )


def _panel_picture(
  records: Records, panels: Sequence[_Panel], *, file_name: str, title: str, caption: str
) -> Picture | None:
  """The panels that have records, one below the other."""
  train = [{**r, **r.get("timing", {})} for r in records if r["kind"] == "train"]
  recorded = {panel: [r for r in train if panel.field in r] for panel in panels}
  shown = [panel for panel in panels if recorded[panel]]
  if not shown:
    return None
  spans = plotting.phase_spans(records)
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 0.8 + 2.2 * len(shown)), dpi=DPI, layout="constrained")
    every = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0].tolist()
    for index, (axes, panel) in enumerate(zip(every, shown, strict=True)):
      lines.draw_by_phase(axes, recorded[panel], spans, panel.field, smooth=True)
      values = [record[panel.field] for record in recorded[panel]]
      is_log = not panel.is_fraction and lines.set_log_axis(axes, values)
      words = panel.title + (" (logarithmic axis)" if is_log else "")
      plotting.set_title(axes, words, above_names=index == 0)
    _finish_axes(every, spans, fractions=[panel.is_fraction for panel in shown], label=None)
    for axes, panel in zip(every, shown, strict=True):
      axes.set_ylabel(panel.label)
    png = plotting.render(figure)
  facts = "; ".join(_panel_fact(panel, recorded[panel]) for panel in shown)
  alt = f"{len(shown)} line charts over steps. {facts}."
  return Picture(file_name=file_name, png=png, title=title, alt=alt, caption=caption)


def _panel_fact(panel: _Panel, records: Sequence[Mapping[str, Any]]) -> str:
  ends = (records[index][panel.field] for index in (0, -1))
  first, last = (format_percent(x) if panel.is_fraction else f"{x:.3g}{panel.unit}" for x in ends)
  return f"{panel.title}: from {first} to {last}"


def _finish_axes(
  every: Sequence[Axes], spans: Sequence[Span], *, fractions: Sequence[bool], label: str | None
) -> None:
  """Tints the phases, names them above the first axes and labels the steps below the last."""
  for index, (axes, is_fraction) in enumerate(zip(every, fractions, strict=True)):
    plotting.mark_phases(axes, spans, named=index == 0)
    if is_fraction:
      axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
      top = axes.get_ylim()[1]
      axes.set_ylim(-0.02 * top, top)  # a line at 0 stays in sight
    if label is not None:
      axes.set_ylabel(label)
  plotting.label_steps(every[-1])
