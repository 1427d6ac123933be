"""The metrics' two forms: what is written, what a resumed run keeps, and that both agree."""

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from tensorboardX.proto.event_pb2 import Event

from bcgd_jax.errors import UsageError
from bcgd_jax.report.records import read_metrics as read_metrics_of_report
from bcgd_jax.training.metrics import MetricsWriter, read_metrics


def _train_record(step: int, /, **fields: Any) -> dict[str, Any]:
  # 1 / (step + 2) is no short decimal: equality below means every bit
  head = {"step": step, "phase": "float", "kind": "train"}
  return {**head, "loss": 1 / (step + 2), "accuracy": 0.5, **fields}


def _read_events(folder: Path) -> list[tuple[str, int, float]]:
  """(tag, step, value) of every scalar in the one events file of a folder."""
  (path,) = folder.glob("events.out.tfevents.*")
  data, found, offset = path.read_bytes(), [], 0
  while offset < len(data):
    # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
    (length,) = struct.unpack_from("<Q", data, offset)
    event = Event.FromString(data[offset + 12 : offset + 12 + length])
    offset += length + 16
    found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
  return found


def _expected_events(records: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
  return [
    (f"train/{name}", r["step"], float(np.float32(r[name])))
    for r in records
    for name in ("loss", "accuracy")
  ]


class MetricsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.path = self.folder / "metrics.jsonl"

  def _write(self, records: list[dict[str, Any]], *, num_records: int = 0) -> None:
    with MetricsWriter(self.folder, num_records=num_records) as writer:
      for record in records:
        writer.write(record)

  def _lines(self) -> list[dict[str, Any]]:
    return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

  def test_lines_and_events_agree(self):
    records = [_train_record(step) for step in range(5)]
    self._write(records)
    self.assertEqual(self._lines(), records)
    self.assertEqual(read_metrics(self.folder), records)
    self.assertEqual(_read_events(self.folder / "tensorboard"), _expected_events(records))

  def test_reader_is_the_reports(self):
    self.assertIs(read_metrics, read_metrics_of_report)

  def test_tags(self):
    head = {"step": 7, "phase": "quantized"}
    self._write(
      [
        {**head, "kind": "alpha", "alpha": {"stem/relu/alpha": 0.5, "head/alpha": 0.25}},
        {**head, "kind": "phase_end", "timing": {"seconds": 2.0}, "note": "text", "last": True},
      ]
    )
    self.assertEqual(
      _read_events(self.folder / "tensorboard"),
      [
        ("alpha/stem/relu/alpha", 7, 0.5),
        ("alpha/head/alpha", 7, 0.25),
        ("phase_end/seconds", 7, 2.0),
      ],
    )

  def test_record_is_on_disk_when_write_returns(self):
    with MetricsWriter(self.folder, num_records=0) as writer:
      for step in range(3):
        writer.write(_train_record(step))
        self.assertLen(self._lines(), step + 1)
        self.assertEqual(writer.num_records, step + 1)

  def test_record_survives_a_kill(self):
    code = (
      "import os, pathlib, signal, sys\n"
      "from bcgd_jax.training.metrics import MetricsWriter\n"
      "writer = MetricsWriter(pathlib.Path(sys.argv[1]), num_records=0)\n"
      "writer.write({'step': 1, 'phase': 'a', 'kind': 'b'})\n"
      "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(self.folder)], check=False)
    self.assertEqual(done.returncode, -9)
    self.assertEqual(self._lines(), [{"step": 1, "phase": "a", "kind": "b"}])

  def test_array_scalars_and_non_finite_numbers(self):
    self._write(
      [
        _train_record(0, loss=np.float32(0.1), accuracy=jnp.float32(0.5)),
        _train_record(1, loss=jnp.float32("nan"), grad_norm=math.inf),
      ]
    )
    first, second = self._lines()
    self.assertEqual(first["loss"], float(np.float32(0.1)))
    self.assertEqual((second["loss"], second["grad_norm"]), ("NaN", "Infinity"))
    back = read_metrics(self.folder)[1]
    self.assertTrue(math.isnan(back["loss"]))
    self.assertEqual(back["grad_norm"], math.inf)
    events = {(tag, step): value for tag, step, value in _read_events(self.folder / "tensorboard")}
    self.assertTrue(math.isnan(events["train/loss", 1]))
    self.assertEqual(events["train/grad_norm", 1], math.inf)

  @parameterized.named_parameters(
    ("step", {"step": -1}, '"step" must be an integer >= 0, got -1'),
    ("phase", {"phase": None}, '"phase" must be a string'),
    ("loss", {"loss": "low"}, '"loss" of a "train" record must be a number'),
  )
  def test_invalid_record_is_not_written(self, change: dict[str, Any], message: str):
    with MetricsWriter(self.folder, num_records=0) as writer:
      with self.assertRaisesRegex(ValueError, message):
        writer.write(_train_record(1, **change))
      self.assertEqual(writer.num_records, 0)
    self.assertEqual(self._lines(), [])

  def test_write_after_close_is_an_error(self):
    writer = MetricsWriter(self.folder, num_records=0)
    writer.close()
    writer.close()
    with self.assertRaisesRegex(ValueError, "closed"):
      writer.write(_train_record(1))

  @parameterized.parameters(0, 1, 3, 6)
  def test_resumed_run_equals_an_uninterrupted_one(self, kept: int):
    records = [_train_record(step) for step in range(6)]
    stale = [_train_record(step, loss=99.0) for step in range(kept, 6)]
    self._write(records[:kept] + stale)
    with open(self.path, "ab") as file:
      file.write(b'{"step": 9, "pha')
    self._write(records[kept:], num_records=kept)
    self.assertEqual(self._lines(), records)
    self.assertEqual(_read_events(self.folder / "tensorboard"), _expected_events(records))

  def test_cut_keeps_the_bytes_of_the_lines(self):
    line = b'{"kind":"a",  "phase":"b", "step":1e0}\n'.replace(b"1e0", b"1")
    self.path.write_bytes(line + line)
    self._write([], num_records=1)
    self.assertEqual(self.path.read_bytes(), line)

  def test_kill_during_the_cut_keeps_the_old_lines(self):
    self._write([_train_record(step) for step in range(4)])
    old = self.path.read_bytes()
    broken = mock.patch.object(os, "replace", side_effect=KeyboardInterrupt)
    with broken, self.assertRaises(KeyboardInterrupt):
      MetricsWriter(self.folder, num_records=2)
    self.assertEqual(self.path.read_bytes(), old)

  def test_other_files_beside_the_events_stay(self):
    self._write([])
    note = self.folder / "tensorboard" / "note.txt"
    note.write_text("mine", encoding="utf-8")
    self._write([])
    self.assertEqual(note.read_text(encoding="utf-8"), "mine")
    self.assertLen(os.listdir(self.folder / "tensorboard"), 2)

  @parameterized.named_parameters(
    ("missing_file", None, 1, "must have the 1 records that the checkpoint counted, got 0"),
    ("too_few", b'{"step": 1, "phase": "a", "kind": "b"}\n', 2, "the 2 records .*, got 1"),
    ("torn", b'{"step": 1, "phase": "a", "kind": ', 1, "the 1 records .*, got 0"),
    ("invalid", b'{"step": 1}\n', 0, r'metrics.jsonl:1: "phase" must be a string'),
  )
  def test_damage_is_named_and_changes_nothing(
    self, data: bytes | None, num_records: int, message: str
  ):
    if data is not None:
      self.path.write_bytes(data)
    before = os.listdir(self.folder)
    with self.assertRaisesRegex(UsageError, message):
      MetricsWriter(self.folder, num_records=num_records)
    self.assertEqual(os.listdir(self.folder), before)
    if data is not None:
      self.assertEqual(self.path.read_bytes(), data)

  def test_negative_num_records(self):
    with self.assertRaisesRegex(ValueError, "num_records must be >= 0, got -1"):
      MetricsWriter(self.folder, num_records=-1)


if __name__ == "__main__":
  absltest.main()
