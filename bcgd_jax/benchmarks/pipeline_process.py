"""An input pipeline in a process of its own, which hands out batches when told to."""

import dataclasses
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from bcgd_jax.benchmarks import opponents
from bcgd_jax.data import BatchIterator, DataOptions, load_dataset, train_batches
from bcgd_jax.errors import TrainingError

_CLOSE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
  """What every pipeline of a comparison is given alike.

  Attributes:
    folder: an image folder, train/CLASS/*.JPEG.
    batch_size: images in a batch.
    image_size: side of the square images in it.
    num_workers: processes (tf.data: threads) that decode.
    num_batches: timed in each measurement.
    num_untimed: handed out before them: buffers filled during a pause must not count.
  """

  folder: Path
  batch_size: int
  image_size: int
  num_workers: int
  num_batches: int
  num_untimed: int


def our_batches(
  folder: Path, *, batch_size: int, image_size: int, num_workers: int
) -> Iterator[Any]:
  """What training reads: `train_batches` over the image folder."""
  options = DataOptions(
    dataset="image_folder",
    manual_dir=str(folder),
    image_size=image_size,
    min_crop_area=opponents.MIN_CROP_AREA,
    flip=True,
    batch_size=batch_size,
    eval_batch_size=batch_size,
    num_workers=num_workers,
  )
  return train_batches(load_dataset(options), options, start_step=0)


PIPELINES: dict[str, Callable[..., Iterator[Any]]] = {
  "ours": our_batches,
  "tf_data": opponents.tf_data_batches,
  "pytorch": opponents.pytorch_batches,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
  """Of `num_batches`: wall-clock seconds, and CPU seconds of the process and its descendants."""

  seconds: float
  cpu_seconds: float


class PipelineProcess:
  """A pipeline's process as the benchmark sees it; leaving it as a context ends it.

  The pipelines run apart so that what one imports, starts or leaves behind does not slow another.

  Raises:
    TrainingError: if the pipeline fails, by any method.
  """

  def __init__(self, name: str, options: PipelineOptions) -> None:
    self._name = name
    # not by fork: JAX and TensorFlow have threads
    context = multiprocessing.get_context("spawn")
    self._connection, other = context.Pipe()
    self._process = context.Process(target=_serve, args=(other, name, options))
    self._process.start()
    other.close()

  def wait_until_ready(self) -> None:
    """Returns when the pipeline has handed out its first batch."""
    self._receive()

  def measure(self) -> Measurement:
    """Times the next batches."""
    self._connection.send("measure")
    return self._receive()

  def _receive(self) -> Any:
    try:
      answer = self._connection.recv()
    except EOFError as error:
      self._process.join(_CLOSE_SECONDS)
      raise TrainingError(
        f"the pipeline {self._name} ended with status {self._process.exitcode}"
      ) from error
    if isinstance(answer, str):
      raise TrainingError(f"the pipeline {self._name} failed: {answer}")
    return answer

  def __enter__(self) -> "PipelineProcess":
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._connection.close()
    self._process.join(_CLOSE_SECONDS)
    if self._process.is_alive():
      self._process.kill()
      self._process.join()


def _serve(connection: Connection, name: str, options: PipelineOptions) -> None:
  """Answers each message by a measurement until the other side closes."""
  os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
  try:
    batches = PIPELINES[name](
      options.folder,
      batch_size=options.batch_size,
      image_size=options.image_size,
      num_workers=options.num_workers,
    )
    next(batches)
    connection.send(None)
    while _is_wanted(connection):
      connection.send(_measure(batches, options))
    if isinstance(batches, BatchIterator):
      batches.close()
  except Exception as error:  # noqa: BLE001 (whatever a library raises is told to the parent)
    connection.send(f"{type(error).__name__}: {error}")


def _is_wanted(connection: Connection) -> bool:
  try:
    connection.recv()
  except EOFError:
    return False
  return True


def _measure(batches: Iterator[Any], options: PipelineOptions) -> Measurement:
  for _ in itertools.islice(batches, options.num_untimed):
    pass
  cpu_before, before = _tree_cpu_seconds(), time.perf_counter()
  for _ in itertools.islice(batches, options.num_batches):
    pass
  return Measurement(time.perf_counter() - before, _tree_cpu_seconds() - cpu_before)


def _tree_cpu_seconds() -> float:
  """CPU time of this process and of all living processes below it."""
  process = psutil.Process()
  times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
  return sum(t.user + t.system for t in times)
