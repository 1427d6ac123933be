"""Finds or prepares a dataset and cuts it into training, validation and test sources."""

import dataclasses
import hashlib
import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from bcgd_jax.data import builders, digits, idx, imagenet, shards, sources
from bcgd_jax.data.encoded import CropOptions, EncodedSource
from bcgd_jax.data.options import DataOptions
from bcgd_jax.data.records import Records, TfdsRecords, open_image_folder
from bcgd_jax.errors import UsageError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
  """What a model and a report need to know about a dataset."""

  name: str  # as in DataOptions.dataset
  # Path of the prepared data under the data directory, as "cifar10/3.0.2". Of an "idx" folder it
  # holds a digest of the files, so equal names mean equal examples; of an image folder, of the
  # files' names and sizes.
  full_name: str
  image_shape: tuple[int, int, int]  # (H, W, C), C is 1 or 3
  class_names: tuple[str, ...]  # by label; the number itself where the dataset names none

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
  """Random-access sources of {"image": uint8 [H, W, C], "label": int}."""

  info: DatasetInfo
  train: sources.ImageSource
  validation: sources.ImageSource  # of length 0 where none was asked for
  test: sources.ImageSource


def dataset_info(options: DataOptions) -> DatasetInfo:
  """The `info` that `load_dataset` would give, without preparing or downloading anything.

  Of ImageNet, which one prepares by hand and perhaps later, `full_name` is the name alone, and
  classes are numbers.

  Raises:
    UsageError: bad idx files; an image folder that is not one.
  """
  root = data_root(options.data_dir)
  if options.dataset == "image_folder":
    return open_image_folder_dataset(options).info
  if options.dataset == "imagenet2012":
    return _encoded_info(
      options, full_name="imagenet2012", class_names=_numbers(shards.NUM_CLASSES)
    )
  if options.dataset == "digits":
    builder_dir, image_shape = digits.digits_dir(root), digits.IMAGE_SHAPE
    class_names = _numbers(digits.NUM_CLASSES)
  elif options.dataset == "idx":
    builder_dir, arrays = idx.find_idx(root, manual_dir=Path(options.manual_dir).expanduser())
    image_shape = arrays.splits["train"].images.shape[1:]
    class_names = idx.find_class_names(arrays.splits["train"].labels)
  else:
    builder = tfds.builder(options.dataset, data_dir=root)
    builder_dir, image_shape = Path(builder.data_dir), builder.info.features["image"].shape
    class_names = tuple(builder.info.features["label"].names)
  return DatasetInfo(
    name=options.dataset,
    full_name=builder_dir.relative_to(root).as_posix(),
    image_shape=image_shape,
    class_names=class_names,
  )


def load_dataset(options: DataOptions) -> Dataset:
  """Opens the dataset, preparing it first where that has not been done.

  Validation: the first `validation_examples` of a fixed permutation of the training split, the
  same for every seed, so that runs are comparable and no validation example is ever trained on;
  not stratified. Training: the following ones in the permutation's order, the first
  `train_examples` of them where that is given.

  Decoded images are kept in memory once read, where the split takes at most MAX_CACHED_BYTES.

  Raises:
    UsageError: no room for the validation cut or train_examples; bad idx files; an image folder
      that is not one; a dataset of TFDS's that is not prepared and cannot be here, or is prepared
      in another file format.
  """
  if options.dataset == "image_folder":
    return open_image_folder_dataset(options)
  if options.dataset == "imagenet2012":
    return open_imagenet_dataset(options)
  root = data_root(options.data_dir)
  if options.dataset == "digits":
    builder_dir = digits.prepare_digits(root)
  elif options.dataset == "idx":
    builder_dir = idx.prepare_idx(root, manual_dir=Path(options.manual_dir).expanduser())
  else:
    builder_dir = _prepare_tfds(options.dataset, root)
  features = tfds.builder_from_directory(builder_dir).info.features
  class_names = tuple(features["label"].names)
  if options.dataset == "idx":
    class_names = idx.read_class_names(Path(options.manual_dir).expanduser())
  info = DatasetInfo(
    name=options.dataset,
    full_name=builder_dir.relative_to(root).as_posix(),
    image_shape=features["image"].shape,
    class_names=class_names,
  )
  train = _open_split(builder_dir, "train")
  train_positions, validation_positions = _cut(len(train), options)
  return Dataset(
    info=info,
    train=sources.SubsetSource(train, train_positions),
    validation=sources.SubsetSource(train, validation_positions),
    test=_open_split(builder_dir, "test"),
  )


def _numbers(count: int) -> tuple[str, ...]:
  return tuple(map(str, range(count)))


def data_root(data_dir: str) -> Path:
  # TFDS's own default.
  default = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
  return Path(data_dir or default).expanduser().absolute()


