"""The progress display with a clock of its own."""

import io
import re
from unittest import mock

import jax.numpy as jnp
from absl.testing import absltest, parameterized

from bcgd_jax.report.progress import progress
from bcgd_jax.report.tables import print_table


class _Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


class _Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self) -> float:
    return self.now


class _NoConversion:
  """A fact that must not be looked at, as a device array whose value is not ready."""

  def __float__(self) -> float:
    raise AssertionError("converted although not shown")


class PlainLinesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.clock, self.stream = _Clock(), io.StringIO()

  def _progress(self, total: int, **kwargs):
    return progress(total, "float", stream=self.stream, clock=self.clock, **kwargs)

  def test_first_then_every_ten_seconds_then_last(self):
    with self._progress(400) as bar:
      self.clock.now += 5.0  # compilation: not a step's time
      for step in range(1, 401):
        self.clock.now += 0.125
        bar.update(step, loss=0.42, accuracy=0.88, examples_per_second=1234.4)
    facts = "loss 0.42  accuracy 0.88  1,234 examples/s"
    self.assertEqual(
      self.stream.getvalue().splitlines(),
      [
        f"float  step 1/400  {facts}",
        f"float  step 81/400  {facts}  0:40 left",
        f"float  step 161/400  {facts}  0:30 left",
        f"float  step 241/400  {facts}  0:20 left",
        f"float  step 321/400  {facts}  0:10 left",
        f"float  step 400/400  {facts}  took 0:55",
      ],
    )

  def test_interval(self):
    with self._progress(100, interval_seconds=1.0) as bar:
      for step in range(1, 101):
        self.clock.now += 0.25
        bar.update(step)
    self.assertLen(self.stream.getvalue().splitlines(), 26)  # steps 1, 5, 9 ... 97 and 100

  def test_only_shown_facts_are_converted(self):
    with self._progress(10) as bar:
      bar.update(1, loss=jnp.float32(0.5))
      for step in range(2, 10):
        bar.update(step, loss=_NoConversion())
      bar.update(10, loss=0.25, note="end")
    self.assertEqual(
      self.stream.getvalue().splitlines(),
      ["float  step 1/10  loss 0.5", "float  step 10/10  loss 0.25  note end  took 0:00"],
    )

  def test_resumed_run_estimates_from_its_own_steps(self):
    with self._progress(1000) as bar:
      for step in (800, 850, 900):
        bar.update(step)
        self.clock.now += 10.0
    lines = self.stream.getvalue().splitlines()
    self.assertEqual(
      lines[1:], ["float  step 850/1,000  0:30 left", "float  step 900/1,000  0:20 left"]
    )

  def test_speed_follows_the_last_hundred_updates(self):
    with self._progress(1000) as bar:
      for step in range(1, 301):
        self.clock.now += 10.0 if step <= 100 else 1.0
        bar.update(step)
    self.assertEndsWith(self.stream.getvalue().splitlines()[-2], "step 290/1,000  11:50 left")

  def test_error_ends_without_a_last_line(self):
    with self.assertRaisesRegex(RuntimeError, "stop"), self._progress(10) as bar:
      bar.update(1)
      bar.update(2)
      raise RuntimeError("stop")
    self.assertEqual(self.stream.getvalue(), "float  step 1/10\n")

  def test_no_update_no_line(self):
    with self._progress(0):
      pass
    self.assertEqual(self.stream.getvalue(), "")

  @parameterized.parameters(-1, 11)
  def test_step_out_of_range(self, step: int):
    with self._progress(10) as bar, self.assertRaisesRegex(ValueError, rf"\[0, 10\].*got {step}"):
      bar.update(step)

  def test_negative_total(self):
    wrong = self.assertRaisesRegex(ValueError, "total_steps must be >= 0, got -1")
    with wrong, self._progress(-1):
      pass

  def test_dumb_terminal_gets_lines(self):
    self.stream = _Terminal()
    self.enter_context(mock.patch.dict("os.environ", {"TERM": "dumb"}))
    with self._progress(1) as bar:
      bar.update(1)
    self.assertEqual(self.stream.getvalue(), "float  step 1/1  took 0:00\n")


class BarTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.clock, self.stream = _Clock(), _Terminal()
    self._set_terminal()

  def _set_terminal(self, columns: int = 100):
    environment = {"COLUMNS": str(columns), "LINES": "40", "TERM": "xterm", "NO_COLOR": "1"}
    self.enter_context(mock.patch.dict("os.environ", environment))

  def _frames(self) -> list[str]:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", self.stream.getvalue())
    return [frame.strip() for frame in re.split(r"[\r\n]+", text) if frame.strip()]

  def test_bar_with_facts_and_time_left(self):
    with progress(400, "float", stream=self.stream, clock=self.clock) as bar:
      for step in range(1, 401):
        self.clock.now += 0.1
        bar.update(step, loss=0.42, examples_per_second=1234.4)
    frames = self._frames()
    self.assertTrue(any("201/400 loss 0.42  1,234 examples/s  0:20 left" in f for f in frames))
    self.assertIn("400/400 loss 0.42  1,234 examples/s  took 0:40", frames[-1])
    self.assertTrue(all(f.startswith("float") for f in frames), frames)
    self.assertIn("float ━━━━━━━━━━━━━━━━━━━━ 400/400", frames[-1])
    self.assertNotIn("step ", self.stream.getvalue())  # no plain lines beside the bar
    self.assertEndsWith(self.stream.getvalue(), "\n\x1b[?25h")  # a line of its own, cursor shown

  def test_is_drawn_ten_times_a_second_at_most(self):
    with progress(1000, "float", stream=self.stream, clock=self.clock) as bar:
      for step in range(1, 1001):
        self.clock.now += 0.001
        bar.update(step)
    drawn = [f for f in self._frames() if re.search(r"\d/1000", f)]
    self.assertLess(len(drawn), 20)

  def test_eighty_columns_keep_the_numbers(self):
    self._set_terminal(80)
    with progress(10_000, "quantized", stream=self.stream, clock=self.clock) as bar:
      bar.update(10_000, loss=0.4321, accuracy=0.9876, examples_per_second=12345)
    last = self._frames()[-1]
    self.assertIn("10000/10000 loss 0.4321  accuracy 0.9876  12,345 examples/s", last)

  def test_cursor_comes_back_after_an_error(self):
    wrong = self.assertRaisesRegex(RuntimeError, "stop")
    with wrong, progress(10, "float", stream=self.stream, clock=self.clock) as bar:
      bar.update(1)
      raise RuntimeError("stop")
    self.assertIn("\x1b[?25h", self.stream.getvalue())

  def test_table_after_the_bar_stands_alone(self):
    with progress(1, "float", stream=self.stream, clock=self.clock) as bar:
      bar.update(1)
    before = self.stream.getvalue()
    print_table({"a": 1}, stream=self.stream)
    table = self.stream.getvalue().removeprefix(before)
    self.assertNotIn("float", table)
    self.assertNotIn("\x1b[2K", table)  # nothing erased: the bar is done


if __name__ == "__main__":
  absltest.main()
