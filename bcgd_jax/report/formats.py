"""Numbers as text for people: one spelling for the terminal, the tables and the page."""

from collections.abc import Sequence

FLOAT_BITS = 32


def format_count(count: int) -> str:
  """12345 -> "12,345"."""
  return f"{count:,}"


def format_bytes(num_bytes: int) -> str:
  """A size in binary units, three or four digits: "512 B", "27.3 KiB", "1.04 MiB"."""
  if num_bytes < 1024:
    return f"{num_bytes} B"
  value, unit = num_bytes / 1024, "KiB"
  for larger in ("MiB", "GiB"):
    if value >= 1000:
      value, unit = value / 1024, larger
  return f"{value:,.{2 if value < 10 else 1}f} {unit}"


def format_percent(fraction: float | None) -> str:
  """0.98611 -> "98.61 %"; None -> "not run"."""
  return "not run" if fraction is None else f"{100 * fraction:.2f} %"


def format_bits(bits: int | None) -> str:
  """1 -> "1 bit", 4 -> "4 bits"; None, which is float, -> "32 bits"."""
  bits = FLOAT_BITS if bits is None else bits
  return "1 bit" if bits == 1 else f"{bits} bits"


def format_ratio(float_bytes: int, quantized_bytes: int) -> str:
  """How many times smaller: "25.2x"; "-" if there is nothing to divide by."""
  return f"{float_bytes / quantized_bytes:.1f}x" if quantized_bytes else "-"


def format_clock(seconds: float) -> str:
  """Whole seconds as on a clock: "0:12", "7:05", "1:02:03"."""
  minutes, rest = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_duration(seconds: float) -> str:
  """A time in words, to two units: "50.2 s", "7 min 5 s", "1 h 2 min"."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_shape(shape: Sequence[int] | None) -> str:
  """(3, 3, 16, 32) -> "3x3x16x32"; () -> "scalar"; None -> "-"."""
  if shape is None:
    return "-"
  return "x".join(map(str, shape)) if len(shape) else "scalar"
