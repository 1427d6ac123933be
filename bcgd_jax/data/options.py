"""What a run reads: which dataset, how it is split, augmented and batched."""

import dataclasses

from bcgd_jax.errors import UsageError

DATASET_NAMES = (
  *("digits", "idx", "cifar10", "mnist", "fashion_mnist"),
  *("imagenet2012", "image_folder"),
)
# Those whose images are of any size, kept encoded and cropped when they are read.
ENCODED_NAMES = ("imagenet2012", "image_folder")
# Of those, evaluation's short side over the crop's: torchvision's 256 for 224.
_EVAL_RESIZE_RATIO = 256 / 224


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
  """Options of `load_dataset` and `train_batches`; checked when made.

  Raises:
    UsageError: a value of the wrong type or outside the range given beside its field.
  """

  # One of DATASET_NAMES.
  dataset: str
  # Prepared data in TFDS's layout; "" is TFDS's default ($TFDS_DATA_DIR or ~/tensorflow_datasets).
  data_dir: str = ""
  # "idx": the folder of MNIST-format files; "image_folder": the one with train/CLASS/*.jpeg and
  # val/CLASS/*.jpeg. Required by both, read by no other.
  manual_dir: str = ""
  # Cut from the training split, the same examples for every seed. >= 0, less than the split.
  validation_examples: int = 0
  # Train on the first n examples of what the cut leaves; None is all of them. >= 1.
  train_examples: int | None = None
  # Of ENCODED_NAMES, required there and None elsewhere: the side of the images in a batch. >= 1.
  image_size: int | None = None
  # There: the short side before evaluation's central crop; None is image_size * 256 / 224. >= 1.
  eval_resize: int | None = None
  # There: the least share of an image that a training crop shows. In (0, 1].
  min_crop_area: float = 0.08
  # There: the share of a split's images that may be unreadable. In [0, 1).
  max_bad_fraction: float = 1e-4
  # Zero-pad by so many pixels a side and crop back at random; 0 is off. >= 0.
  pad: int = 0
  # Mirror left-right with probability 1/2.
  flip: bool = False
  # Examples a step over all processes. >= 1.
  batch_size: int
  # The same for evaluation. >= 1.
  eval_batch_size: int
  # Of the order of examples and of the augmentation. In [0, 2**32 - 1], Grain's range.
  seed: int = 0
  # Grain worker processes; 0 reads on a thread, ENCODED_NAMES on one a core (at most 16). Does not
  # change the batches. >= 0.
  num_workers: int = 0

  def __post_init__(self) -> None:
    if self.dataset not in DATASET_NAMES:
      raise UsageError(f"dataset must be one of {', '.join(DATASET_NAMES)}, got {self.dataset!r}")
    for name in ("data_dir", "manual_dir"):
      _check_type(name, getattr(self, name), str)
    _check_type("flip", self.flip, bool)
    for name, minimum in (
      ("validation_examples", 0),
      ("pad", 0),
      ("batch_size", 1),
      ("eval_batch_size", 1),
      ("seed", 0),
      ("num_workers", 0),
    ):
      _check_integer(name, getattr(self, name), minimum)
    for name in ("train_examples", "image_size", "eval_resize"):
      if getattr(self, name) is not None:
        _check_integer(name, getattr(self, name), 1)
    if self.seed >= 2**32:
      raise UsageError(f"seed must be less than 2**32, got {self.seed}")
    if self.dataset in ("idx", "image_folder") and not self.manual_dir:
      raise UsageError(f"manual_dir must name the folder of dataset={self.dataset!r}, got ''")
    self._check_encoded()

  def _check_encoded(self) -> None:
    is_encoded = self.dataset in ENCODED_NAMES
    if is_encoded and self.image_size is None:
      raise UsageError(f"image_size must be given for dataset={self.dataset!r}, got None")
    for name in ("image_size", "eval_resize"):
      if not is_encoded and getattr(self, name) is not None:
        raise UsageError(
          f"{name} must be None for dataset={self.dataset!r}, whose images have one size, got "
          f"{getattr(self, name)}"
        )
    if is_encoded and self.pad:
      raise UsageError(
        f"pad must be 0 for dataset={self.dataset!r}, which is cropped at random, got {self.pad}"
      )
    if not 0 < self.min_crop_area <= 1:
      raise UsageError(f"min_crop_area must be in (0, 1], got {self.min_crop_area}")
    if not 0 <= self.max_bad_fraction < 1:
      raise UsageError(f"max_bad_fraction must be in [0, 1), got {self.max_bad_fraction}")

  @property
  def resize(self) -> int:
    """The short side before evaluation's central crop, of ENCODED_NAMES."""
    assert self.image_size is not None
    return self.eval_resize or round(self.image_size * _EVAL_RESIZE_RATIO)


def _check_type(name: str, value: object, expected: type) -> None:
  if not isinstance(value, expected):
    raise UsageError(f"{name} must be of type {expected.__name__}, got {value!r}")


def _check_integer(name: str, value: object, minimum: int) -> None:
  # bool is an int to Python, but never meant as a number of examples.
  if not isinstance(value, int) or isinstance(value, bool):
    raise UsageError(f"{name} must be an integer, got {value!r}")
  if value < minimum:
    raise UsageError(f"{name} must be at least {minimum}, got {value}")
