"""Tables that print by rich on a terminal and as aligned plain text elsewhere."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import rich.box
import rich.table
import rich.text
from rich.console import Console

from bcgd_jax.report import formats

_LAYER_KEYS = (
  "path",
  "kind",
  "shape",
  "weight_bits",
  "activation_bits",
  "float_bytes",
  "quantized_bytes",
  "macs",
)
_FOLDED_WIDTH = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
  """A column's header; `numeric` columns are flush right."""

  header: str
  numeric: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
  """Text cells, one tuple a row, each as long as `columns`; `totals` is a last row set apart."""

  title: str
  columns: tuple[Column, ...]
  rows: tuple[tuple[str, ...], ...]
  totals: tuple[str, ...] | None = None

  def __post_init__(self) -> None:
    for row in (*self.rows, *([self.totals] if self.totals else [])):
      if len(row) != len(self.columns):
        raise ValueError(f"a row must have {len(self.columns)} cells, got {len(row)}: {row}")

  def to_text(self) -> str:
    """The table as aligned lines without trailing blanks; no newline at the end."""
    header = tuple(column.header for column in self.columns)
    body = [header, *self.rows, *([self.totals] if self.totals else [])]
    widths = [max(len(row[i]) for row in body) for i in range(len(self.columns))]
    rule = "  ".join("-" * width for width in widths)
    lines = [self.title, self._align(header, widths), rule]
    lines += [self._align(row, widths) for row in self.rows]
    if self.totals:
      lines += [rule, self._align(self.totals, widths)]
    return "\n".join(lines)

  def to_markdown(self) -> str:
    """The table as GitHub's Markdown, totals as a last row; no title, no newline at the end."""
    body = [*self.rows, *([self.totals] if self.totals else [])]
    rule = ["---:" if column.numeric else "---" for column in self.columns]
    lines = [[column.header for column in self.columns], rule, *body]
    return "\n".join(
      f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in lines
    )

  def to_rich(self) -> rich.table.Table:
    """The same cells as a rich table; cells are taken literally, never as rich's markup."""
    table = rich.table.Table(
      title=rich.text.Text(self.title, style="bold"),
      title_justify="left",
      box=rich.box.SIMPLE_HEAD,
      show_edge=False,
      pad_edge=False,
      collapse_padding=True,
      show_footer=self.totals is not None,
    )
    for index, column in enumerate(self.columns):
      table.add_column(
        rich.text.Text(column.header.replace(" ", "\n")),
        rich.text.Text(self.totals[index] if self.totals else ""),
        justify="right" if column.numeric else "left",
        overflow="fold",
        no_wrap=index > 0,
      )
    for row in self.rows:
      table.add_row(*(rich.text.Text(cell) for cell in row))
    return table

  def fits(self, width: int) -> bool:
    """Whether `to_rich` loses nothing at `width` characters: only its first column may fold."""
    header = tuple(max(column.header.split(" "), key=len) for column in self.columns)
    body = [header, *self.rows, *([self.totals] if self.totals else [])]
    widths = [max(len(row[i]) for row in body) for i in range(1, len(self.columns))]
    return sum(widths) + 2 * len(widths) + _FOLDED_WIDTH <= width

  def _align(self, row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
      cell.rjust(width) if column.numeric else cell.ljust(width)
      for cell, width, column in zip(row, widths, self.columns, strict=True)
    )
    return "  ".join(cells).rstrip()


def layer_table(rows: Sequence[Mapping[str, Any]], *, title: str = "Layers") -> Table:
  """One row a layer, with the totals of bytes and multiply-accumulates of one example.

  Args:
    rows: as "layers" in run.json: path, kind, shape, weight_bits, activation_bits, float_bytes,
      quantized_bytes, macs. Bits are None where the layer is float ("32" in the table) and where it
      has no such quantity ("-").
    title: stands above the table.
  Raises:
    ValueError: if a row lacks one of these keys.
  """
  for row in rows:
    missing = [key for key in _LAYER_KEYS if key not in row]
    if missing:
      raise ValueError(f"a layer's row must have {_LAYER_KEYS}, missing {missing} in {dict(row)}")
  totals = {
    key: sum(row[key] for row in rows) for key in ("float_bytes", "quantized_bytes", "macs")
  }
  return Table(
    title=title,
    columns=(
      Column("Layer"),
      Column("Kind"),
      Column("Shape", numeric=True),
      Column("Weight bits", numeric=True),
      Column("Activation bits", numeric=True),
      Column("Float size", numeric=True),
      Column("Quantized size", numeric=True),
      Column("MACs", numeric=True),
    ),
    rows=tuple(
      (
        row["path"],
        row["kind"],
        formats.format_shape(row["shape"]),
        _bits_cell(row["weight_bits"], float_here=row["kind"] in ("conv", "dense")),
        _bits_cell(row["activation_bits"], float_here=row["kind"] == "activation"),
        *_size_cells(row),
      )
      for row in rows
    ),
    totals=("Total", "", "", "", "", *_size_cells(totals)),
  )


