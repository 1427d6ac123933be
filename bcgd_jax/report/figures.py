"""Figures over the steps of a run: loss and accuracy, and alpha."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bcgd_jax.report import lines, plotting
from bcgd_jax.report.formats import format_percent
from bcgd_jax.report.lines import Records, Series
from bcgd_jax.report.plotting import DPI, Picture, Span


def curves_picture(records: Records) -> Picture | None:
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
    lines.draw_by_phase(loss_axes, train, spans, "loss", smooth=True)
    _label_loss(loss_axes, [record["loss"] for record in train])
    lines.draw_by_phase(accuracy_axes, measured, spans, "accuracy", smooth=not validation)
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


def alpha_picture(records: Records, layers: Sequence[str]) -> Picture | None:
  """The step size alpha of each quantized activation over steps; None if the run has no alpha.

  Args:
    records: the metrics.
    layers: the layers' paths in forward order, for the order of colours and names.
  """
  series = lines.layer_series(records, "alpha", "alpha")
  if not series:
    return None
  paths = plotting.order_paths(series, layers)
  spans = lines.spans_of_kind(records, "alpha")
  with plotting.plot_style():
    figure = Figure(figsize=(8.0, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    lines.draw_layers(figure, axes, series, paths)
    plotting.set_title(axes, "alpha of each quantized activation", above_names=True)
    axes.set_ylabel("alpha")
    plotting.mark_phases(axes, spans, named=True)
    plotting.label_steps(axes)
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


def _label_loss(axes: Axes, losses: Sequence[float]) -> None:
  logarithmic = lines.set_log_axis(axes, losses)
  title = "Training loss" + (" (logarithmic axis)" if logarithmic else "")
  plotting.set_title(axes, title, above_names=True)
  axes.set_ylabel("loss (nats an example)")


def _draw_test_points(axes: Axes, test: Records, spans: Sequence[Span]) -> None:
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


def _curves_alt(
  spans: Sequence[Span], train: Records, measured: Records, test: Records, name: str
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


def _alpha_alt(paths: Sequence[str], series: Series) -> str:
  ends = [values[-1][1] for values in series.values()]
  return (
    f"Line chart of alpha for {len(paths)} activations, from {plotting.short_path(paths[0])} to"
    f" {plotting.short_path(paths[-1])}; the last values lie between {min(ends):.3g} and"
    f" {max(ends):.3g}."
  )
