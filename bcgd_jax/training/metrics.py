"""The metrics of a run as JSON lines, the one that counts, and as TensorBoard events beside it.

Both hold the same numbers: when a run goes on from a checkpoint, the lines are cut back to those
the checkpoint knows of, and the events are written anew from the lines that are left.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tensorboardX import SummaryWriter

from bcgd_jax.errors import UsageError
from bcgd_jax.report.files import dump_json, is_number, plain_value, write_atomic
from bcgd_jax.report.records import METRICS_FILE, check_record, read_metric_lines
from bcgd_jax.report.records import read_metrics as read_metrics

EVENTS_FOLDER = "tensorboard"

_EVENT_FILES = "events.out.tfevents.*"
_HEAD = frozenset({"step", "phase", "kind"})


class MetricsSink(Protocol):
  """Where a run's records go."""

  @property
  def num_records(self) -> int: ...

  def write(self, record: Mapping[str, Any]) -> None: ...

  def close(self) -> None: ...


class NoMetrics:
  """Takes records and drops them: what every process but the primary has."""

  num_records = 0

  def write(self, record: Mapping[str, Any]) -> None:
    """Drops the record."""

  def close(self) -> None:
    """Does nothing."""


class MetricsWriter:
  """Appends records to `workdir`/metrics.jsonl and their numbers to `workdir`/tensorboard.

  A record is on disk when `write` returns; TensorBoard's events follow within seconds, and all of
  them are there after `close`. One writer a workdir, one thread.
  """

  def __init__(self, workdir: Path, *, num_records: int) -> None:
    """Opens the metrics of a run, keeping the first `num_records` records of an earlier start.

    Args:
      workdir: the run's folder; it must exist.
      num_records: how many records were written when the state that the run goes on from was saved;
        0 for a run that starts anew. What was written after it is cut off (atomically: a kill in
        between leaves the old lines or the new ones), a torn last line too.
    Raises:
      ValueError: if num_records is negative.
      UsageError: if a line is invalid or there are fewer than `num_records`; then nothing is
        changed.
    """
    if num_records < 0:
      raise ValueError(f"num_records must be >= 0, got {num_records}")
    self._path = Path(workdir) / METRICS_FILE
    records = _cut_lines(self._path, num_records)
    self._num_records = len(records)
    self._events = _start_events(Path(workdir) / EVENTS_FOLDER)
    for record in records:
      self._write_events(record)
    self._file = open(self._path, "ab")  # noqa: SIM115 (closed by `close`)

  @property
  def num_records(self) -> int:
    """Records in the file: those kept from an earlier start and those written since."""
    return self._num_records

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends one record and waits until it is on disk.

    Every number in it, also within a dict, becomes a TensorBoard scalar "<kind>/<name>" at its
    step: {"kind": "train", "loss": 0.4, "timing": {"step_seconds": 0.1}} gives "train/loss" and
    "train/step_seconds". NaN and infinities are the strings "NaN", "Infinity", "-Infinity" in the
    JSON line; `read_metrics` gives the floats back.

    Args:
      record: "step" (int >= 0, over all phases), "phase", "kind", and fields of the kind; see
        `bcgd_jax.report.records.check_record`. NumPy and JAX scalars pass for numbers.
    Raises:
      ValueError: if a field breaks its rule, or the writer is closed; nothing is written then.
    """
    plain = plain_value(record)
    problem = check_record(plain)
    if problem:
      raise ValueError(f"invalid metrics record: {problem}")
    self._file.write(dump_json(plain).encode() + b"\n")
    self._file.flush()
    # A checkpoint counts on the records before it, also after a power failure.
    os.fsync(self._file.fileno())
    self._num_records += 1
    self._write_events(plain)

  def close(self) -> None:
    """Closes both files; a second call does nothing."""
    self._file.close()
    self._events.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def _write_events(self, record: Mapping[str, Any]) -> None:
    for tag, value in _scalars(record):
      self._events.add_scalar(tag, value, record["step"])


def _cut_lines(path: Path, num_records: int) -> list[dict[str, Any]]:
  lines = read_metric_lines(path)
  if len(lines) < num_records:
    raise UsageError(
      f"{path} must have the {num_records} records that the checkpoint counted, got {len(lines)};"
      " bring the file back or start in a new workdir"
    )
  kept = lines[:num_records]
  data = b"".join(line for line, _ in kept)
  if path.exists() and path.read_bytes() != data:
    write_atomic(path, data)
  return [record for _, record in kept]


def _start_events(folder: Path) -> SummaryWriter:
  # Only files of TensorBoard's own pattern are removed: a user may keep notes beside them.
  for old in folder.glob(_EVENT_FILES):
    old.unlink()
  return SummaryWriter(logdir=str(folder), flush_secs=10)


def _scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  for name, value in record.items():
    if name in _HEAD:
      continue
    fields = value.items() if isinstance(value, dict) else [(name, value)]
    for field, number in fields:
      if is_number(number):
        yield f"{record['kind']}/{field}", number