def summary_table(summary: Mapping[str, Any]) -> Table:
  """The outcome of a run: float against quantized, by test accuracy and size of the parameters.

  Args:
    summary: as summary.json. A run whose weights and activations stay float has no second column.
  """
  is_float = not is_quantized(summary)
  columns = [
    ("Test accuracy", formats.format_percent(summary["float_test_accuracy"])),
    ("Weights", formats.format_bits(None)),
    ("Activations", formats.format_bits(None)),
    ("Size of parameters", formats.format_bytes(summary["float_bytes"])),
  ]
  title = f"{summary['model']} on {summary['dataset']}"
  header = (Column(""), Column("Float", numeric=True))
  if is_float:
    return Table(title=title, columns=header, rows=tuple(columns))
  num_bytes = summary["quantized_bytes"]
  quantized = (
    formats.format_percent(summary["quantized_test_accuracy"]),
    formats.format_bits(summary["weight_bits"]),
    formats.format_bits(summary["activation_bits"]),
    formats.format_bytes(num_bytes),
  )
  ratio = ("Times smaller", "1.0x", formats.format_ratio(summary["float_bytes"], num_bytes))
  return Table(
    title=title,
    columns=(*header, Column("Quantized", numeric=True)),
    rows=(*((*row, cell) for row, cell in zip(columns, quantized, strict=True)), ratio),
  )


def is_quantized(summary: Mapping[str, Any]) -> bool:
  """Whether a run (summary.json or run.json) ends with fewer than 32 bits anywhere."""
  bits = (summary["weight_bits"], summary["activation_bits"])
  low = any(value is not None and value < formats.FLOAT_BITS for value in bits)
  return low and summary["quantized_bytes"] is not None


def terminal_console(stream: TextIO) -> Console | None:
  """A rich console on `stream` if that is a terminal which can move its cursor, else None.

  Asks the stream alone: variables such as FORCE_COLOR do not bring control codes into a pipe.
  """
  console = Console(file=stream, force_terminal=stream.isatty())
  return console if console.is_terminal and not console.is_dumb_terminal else None


def print_table(table: Table | Mapping[str, Any], *, stream: TextIO | None = None) -> None:
  """Prints a table: by rich on a terminal wide enough, else as aligned plain text.

  Args:
    table: a `Table`, or a mapping of names to values, printed as two columns.
    stream: sys.stdout by default.
  """
  stream = sys.stdout if stream is None else stream
  if not isinstance(table, Table):
    rows = tuple((str(name), _value_cell(value)) for name, value in table.items())
    table = Table(title="", columns=(Column("Name"), Column("Value", numeric=True)), rows=rows)
  console = terminal_console(stream)
  if console is not None and table.fits(console.width):
    console.print(table.to_rich())
  else:
    stream.write(table.to_text().lstrip("\n") + "\n")
    stream.flush()


def _value_cell(value: object) -> str:
  if value is None or isinstance(value, bool):
    return {None: "-", True: "yes", False: "no"}[value]
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _bits_cell(bits: int | None, *, float_here: bool) -> str:
  if bits is None:
    return str(formats.FLOAT_BITS) if float_here else "-"
  return str(bits)


def _size_cells(row: Mapping[str, int]) -> tuple[str, str, str]:
  return (
    formats.format_bytes(row["float_bytes"]),
    formats.format_bytes(row["quantized_bytes"]),
    formats.format_count(row["macs"]),
  )
