"""ImageNet (ILSVRC 2012) from its archives to records in TFDS's layout, without TensorFlow."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from bcgd_jax.data.builders import is_prepared
from bcgd_jax.data.records import list_some
from bcgd_jax.data.shards import (
  SCRATCH_SUFFIX,
  Shard,
  count_records,
  list_files,
  make_features,
  write_shard,
)
from bcgd_jax.data.workers import bind_to_parent
from bcgd_jax.errors import UsageError

NAME = "imagenet2012"
VERSION = "1.0.0"
TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VALIDATION_ARCHIVE = "ILSVRC2012_img_val.tar"
_VALIDATION_SHARDS = 50
# In the name of a folder that is being written: at the end of ours, at the start of TFDS's.
_INCOMPLETE = "incomplete"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
  """What the archives must hold.

  Attributes:
    classes: WordNet ids in the order of their labels (sorted, as torchvision sorts them).
    validation_labels: WordNet ids of the validation images, in the order of their file names.
    num_train: training images.
  """

  classes: tuple[str, ...]
  validation_labels: tuple[str, ...]
  num_train: int


def published() -> Expected:
  """The dataset as published; the lists come with tensorflow-datasets."""
  folder = Path(tfds.__file__).parent / "datasets" / NAME
  return Expected(
    classes=tuple((folder / "labels.txt").read_text().split()),
    validation_labels=tuple((folder / "validation_labels.txt").read_text().split()),
    num_train=1_281_167,
  )


def find_prepared(root: Path) -> Path:
  """The prepared dataset under a data directory: ours, or TFDS's own.

  Raises:
    UsageError: if there is none, or more than one.
  """
  found = sorted(
    path.parent
    for path in (root / NAME).glob("**/dataset_info.json")
    if _INCOMPLETE not in path.parent.name
  )
  if len(found) == 1:
    return found[0]
  if not found:
    raise UsageError(
      f"dataset {NAME!r} is not prepared in {root}: python -m bcgd_jax.data.prepare "
      f"--dataset={NAME} --manual_dir=DIR --data_dir={root}, where DIR holds {TRAIN_ARCHIVE} and "
      f"{VALIDATION_ARCHIVE}; an image folder needs no preparation (dataset=image_folder)"
    )
  raise UsageError(
    f"data_dir must hold one prepared {NAME!r}, got {list_some([str(path) for path in found])}: "
    "keep them in folders of their own"
  )


def prepare_imagenet(
  manual_dir: Path,
  root: Path,
  *,
  expected: Expected,
  short_side: int | None,
  quality: int,
  jobs: int,
  report: Callable[[int, int], None],
) -> Path:
  """Writes the records, a file a class; what an earlier start has finished is kept.

  Files that are not JPEG, or not RGB or gray, become that at quality 100, as in TFDS. Nothing
  reads the folder before all of it is there: it is renamed at the end. An image that cannot be read
  is named in a warning and stored as it is; more than two in a file of records are an error.

  Args:
    manual_dir: holds the two archives.
    root: TFDS data directory, local.
    expected: what they must hold.
    short_side: training images whose short side is longer are shrunk to it; None keeps all as they
      are. Validation images always stay.
    quality: JPEG quality of shrunk images, 1 to 100.
    jobs: processes; each holds the archive of one class in memory, about 150 MB.
    report: called with the number of shards done and of all.
  Returns:
    The prepared folder.
  Raises:
    UsageError: if an archive is missing, damaged or not as expected, the disk cannot be written, or
      another process prepares the same.
  """
  config = "full" if short_side is None else f"short{short_side}_quality{quality}"
  target = root / NAME / config / VERSION
  if is_prepared(target):
    return target
  work = target.with_name(f"{VERSION}.{_INCOMPLETE}")
  try:
    shards = _plan_train(manual_dir, work, expected) + _plan_validation(manual_dir, work, expected)
    work.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(".lock"), what=target):
      for left in work.glob(f"*{SCRATCH_SUFFIX}"):
        left.unlink()
      _write_shards(shards, short_side=short_side, quality=quality, jobs=jobs, report=report)
      _write_metadata(work, shards, expected)
      os.rename(work, target)
  except OSError as error:
    raise UsageError(f"{target} could not be written: {error}") from error
  return target


@contextlib.contextmanager
def _lock(path: Path, *, what: Path) -> Iterator[None]:
  """Keeps other processes out; the lock ends with the process, however that ends."""
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UsageError(f"{what} is being prepared by another process: let it finish") from error
    yield


def _plan_train(manual_dir: Path, work: Path, expected: Expected) -> list[Shard]:
  archive = _find_archive(manual_dir, TRAIN_ARCHIVE)
  members = {Path(member.name).stem: member for member in list_files(archive)}
  if sorted(members) != sorted(expected.classes):
    missing, extra = (
      sorted(set(a) - set(b)) for a, b in ((expected.classes, members), (members, expected.classes))
    )
    raise UsageError(
      f"{archive} must hold one archive for each of the {len(expected.classes)} classes, but lacks "
      f"{list_some(missing) or 'none'} and has besides {list_some(extra) or 'none'}"
    )
  paths = _shard_paths(work, "train", len(expected.classes))
  return [
    Shard(path, archive, (members[name]._replace(label=label),), is_class=True)
    for label, (path, name) in enumerate(zip(paths, expected.classes, strict=True))
  ]


def _plan_validation(manual_dir: Path, work: Path, expected: Expected) -> list[Shard]:
  archive = _find_archive(manual_dir, VALIDATION_ARCHIVE)
  members = sorted(list_files(archive))
  if len(members) != len(expected.validation_labels):
    raise UsageError(
      f"{archive} must hold {len(expected.validation_labels)} images, got {len(members)}"
    )
  numbers = {name: label for label, name in enumerate(expected.classes)}
  labelled = [
    member._replace(label=numbers[name])
    for member, name in zip(members, expected.validation_labels, strict=True)
  ]
  count = min(_VALIDATION_SHARDS, len(members))
  paths = _shard_paths(work, "validation", count)
  bounds = [len(members) * index // count for index in range(count + 1)]
  return [
    Shard(path, archive, tuple(labelled[low:high]), is_class=False)
    for path, low, high in zip(paths, bounds, bounds[1:], strict=False)
  ]


def _shard_paths(work: Path, split: str, count: int) -> list[Path]:
  return [work / f"{NAME}-{split}.array_record-{i:05d}-of-{count:05d}" for i in range(count)]


def _write_shards(
  shards: list[Shard],
  *,
  short_side: int | None,
  quality: int,
  jobs: int,
  report: Callable[[int, int], None],
) -> None:
  waiting = [shard for shard in shards if not shard.path.exists()]
  done = len(shards) - len(waiting)
  report(done, len(shards))
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    jobs, mp_context=context, initializer=bind_to_parent
  ) as pool:
    futures = {
      pool.submit(
        write_shard, shard, short_side=short_side if shard.is_class else None, quality=quality
      ): shard
      for shard in waiting
    }
    try:
      for future in concurrent.futures.as_completed(futures):
        unreadable = future.result()
        if unreadable:
          archive = futures[future].archive
          logging.warning("Cannot be read, stored as is: %s of %s", list_some(unreadable), archive)
        done += 1
        report(done, len(shards))
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UsageError(
        f"--jobs must leave memory for each, got {jobs}, and a process was killed: the same "
        "command with fewer goes on"
      ) from error
    finally:
      pool.shutdown(cancel_futures=True)


def _write_metadata(work: Path, shards: list[Shard], expected: Expected) -> None:
  splits = []
  for split, number in (
    ("train", expected.num_train),
    ("validation", len(expected.validation_labels)),
  ):
    paths = [shard.path for shard in shards if f"-{split}." in shard.path.name]
    lengths = [count_records(path) for path in paths]
    if sum(lengths) != number:
      raise UsageError(
        f"the {split} archive must hold {number} images, got {sum(lengths)}; before starting again "
        f"with another one, remove {work}"
      )
    template = tfds.core.ShardedFileTemplate(
      data_dir=work, dataset_name=NAME, split=split, filetype_suffix="array_record"
    )
    size = sum(path.stat().st_size for path in paths)
    splits.append(
      tfds.core.SplitInfo(
        name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=work,
    features=make_features(expected.classes),
    split_infos=splits,
    filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    check_data=False,
  )


def _find_archive(manual_dir: Path, name: str) -> Path:
  path = manual_dir / name
  if not path.is_file():
    raise UsageError(
      f"manual_dir must hold {TRAIN_ARCHIVE} and {VALIDATION_ARCHIVE} as https://image-net.org "
      f"gives them (after registration), but {path} is missing"
    )
  return path
