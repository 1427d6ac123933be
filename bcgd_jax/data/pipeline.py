"""Batches for training and evaluation, read through Grain.

The global batch of training step t is a function of (seed, t) alone: elements t*B to (t+1)*B - 1 of
an endless stream of shuffled epochs, each element augmented by a generator of its own that depends
on the seed and its position in the stream. Processes take their slice of that batch after
augmentation. So the position in the data *is* the step, and the number of processes, of workers
and of threads changes nothing.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import grain
import numpy as np
from absl import flags

from bcgd_jax.data import datasets, sources, transforms
from bcgd_jax.data.bad_images import BadImages
from bcgd_jax.data.encoded import NOT_BAD, EncodedSource, RandomCrop
from bcgd_jax.data.options import DataOptions
from bcgd_jax.data.workers import bind_to_parent
from bcgd_jax.errors import UsageError

Batch = dict[str, np.ndarray]

# One thread, a few batches ahead: the work is Python under one lock, and more threads only contend
# for it (measured: a third of the speed with 4). Processes are what scales, see num_workers.
_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
# Decoders let go of that lock, but each thread fills a batch of its own: 40 MB for 256 images of
# ImageNet. So few batches lie ahead, on a host with hundreds of cores too.
_MAX_THREADS = 16
_WORKER_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
_DTYPES = {"image": np.uint8, "label": np.int32, "mask": np.bool_, "bad": np.int32}


class BatchIterator(Iterator[Batch]):
  """Batches from a Grain iterator; `close`, or leaving it as a context, ends what runs for it.

  Images that could not be decoded are counted in `bad_images`, and masked where there is a mask.
  """

  def __init__(self, iterator: grain.DatasetIterator, bad_images: BadImages | None = None) -> None:
    self._iterator = iterator
    self._bad_images = bad_images

  def __next__(self) -> Batch:
    batch = next(self._iterator)
    # Batches of worker processes lie in shared memory whose life Grain manages; these are ours.
    batch = {key: np.array(x) if type(x) is not np.ndarray else x for key, x in batch.items()}
    if self._bad_images is not None:
      bad = batch.pop("bad")
      self._bad_images.note(bad)
      if "mask" in batch:
        batch["mask"] &= bad == NOT_BAD
    return batch

  def close(self) -> None:
    """Stops threads and worker processes; the iterator is then at its end."""
    if isinstance(self._iterator, grain.DatasetIterator):
      self._iterator.close()
    # Dropped now: left to the interpreter's exit, Grain's destructors print errors.
    self._iterator = iter(())

  def __enter__(self) -> "BatchIterator":
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()


def train_batches(
  dataset: datasets.Dataset,
  options: DataOptions,
  *,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
) -> BatchIterator:
  """Endless training batches from step `start_step` on, at no cost for the steps left out.

  Every epoch is a new order of all examples; epochs follow each other without a gap, so that a
  batch may straddle two of them and none is short. The concatenation over processes is the batch
  of a single process.

  With options.num_workers > 0 Grain starts processes by "spawn": scripts need the usual
  `if __name__ == "__main__"`. It reads absl flags; where the program has not parsed any, they are
  marked as parsed, with their defaults. Workers ignore SIGTERM and SIGINT, which schedulers and
  terminals send to the whole process group: they end when the iterator is closed or their parent
  process ends.

  Args:
    dataset: of `load_dataset`; its `train` is read. Images of an `EncodedSource` are cropped at
      random; an unreadable one is replaced by the next and named in a warning.
    options: batch_size, pad, flip, seed, num_workers, max_bad_fraction.
    start_step: >= 0.
    process_index: of this process, in [0, process_count).
    process_count: a divisor of batch_size.
  Returns:
    Iterator of {"image": uint8 [b, H, W, C], "label": int32 [b]}, b = batch_size / process_count.
    While it runs it raises TrainingError where more images are unreadable than max_bad_fraction.
  Raises:
    UsageError: if batch_size is not a multiple of process_count.
    ValueError: if start_step or process_index is out of range.
  """
  if start_step < 0:
    raise ValueError(f"start_step must be at least 0, got {start_step}")
  source = dataset.train
  read = source.encoded() if isinstance(source, EncodedSource) else source
  elements = grain.MapDataset.source(read).seed(options.seed).shuffle().repeat(None)
  if isinstance(source, EncodedSource):
    elements = elements.random_map(RandomCrop(source, flip=options.flip))
  elif options.pad or options.flip:
    elements = elements.random_map(transforms.Augment(pad=options.pad, flip=options.flip))
  batches = _slice_batches(
    elements,
    batch_size=options.batch_size,
    batch_size_name="batch_size",
    process_index=process_index,
    process_count=process_count,
  )
  return _iterate(
    batches[start_step:],
    source,
    num_workers=options.num_workers,
    max_bad_fraction=options.max_bad_fraction,
  )


def eval_batches(
  source: sources.ImageSource,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  max_bad_fraction: float = 0.0,
  num_batches: int | None = None,
) -> BatchIterator:
  """Batches in which every example of the source occurs exactly once over all processes, in order.

  Every process yields ceil(len(source) / batch_size) batches of one shape: the missing examples at
  the end are images and labels of zeros with mask False, of which the last process may get nothing
  else.

  Args:
    source: validation or test examples; may be empty.
    batch_size: over all processes, > 0.
    process_index: of this process, in [0, process_count).
    process_count: a divisor of batch_size.
    num_workers: processes that decode images of an `EncodedSource`; 0 takes a thread a core, at
      most 16. Other sources are read by one thread.
    max_bad_fraction: of an `EncodedSource`'s images that may be unreadable. Their mask is False,
      and a warning names them.
    num_batches: only the first so many are read and yielded; None is all.
  Returns:
    Iterator of {"image": uint8 [b, H, W, C], "label": int32 [b], "mask": bool [b]},
    b = batch_size / process_count. While it runs it raises TrainingError as `train_batches` does.
  Raises:
    UsageError: if batch_size is not a positive multiple of process_count.
    ValueError: if process_index is out of range.
  """
  if batch_size < 1:
    raise UsageError(f"eval_batch_size must be at least 1, got {batch_size}")
  batches = _slice_batches(
    grain.MapDataset.source(_PaddedSource(source, multiple_of=batch_size)),
    batch_size=batch_size,
    batch_size_name="eval_batch_size",
    process_index=process_index,
    process_count=process_count,
  )
  workers = num_workers if isinstance(source, EncodedSource) else 0
  return _iterate(
    batches[:num_batches], source, num_workers=workers, max_bad_fraction=max_bad_fraction
  )


class _PaddedSource:
  """A source with a mask, lengthened by zeros to a multiple."""

  def __init__(self, source: sources.ImageSource, *, multiple_of: int) -> None:
    self._source = source
    self._multiple_of = multiple_of

  def __len__(self) -> int:
    return -(-len(self._source) // self._multiple_of) * self._multiple_of

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    if index.__index__() < len(self._source):
      return {**self._source[index], "mask": True}
    if isinstance(self._source, EncodedSource):  # decoding one for its shape takes a while
      image = np.zeros(self._source.image_shape, np.uint8)
      return {"image": image, "label": 0, "mask": False, "bad": NOT_BAD}
    return {"image": np.zeros_like(self._source[0]["image"]), "label": 0, "mask": False}


def _slice_batches(
  elements: grain.MapDataset,
  *,
  batch_size: int,
  batch_size_name: str,
  process_index: int,
  process_count: int,
) -> grain.MapDataset:
  """This process's batches: of every `batch_size` elements, its consecutive share."""
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index must be in [0, process_count), got {process_index} of {process_count}"
    )
  if batch_size % process_count:
    raise UsageError(
      f"{batch_size_name} must be a multiple of the number of processes, {process_count},"
      f" got {batch_size}"
    )
  local = elements.batch(batch_size // process_count, drop_remainder=True, batch_fn=_stack)
  return local[process_index::process_count]


def _stack(examples: Sequence[dict[str, Any]]) -> Batch:
  return {
    key: np.stack([np.asarray(example[key], _DTYPES[key]) for example in examples])
    for key in examples[0]
  }


def _iterate(
  batches: grain.MapDataset,
  source: sources.ImageSource,
  *,
  num_workers: int,
  max_bad_fraction: float,
) -> BatchIterator:
  """Reads batches on threads or in processes; which of them changes nothing in the batches."""
  bad_images, read_options = None, _READ_OPTIONS
  if isinstance(source, EncodedSource):
    bad_images = BadImages(source, max_fraction=max_bad_fraction)
    threads = min(count_cores(), _MAX_THREADS)
    read_options = (
      _WORKER_READ_OPTIONS
      if num_workers
      else grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    )
  iterable = batches.to_iter_dataset(read_options)
  if num_workers:
    iterable = _read_in_processes(iterable, num_workers)
  return BatchIterator(iter(iterable), bad_images)


def count_cores() -> int:
  """Cores that this process may run on."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _read_in_processes(iterable: grain.IterDataset, num_workers: int) -> grain.IterDataset:
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return iterable.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2),
    worker_init_fn=_bind_worker_to_parent,
  )


def _bind_worker_to_parent(worker_index: int, worker_count: int) -> None:
  del worker_index, worker_count
  bind_to_parent()
