"""Test images with what the float and the quantized network of a run say of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bcgd_jax.report import plotting
from bcgd_jax.report.formats import format_count, format_percent
from bcgd_jax.report.gallery import Gallery
from bcgd_jax.report.plotting import DPI, Picture
from bcgd_jax.report.tables import Column, Table

# In inches. A cell is an image with three lines of text below, wider than it by up to the gap.
_WIDTH = 8.0
_MARGIN = 0.1
_HEADING = 0.38
_LINES = 0.46
_GAP, _ROW_GAP = 0.3, 0.16
_MAX_ASPECT = 1.5  # height over width of a cell's image; higher ones do not fill its width

# What fits below an image: "quantized" and a name of so many letters.
_COLUMNS, _MAX_NAME = 5, 11
_WIDE_COLUMNS, _MAX_WIDE_NAME = 4, 18
_RIGHT, _WRONG = "#57606a", "#B34700"
_OUTCOMES = ("Both right", "Only float right", "Only quantized right", "Both wrong")


class Group(NamedTuple):
  """Images of a gallery that stand below one heading."""

  heading: str
  indexes: range


def predictions_picture(gallery: Gallery | None) -> Picture | None:
  """Images in a grid, each with its label and two predictions; None without a gallery."""
  if gallery is None:
    return None
  with plotting.plot_style():
    png = plotting.render(_draw(gallery, image_groups(gallery)))
  return Picture(
    file_name="predictions.png",
    png=png,
    title="Predictions",
    alt=_alt(gallery),
    caption=_caption(gallery),
    table=outcome_table(gallery),
  )


def outcome_table(gallery: Gallery) -> Table:
  """How often which of the two networks is right, with the shares of all images counted."""
  counts = gallery.counts.tolist()
  total = sum(counts)
  seen, size = format_count(gallery.num_seen), format_count(gallery.split_size)
  which = f"all {size}" if gallery.num_seen == gallery.split_size else f"the first {seen} of {size}"
  unread = gallery.num_seen - total
  left_out = f", without {format_count(unread)} that could not be read" if unread else ""
  return Table(
    title=(
      f"Predictions on {which} test images{left_out}; on {format_count(gallery.num_different)} of"
      " them the two networks disagree."
    ),
    columns=(Column("Networks"), Column("Images", numeric=True), Column("Share", numeric=True)),
    rows=tuple(
      (name, format_count(count), format_percent(count / total) if total else "-")
      for name, count in zip(_OUTCOMES, counts, strict=True)
    ),
    totals=("Total", format_count(total), ""),
  )


def _num_others(gallery: Gallery) -> int:
  """Images on which the networks disagree, without those in the sample."""
  sample = slice(gallery.num_sample)
  in_sample = gallery.float_predictions[sample] != gallery.quantized_predictions[sample]
  return gallery.num_different - int(np.sum(in_sample))


def image_groups(gallery: Gallery) -> list[Group]:
  """The sample, and the others on which the networks disagree, where there are any."""
  num_images, num_sample = len(gallery.images), gallery.num_sample
  shown, others = num_images - num_sample, _num_others(gallery)
  if shown < others:
    which = f"{shown} of {format_count(others)} others"
  else:
    which = "One other" if others == 1 else f"All {others} others"
  groups = (
    Group(f"{num_sample} test images, evenly spaced", range(num_sample)),
    Group(f"{which} on which the two networks disagree", range(num_sample, num_images)),
  )
  return [group for group in groups if group.indexes]


def _has_long_names(gallery: Gallery) -> bool:
  every = (gallery.labels, gallery.float_predictions, gallery.quantized_predictions)
  shown = np.unique(np.concatenate(every)).tolist()
  return max(len(gallery.class_name(label)) for label in shown) > _MAX_NAME


def _draw(gallery: Gallery, groups: Sequence[Group]) -> Figure:
  is_wide = _has_long_names(gallery)
  num_columns = _WIDE_COLUMNS if is_wide else _COLUMNS
  max_name = _MAX_WIDE_NAME if is_wide else _MAX_NAME
  height, width = gallery.images.shape[1:3]
  cell_width = (_WIDTH - 2 * _MARGIN) / num_columns
  image_width = cell_width - _GAP
  image_height = image_width * min(height / width, _MAX_ASPECT)
  cell_height = image_height + _LINES + _ROW_GAP
  num_rows = [math.ceil(len(group.indexes) / num_columns) for group in groups]
  total = sum(_HEADING + rows * cell_height for rows in num_rows)
  figure = Figure(figsize=(_WIDTH, total), dpi=DPI)

  def place(left: float, below_top: float) -> tuple[float, float]:
    return left / _WIDTH, 1 - below_top / total

  top = 0.0
  for group, rows in zip(groups, num_rows, strict=True):
    heading_at = place(_MARGIN, top + _HEADING / 2)
    figure.text(*heading_at, group.heading, va="center", weight="bold", fontsize=10)
    top += _HEADING
    for number, index in enumerate(group.indexes):
      row, column = divmod(number, num_columns)
      corner = place(_MARGIN + column * cell_width, top + row * cell_height + image_height)
      axes = figure.add_axes((*corner, image_width / _WIDTH, image_height / total))
      _draw_cell(axes, gallery, index, max_name)
    top += rows * cell_height
  return figure


def _draw_cell(axes: Axes, gallery: Gallery, index: int, max_name: int) -> None:
  image = gallery.images[index]
  axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
  axes.set_anchor("SW")
  axes.axis("off")
  label = int(gallery.labels[index])
  _write_line(axes, 0, f"label {_shorten(gallery.class_name(label), max_name)}", wrong=False)
  for line, (network, predictions) in enumerate(
    (("float", gallery.float_predictions), ("quantized", gallery.quantized_predictions)), 1
  ):
    predicted = int(predictions[index])
    wrong = predicted != label
    name = _shorten(gallery.class_name(predicted), max_name)
    _write_line(axes, line, prediction_text(network, name, wrong=wrong), wrong=wrong)


def prediction_text(network: str, name: str, *, wrong: bool) -> str:
  """What stands below an image: a mark says whether it is right, not colour alone."""
  return f"{'✗' if wrong else '✓'} {network} {name}"


def _write_line(axes: Axes, line: int, text: str, *, wrong: bool) -> None:
  axes.annotate(
    text,
    (0.0, 0.0),
    xycoords="axes fraction",
    xytext=(0.0, -4.0 - 10.5 * line),
    textcoords="offset points",
    va="top",
    fontsize=7.5,
    color="#1f2328" if line == 0 else _WRONG if wrong else _RIGHT,
    weight="bold" if wrong else "normal",
    parse_math=False,
  )


def _shorten(name: str, max_length: int) -> str:
  return name if len(name) <= max_length else f"{name[: max_length - 1].rstrip()}…"


def _alt(gallery: Gallery) -> str:
  name = gallery.class_name
  every = (gallery.labels, gallery.float_predictions, gallery.quantized_predictions)
  wrong = [
    f" Label {name(label)}: float {name(before)}, quantized {name(after)}."
    for label, before, after in zip(*(column.tolist() for column in every), strict=True)
    if not label == before == after
  ]
  return (
    f"{len(gallery.images)} test images, each with its label and two predictions. Both are right on"
    f" {len(gallery.images) - len(wrong)} of them.{''.join(wrong)}"
  )


def _caption(gallery: Gallery) -> str:
  before, after = gallery.phases
  return (
    "Test images as the networks get them, before normalisation. Below each stand its label and"
    f" what the float network (after phase {before}) and the quantized one (after phase {after})"
    " predict; a cross and bold type mark what is wrong. The evenly spaced ones are taken whatever"
    " is predicted of them. The others are picked because the networks disagree, so all together"
    " show more errors than there are: the table has the counts."
  )
