"""Measurements of inference, each made in a process of its own."""

import dataclasses
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import onnxruntime
import psutil

from bcgd_jax.benchmarks.rotation import time_in_rotation
from bcgd_jax.errors import TrainingError

Result = TypeVar("Result")

_MIN_TURN_SECONDS = 0.05
# ONNX Runtime's threads spin for some milliseconds after their last work; without a pause they take
# the cores of the network whose turn it is, which doubled its times on two cores.
_PAUSE_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
  """What all networks of a comparison are given alike.

  Attributes:
    image_size: height and width of images of 3 channels.
    batch_size: images at once.
    threads: 1, or 0 for all cores.
    rounds: how often each network takes its turn.
  """

  image_size: int
  batch_size: int
  threads: int
  rounds: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
  """What a network takes before and beside its inferences.

  Attributes:
    load_seconds: from the file to the first logits, compilation included; median of three.
    peak_bytes: what the process grew by at most while it loaded and ran; None where Linux does not
      tell.
  """

  load_seconds: float
  peak_bytes: int | None


def run_apart(function: Callable[..., Result], *arguments: Any) -> Result:
  """A function's result in a fresh process.

  Raises:
    TrainingError: if the process dies.
  """
  context = multiprocessing.get_context("spawn")  # not by fork: JAX has threads
  with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
    try:
      return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
      raise TrainingError(f"a process that timed inference ended early: {error}") from error


def measure_latency(files: Mapping[str, Path], options: Options) -> dict[str, list[list[float]]]:
  """Seconds of each inference: by network, a list a round.

  In a round each network takes its turn, of several inferences after a pause and an untimed one,
  which wakes its threads. Of one thread the whole process is held to one core.
  """
  _use_threads(options.threads)
  runs = {name: _open(path, options) for name, path in files.items()}
  turns = {}
  for name, run in runs.items():
    run()
    start = time.perf_counter()
    run()
    count = max(1, round(_MIN_TURN_SECONDS / (time.perf_counter() - start)))
    turns[name] = _Turn(run, count)
  time_in_rotation(turns, num_rounds=options.rounds)
  return {name: turn.seconds for name, turn in turns.items()}


def measure_footprint(path: Path, options: Options) -> Footprint:
  """Load time and memory of one network, which nothing else in the process adds to."""
  _use_threads(options.threads)
  before = psutil.Process().memory_info().rss
  seconds, peak = [], None
  for _ in range(3):
    start = time.perf_counter()
    _open(path, options)()
    seconds.append(time.perf_counter() - start)
    if len(seconds) == 1:
      peak = _peak_bytes()
  return Footprint(
    load_seconds=statistics.median(seconds), peak_bytes=None if peak is None else peak - before
  )


def _peak_bytes() -> int | None:
  """Of this process alone: `ru_maxrss` has the parent's in it."""
  status = Path("/proc/self/status")
  if not status.exists():
    return None
  (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
  return 1024 * int(line.split()[1])


class _Turn:
  """Several inferences, timed one by one."""

  def __init__(self, run: Callable[[], None], count: int) -> None:
    self._run, self._count = run, count
    self.seconds: list[list[float]] = []

  def __call__(self) -> None:
    time.sleep(_PAUSE_SECONDS)
    self._run()
    found = []
    for _ in range(self._count):
      start = time.perf_counter()
      self._run()
      found.append(time.perf_counter() - start)
    self.seconds.append(found)


def _use_threads(threads: int) -> None:
  if threads:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _open(path: Path, options: Options) -> Callable[[], None]:
  """A function that computes the logits of a random batch with the network of a file."""
  shape = (options.batch_size, options.image_size, options.image_size, 3)
  images: np.ndarray = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  if path.suffix == ".stablehlo":
    network = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda: network(images).block_until_ready()
  session_options = onnxruntime.SessionOptions()
  session_options.intra_op_num_threads = options.threads
  session_options.log_severity_level = 3  # warnings are of its own optimizations
  session = onnxruntime.InferenceSession(
    str(path), session_options, providers=["CPUExecutionProvider"]
  )
  if session.get_inputs()[0].type == "tensor(float)":
    # as float networks are given their images: normalised, channels first
    images = images.transpose(0, 3, 1, 2).astype(np.float32) / 128 - 1
  return functools.partial(_run, session, {"image": np.ascontiguousarray(images)})


def _run(session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray]) -> None:
  session.run(None, feed)