def open_image_folder_dataset(options: DataOptions) -> Dataset:
  """A folder of encoded images; its name holds a digest of the files' names and sizes."""
  train, validation = open_image_folder(Path(options.manual_dir).expanduser().absolute())
  digest = hashlib.sha256((train.digest + validation.digest).encode()).hexdigest()[:16]
  info = _encoded_info(
    options, full_name=f"image_folder/{digest}", class_names=tuple(train.classes)
  )
  return _encoded_dataset(options, info, train, validation)


def open_imagenet_dataset(options: DataOptions) -> Dataset:
  """ImageNet as `bcgd_jax.data.prepare`, or TFDS, has prepared it."""
  root = data_root(options.data_dir)
  builder_dir = imagenet.find_prepared(root)
  _check_random_access(builder_dir)
  names = tuple(tfds.builder_from_directory(builder_dir).info.features["label"].names)
  info = _encoded_info(
    options,
    full_name=builder_dir.relative_to(root).as_posix(),
    # a small set prepared in ImageNet's place names fewer
    class_names=(*names, *_numbers(shards.NUM_CLASSES)[len(names) :]),
  )
  splits = (TfdsRecords(builder_dir, split) for split in ("train", "validation"))
  return _encoded_dataset(options, info, *splits)


def _encoded_info(
  options: DataOptions, *, full_name: str, class_names: tuple[str, ...]
) -> DatasetInfo:
  assert options.image_size is not None
  return DatasetInfo(
    name=options.dataset,
    full_name=full_name,
    image_shape=(options.image_size, options.image_size, 3),
    class_names=class_names,
  )


def _encoded_dataset(
  options: DataOptions, info: DatasetInfo, train: Records, validation: Records
) -> Dataset:
  """What others call the validation images of ImageNet is the test split here."""
  crops = CropOptions(
    image_size=info.image_shape[0], eval_resize=options.resize, min_area=options.min_crop_area
  )
  train_positions, validation_positions = _cut(len(train), options)
  return Dataset(
    info=info,
    train=EncodedSource(train, crops, train_positions),
    validation=EncodedSource(train, crops, validation_positions),
    test=EncodedSource(validation, crops, None),
  )


def _prepare_tfds(name: str, root: Path) -> Path:
  """Returns the directory of a dataset that TFDS defines, prepared in a random-access format."""
  builder = tfds.builder(name, data_dir=root)
  builder_dir = Path(builder.data_dir)
  if not builders.is_prepared(builder_dir):
    if importlib.util.find_spec("tensorflow") is None:
      raise UsageError(
        f"dataset {name!r} is not prepared in {root}, and preparing it needs TensorFlow, which is"
        " not installed: pip install 'bcgd_jax[tfds]', or set data_dir to a folder where TFDS has"
        " prepared it with file_format='array_record'"
      )
    _download_and_prepare(builder, builder_dir)
  _check_random_access(builder_dir)
  return builder_dir


def _check_random_access(builder_dir: Path) -> None:
  file_format = tfds.builder_from_directory(builder_dir).info.file_format.value
  if file_format != "array_record":
    raise UsageError(
      f"{builder_dir} must be prepared with file_format='array_record' for random access, got"
      f" {file_format!r}: set data_dir to another folder or prepare it again"
    )


def _download_and_prepare(builder: tfds.core.DatasetBuilder, builder_dir: Path) -> None:
  try:
    builder.download_and_prepare(file_format="array_record")
  except (
    OSError,  # no network, a full disk
    ImportError,
    tfds.download.DownloadError,
    tfds.download.download_manager.NonMatchingChecksumError,
  ) as error:
    # Of two processes preparing at once, TFDS fails in the later one when it finds the work done.
    if not builders.is_prepared(builder_dir):
      raise UsageError(
        f"dataset {builder.name!r} could not be downloaded and prepared in {builder_dir.parent}"
        f" ({type(error).__name__}: {error}): prepare it where that works, with"
        " file_format='array_record', and set data_dir"
      ) from error


def _open_split(builder_dir: Path, split: str) -> sources.ImageSource:
  source = sources.TfdsSource(builder_dir, split)
  if len(source) * math.prod(source.image_shape) > sources.MAX_CACHED_BYTES:
    return source
  return sources.CachedSource(source)


def _cut(num_examples: int, options: DataOptions) -> tuple[np.ndarray, np.ndarray]:
  """Positions of the training and of the validation examples in the training split."""
  num_validation = options.validation_examples
  if num_validation >= num_examples:
    raise UsageError(
      f"validation_examples must be less than the {num_examples} training examples of"
      f" {options.dataset!r}, got {num_validation}"
    )
  num_left = num_examples - num_validation
  num_train = num_left if options.train_examples is None else options.train_examples
  if num_train > num_left:
    raise UsageError(
      f"train_examples must be at most {num_left}, what validation_examples"
      f" leaves of {options.dataset!r}, got {num_train}"
    )
  # RandomState: the one NumPy generator whose streams are frozen across versions.
  order = np.random.RandomState(0).permutation(num_examples)
  return order[num_validation : num_validation + num_train], order[:num_validation]
