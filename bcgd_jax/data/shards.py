"""Files of ImageNet's records, made of images in its archives."""

import contextlib
import dataclasses
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from bcgd_jax.data.decoding import BadImageError, decode_rgb, read_plain_jpeg_size
from bcgd_jax.data.records import list_some
from bcgd_jax.errors import UsageError

NUM_CLASSES = 1000
SCRATCH_SUFFIX = ".scratch"
_JPEG_END = b"\xff\xd9"
# Of the archives as published no unreadable image is known to us, nor could we look: one or two in
# a file of a thousand are left to the threshold of who reads them; more are taken for damage.
_MAX_UNREADABLE = 2


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


def write_shard(shard: Shard, *, short_side: int | None, quality: int) -> list[str]:
  """Writes one file of records; it appears by a rename once it is whole.

  Returns:
    Names of images that cannot be read, at most 2. They are stored as they are, so that the records
    have the published numbers.
  Raises:
    UsageError: if the archive is damaged, or more of its images.
    OSError: if the file cannot be written.
  """
  scratch = shard.path.with_name(f"{shard.path.name}.{os.getpid()}{SCRATCH_SUFFIX}")
  features = make_features()
  num_records, unreadable = 0, []
  with _open_writer(scratch) as writer:
    for name, data, label in _read_images(shard):
      try:
        image = convert_image(data, short_side=short_side, quality=quality)
      except BadImageError:
        image = data
        unreadable.append(name)
      example = {"image": image, "label": label, "file_name": Path(name).name}
      serialized = features.serialize_example(features.encode_example(example))
      # the order of a message's fields differs from process to process unless asked otherwise
      message = tf_example_pb2.Example.FromString(serialized)
      writer.write(message.SerializeToString(deterministic=True))
      num_records += 1
  if len(unreadable) > _MAX_UNREADABLE:  # not renamed: an error at the next start too
    raise UsageError(
      f"{shard.archive} must hold images, but {len(unreadable)} of the {num_records} for "
      f"{shard.path.name} cannot be read: {list_some(unreadable)}; compare its checksum with the "
      "published one"
    )
  if count_records(scratch) != num_records:
    raise OSError(f"{scratch} does not hold the {num_records} records written to it")
  with open(scratch, "rb") as file:
    os.fsync(file.fileno())
  os.rename(scratch, shard.path)
  return unreadable


@contextlib.contextmanager
def _open_writer(path: Path) -> Iterator[ArrayRecordWriter]:
  try:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    yield writer
    writer.close()
  except RuntimeError as error:  # all that it raises: a full disk
    raise OSError(str(error)) from error


def _read_images(shard: Shard) -> Iterator[tuple[str, bytes, int]]:
  """(name, file, label) of a shard's images, by name."""
  with open(shard.archive, "rb") as file:
    for member in shard.members:
      file.seek(member.offset)
      data = file.read(member.size)
      if shard.is_class:
        # a class is read at once: a disk gives one long run of bytes faster than many short ones
        for image in sorted(list_files(shard.archive, data)):
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
  pixels = decode_rgb(data)
  picture = Image.fromarray(pixels)
  if (pixels == pixels[..., :1]).all():
    picture = picture.convert("L")
  encoded = io.BytesIO()
  if short_side is not None and min(picture.size) > short_side:
    short = min(picture.size)
    width, height = (max(short_side, round(side * short_side / short)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    picture.save(encoded, format="JPEG", quality=quality)
  else:
    picture.save(encoded, format="JPEG", quality=100, subsampling=0)
  return encoded.getvalue()


def make_features(classes: tuple[str, ...] | None = None) -> Any:
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


def count_records(path: Path) -> int:
  """Records in a file."""
  reader = ArrayRecordReader(str(path))
  count: int = reader.num_records()
  reader.close()
  return count


def list_files(archive: Path, data: bytes | None = None) -> list[Member]:
  """The files in an archive, or in one that lies within it; labels are still 0."""
  try:
    # "r:": not compressed, or the offsets would not be those in the file
    with tarfile.open(archive, "r:", None if data is None else io.BytesIO(data)) as tar:
      return [Member(m.name, m.offset_data, m.size, label=0) for m in tar if m.isfile()]
  except tarfile.TarError as error:
    raise UsageError(f"{archive} must be a whole tar archive, not compressed: {error}") from error
