"""Numbers as text, and tables on a terminal and in a pipe."""

import io
import re
from unittest import mock

import fake_run
from absl.testing import absltest, parameterized

from bcgd_jax.report import formats, tables


class _Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


def _environment(columns: int, term: str = "xterm"):
  return mock.patch.dict(
    "os.environ", {"COLUMNS": str(columns), "LINES": "40", "TERM": term, "NO_COLOR": "1"}
  )


class FormatsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, "0 B"),
    (1023, "1023 B"),
    (1024, "1.00 KiB"),
    (27_955, "27.3 KiB"),
    (999 * 1024, "999.0 KiB"),
    (1000 * 1024, "0.98 MiB"),
    (44_700_000, "42.6 MiB"),
    (5 * 1024**3, "5.00 GiB"),
    (5000 * 1024**3, "5,000.0 GiB"),
  )
  def test_bytes(self, num_bytes: int, expected: str):
    self.assertEqual(formats.format_bytes(num_bytes), expected)

  @parameterized.parameters(
    (0, "0:00"), (12.4, "0:12"), (59.6, "1:00"), (3723, "1:02:03"), (-1, "0:00")
  )
  def test_clock(self, seconds: float, expected: str):
    self.assertEqual(formats.format_clock(seconds), expected)

  @parameterized.parameters(
    (0.04, "0.0 s"), (50.21, "50.2 s"), (425, "7 min 5 s"), (3725, "1 h 2 min")
  )
  def test_duration(self, seconds: float, expected: str):
    self.assertEqual(formats.format_duration(seconds), expected)

  def test_small_formats(self):
    self.assertEqual(formats.format_percent(0.98611), "98.61 %")
    self.assertEqual(formats.format_percent(None), "not run")
    self.assertEqual(
      [formats.format_bits(b) for b in (1, 4, 32, None)], ["1 bit", "4 bits"] + ["32 bits"] * 2
    )
    self.assertEqual(formats.format_ratio(1000, 40), "25.0x")
    self.assertEqual(formats.format_ratio(1000, 0), "-")
    self.assertEqual(formats.format_count(1234567), "1,234,567")
    self.assertEqual(
      [formats.format_shape(s) for s in ((3, 3, 1, 16), [], None)], ["3x3x1x16", "scalar", "-"]
    )


