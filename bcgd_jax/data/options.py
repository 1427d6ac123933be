"""What a run reads: which dataset, how it is split, augmented and batched."""

import dataclasses

from bcgd_jax.errors import UsageError

# "imagenet2012" has no input pipeline yet: `dataset_info` knows it, `load_dataset` refuses it.
DATASET_NAMES = ("digits", "idx", "cifar10", "mnist", "fashion_mnist", "imagenet2012")


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
  # The folder of MNIST-format files; read by dataset="idx" alone, which requires it.
  manual_dir: str = ""
  # Cut from the training split, the same examples for every seed. >= 0, less than the split.
  validation_examples: int = 0
  # Train on the first n examples of what the cut leaves; None is all of them. >= 1.
  train_examples: int | None = None
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
  # Grain worker processes; 0 reads on a thread. Does not change the batches. >= 0.
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
    if self.train_examples is not None:
      _check_integer("train_examples", self.train_examples, 1)
    if self.seed >= 2**32:
      raise UsageError(f"seed must be less than 2**32, got {self.seed}")
    if self.dataset == "idx" and not self.manual_dir:
      raise UsageError(
        "manual_dir must name the folder of MNIST-format files for dataset='idx', got ''"
      )


def _check_type(name: str, value: object, expected: type) -> None:
  if not isinstance(value, expected):
    raise UsageError(f"{name} must be of type {expected.__name__}, got {value!r}")


def _check_integer(name: str, value: object, minimum: int) -> None:
  # bool is an int to Python, but never meant as a number of examples.
  if not isinstance(value, int) or isinstance(value, bool):
    raise UsageError(f"{name} must be an integer, got {value!r}")
  if value < minimum:
    raise UsageError(f"{name} must be at least {minimum}, got {value}")
