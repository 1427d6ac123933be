"""ImageNet (ILSVRC 2012) from its archives to records in TFDS's layout, without TensorFlow."""

import concurrent.futures
import dataclasses
import io
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from bcgd_jax.data.builders import is_prepared
from bcgd_jax.data.decoding import BadImageError, decode_rgb, read_plain_jpeg_size
from bcgd_jax.data.records import list_some
from bcgd_jax.data.workers import bind_to_parent
from bcgd_jax.errors import UsageError

NAME = "imagenet2012"
NUM_CLASSES = 1000
VERSION = "1.0.0"
TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VALIDATION_ARCHIVE = "ILSVRC2012_img_val.tar"
_VALIDATION_SHARDS = 50
_WORK_SUFFIX = ".incomplete"
_JPEG_END = b"\xff\xd9"


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


class Member(NamedTuple):
  """A file in an archive, and its label."""

  name: str
  offset: int
  size: int
  label: int


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
  """One file of records: images of an archive, or the one class whose archive lies within it."""

  path: Path
  archive: Path
  members: tuple[Member, ...]
  is_class: bool


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
    if _WORK_SUFFIX not in path.parent.name
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

  Files that are not JPEG, or not RGB or gray, become RGB JPEG of quality 100, as in TFDS. Nothing
  reads the folder before all of it is there: it is renamed at the end.

  Args:
    manual_dir: holds the two archives.
    root: TFDS data directory, local.
    expected: what they must hold.
    short_side: training images whose short side is longer are shrunk to it; None keeps all as they
      are. Validation images always stay.
    quality: JPEG quality of shrunk images, 1 to 100.
    jobs: processes.
    report: called with the number of shards done and of all.
  Returns:
    The prepared folder.
  Raises:
    UsageError: if an archive is missing, damaged or not as expected, or the disk cannot be written.
  """
  config = "full" if short_side is None else f"short{short_side}_quality{quality}"
  target = root / NAME / config / VERSION
  if is_prepared(target):
    return target
  work = target.with_name(VERSION + _WORK_SUFFIX)
  try:
    shards = _plan_train(manual_dir, work, expected) + _plan_validation(manual_dir, work, expected)
    work.mkdir(parents=True, exist_ok=True)
    for left in work.glob("*.tmp*"):
      left.unlink()
    _write_shards(shards, short_side=short_side, quality=quality, jobs=jobs, report=report)
    _write_metadata(work, shards, expected)
    os.rename(work, target)
  except OSError as error:
    raise UsageError(f"{target} could not be written: {error}") from error
  return target


def _plan_train(manual_dir: Path, work: Path, expected: Expected) -> list[Shard]:
  archive = _find_archive(manual_dir, TRAIN_ARCHIVE)
  members = {Path(member.name).stem: member for member in _list_files(archive)}
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
  members = sorted(_list_files(archive))
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
    futures = [
      pool.submit(
        write_shard, shard, short_side=short_side if shard.is_class else None, quality=quality
      )
      for shard in waiting
    ]
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
        done += 1
        report(done, len(shards))
    finally:
      pool.shutdown(cancel_futures=True)


def write_shard(shard: Shard, *, short_side: int | None, quality: int) -> None:
  """Writes one file of records; it appears by a rename once it is whole.

  Raises:
    UsageError: if the archive or an image in it is damaged.
    OSError: if the file cannot be written.
  """
  features = _features()
  scratch = shard.path.with_name(f"{shard.path.name}.tmp{os.getpid()}")
  try:
    writer = ArrayRecordWriter(str(scratch), "group_size:1")
    for name, data, label in _read_images(shard):
      try:
        image = convert_image(data, short_side=short_side, quality=quality)
      except BadImageError as error:
        raise UsageError(f"{name} of {shard.archive} is damaged: {error}") from error
      example = {"image": image, "label": label, "file_name": Path(name).name}
      serialized = features.serialize_example(features.encode_example(example))
      # the order of a message's fields differs from process to process unless asked otherwise
      message = tf_example_pb2.Example.FromString(serialized)
      writer.write(message.SerializeToString(deterministic=True))
    writer.close()
  except RuntimeError as error:  # all that ArrayRecordWriter raises: a full disk
    raise OSError(str(error)) from error
  descriptor = os.open(scratch, os.O_RDONLY)
  os.fsync(descriptor)
  os.close(descriptor)
  os.rename(scratch, shard.path)


def _read_images(shard: Shard) -> Iterator[tuple[str, bytes, int]]:
  """(name, file, label) of a shard's images, by name."""
  with open(shard.archive, "rb") as file:
    for member in shard.members:
      file.seek(member.offset)
      data = file.read(member.size)
      if shard.is_class:
        # a class is read at once: a disk gives one long run of bytes faster than many short ones
        for image in sorted(_list_files(shard.archive, data)):
          yield image.name, data[image.offset : image.offset + image.size], member.label
      else:
        yield member.name, data, member.label


def convert_image(data: bytes, *, short_side: int | None, quality: int) -> bytes:
  """A JPEG file in RGB or gray: the file itself where it is one and not to be shrunk.

  Raises:
    BadImageError: if it is no image, or cut off.
  """
  size = read_plain_jpeg_size(data)
  if size is not None and (short_side is None or min(size) <= short_side):
    if not data.rstrip(b"\0").endswith(_JPEG_END):
      decode_rgb(data)  # cut off, or only untidy
    return data
  picture = Image.fromarray(decode_rgb(data))
  encoded = io.BytesIO()
  if short_side is not None and min(picture.size) > short_side:
    short = min(picture.size)
    width, height = (max(short_side, round(side * short_side / short)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    picture.save(encoded, format="JPEG", quality=quality)
  else:
    picture.save(encoded, format="JPEG", quality=100, subsampling=0)
  return encoded.getvalue()


def _write_metadata(work: Path, shards: list[Shard], expected: Expected) -> None:
  splits = []
  for split, number in (
    ("train", expected.num_train),
    ("validation", len(expected.validation_labels)),
  ):
    paths = [shard.path for shard in shards if f"-{split}." in shard.path.name]
    lengths = [_count_records(path) for path in paths]
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
    features=_features(expected.classes),
    split_infos=splits,
    filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    check_data=False,
  )


def _features(classes: tuple[str, ...] | None = None) -> Any:
  """What a record holds; records are the same with and without the classes' names."""
  label = tfds.features.ClassLabel(
    names=classes, num_classes=NUM_CLASSES if classes is None else None
  )
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(encoding_format="jpeg"),
      "label": label,
      "file_name": tfds.features.Text(),
    }
  )


def _count_records(path: Path) -> int:
  reader = ArrayRecordReader(str(path))
  count: int = reader.num_records()
  reader.close()
  return count


def _find_archive(manual_dir: Path, name: str) -> Path:
  path = manual_dir / name
  if not path.is_file():
    raise UsageError(
      f"manual_dir must hold {TRAIN_ARCHIVE} and {VALIDATION_ARCHIVE} as https://image-net.org "
      f"gives them (after registration), but {path} is missing"
    )
  return path


def _list_files(archive: Path, data: bytes | None = None) -> list[Member]:
  """The files in an archive, or in one that lies within it; labels are still 0."""
  try:
    # "r:": not compressed, or the offsets would not be those in the file
    with tarfile.open(archive, "r:", None if data is None else io.BytesIO(data)) as tar:
      return [Member(m.name, m.offset_data, m.size, label=0) for m in tar if m.isfile()]
  except tarfile.TarError as error:
    raise UsageError(f"{archive} must be a whole tar archive, not compressed: {error}") from error