class TableTest(parameterized.TestCase):
  def test_layer_table_text(self):
    rows = [
      {
        "path": "stem/conv",
        "kind": "conv",
        "shape": (3, 3, 1, 16),
        "weight_bits": None,
        "activation_bits": None,
        "float_bytes": 576,
        "quantized_bytes": 576,
        "macs": 921,
      },
      {
        "path": "block1/conv1",
        "kind": "conv",
        "shape": [3, 3, 16, 32],
        "weight_bits": 1,
        "activation_bits": None,
        "float_bytes": 18432,
        "quantized_bytes": 580,
        "macs": 1179,
      },
      {
        "path": "block1/relu",
        "kind": "activation",
        "shape": (),
        "weight_bits": None,
        "activation_bits": 4,
        "float_bytes": 4,
        "quantized_bytes": 4,
        "macs": 0,
      },
    ]
    expected = """\
resnet8 on digits
Layer         Kind            Shape  Weight bits  Activation bits  Float size  Quantized size   MACs
------------  ----------  ---------  -----------  ---------------  ----------  --------------  -----
stem/conv     conv         3x3x1x16           32                -       576 B           576 B    921
block1/conv1  conv        3x3x16x32            1                -    18.0 KiB           580 B  1,179
block1/relu   activation     scalar            -                4         4 B             4 B      0
------------  ----------  ---------  -----------  ---------------  ----------  --------------  -----
Total                                                                18.6 KiB        1.13 KiB  2,100
"""
    table = tables.layer_table(rows, title="resnet8 on digits")
    self.assertEqual(table.to_text() + "\n", expected)

  def test_float_activation_shows_32_bits(self):
    table = tables.layer_table(fake_run.make_layers(quantized=False))
    cells = {row[0]: row[3:5] for row in table.rows}
    self.assertEqual(cells["stem/conv"], ("32", "-"))
    self.assertEqual(cells["stem/relu"], ("-", "32"))

  def test_layer_table_of_no_layers(self):
    self.assertEqual(tables.layer_table([]).totals, ("Total", "", "", "", "", "0 B", "0 B", "0"))

  def test_layer_row_without_a_key_is_an_error(self):
    with self.assertRaisesRegex(ValueError, r"missing \['macs'\]"):
      tables.layer_table([{k: v for k, v in fake_run.make_layers()[0].items() if k != "macs"}])

  def test_row_of_wrong_length_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "must have 1 cells, got 2"):
      tables.Table(title="", columns=(tables.Column("a"),), rows=(("b", "c"),))

  def test_summary_table(self):
    table = tables.summary_table(fake_run.make_run())
    self.assertEqual(table.title, "resnet8 on digits")
    self.assertEqual([column.header for column in table.columns], ["", "Float", "Quantized"])
    # 5392 float32 weights and one alpha; 674 bytes of codes, 4 scales, one alpha
    self.assertEqual(
      table.rows,
      (
        ("Test accuracy", "97.50 %", "95.00 %"),
        ("Weights", "32 bits", "1 bit"),
        ("Activations", "32 bits", "4 bits"),
        ("Size of parameters", "21.1 KiB", "694 B"),
        ("Times smaller", "1.0x", "31.1x"),
      ),
    )

  @parameterized.parameters(
    {"weight_bits": 32, "activation_bits": 32},
    {"weight_bits": None, "activation_bits": None},
    {"quantized_bytes": None},
  )
  def test_summary_table_of_a_float_run_has_one_column(self, **change):
    table = tables.summary_table({**fake_run.make_run(quantized=False), **change})
    self.assertLen(table.columns, 2)
    self.assertEqual(table.rows[0], ("Test accuracy", "97.50 %"))

  def test_summary_table_without_float_phase(self):
    table = tables.summary_table({**fake_run.make_run(), "float_test_accuracy": None})
    self.assertEqual(table.rows[0], ("Test accuracy", "not run", "95.00 %"))


class PrintTableTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.table = tables.layer_table(fake_run.make_layers(), title="[bold]layers[/bold]")

  def test_plain_text_when_piped_whatever_the_environment_forces(self):
    stream = io.StringIO()
    with _environment(80), mock.patch.dict("os.environ", {"FORCE_COLOR": "1"}):
      tables.print_table(self.table, stream=stream)
    self.assertEqual(stream.getvalue(), self.table.to_text() + "\n")

  def test_plain_text_on_a_dumb_terminal(self):
    stream = _Terminal()
    with _environment(200, term="dumb"):
      tables.print_table(self.table, stream=stream)
    self.assertEqual(stream.getvalue(), self.table.to_text() + "\n")

  @parameterized.parameters(76, 80, 120)
  def test_rich_on_a_terminal_loses_nothing(self, columns: int):
    stream = _Terminal()
    with _environment(columns):
      tables.print_table(self.table, stream=stream)
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    self.assertIn("─", text)
    self.assertIn("[bold]layers[/bold]", text)  # literally, not as rich's markup
    self.assertLessEqual(max(len(line) for line in text.splitlines()), columns)
    for row in (*self.table.rows, self.table.totals):
      for cell in row[1:]:
        self.assertIn(cell, text)

  def test_plain_text_on_a_terminal_too_narrow(self):
    stream = _Terminal()
    with _environment(60):
      tables.print_table(self.table, stream=stream)
    self.assertEqual(stream.getvalue(), self.table.to_text() + "\n")

  def test_mapping_prints_names_and_values(self):
    stream = io.StringIO()
    values = {
      "phase": "float",
      "accuracy": 0.98611111,
      "step": 120,
      "quantized": False,
      "none": None,
    }
    tables.print_table(values, stream=stream)
    self.assertEqual(
      stream.getvalue().splitlines(),
      [
        "Name          Value",
        "---------  --------",
        "phase         float",
        "accuracy   0.986111",
        "step            120",
        "quantized        no",
        "none              -",
      ],
    )


if __name__ == "__main__":
  absltest.main()
