"""gallery.npz of a workdir: some test images with what two networks of the run say of them."""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bcgd_jax.errors import UsageError
from bcgd_jax.report.files import write_atomic

GALLERY_FILE = "gallery.npz"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
  """Images of the test split with the predictions of a run's float and quantized networks.

  The first `num_sample` images are spaced evenly over those looked at, whatever is predicted of
  them. The others are further ones on which the two networks disagree, spaced evenly as well.

  Attributes:
    images: uint8 [n, h, w, c] as they are evaluated, before normalisation; c is 1 or 3, n >= 1.
    labels: int32 [n].
    float_predictions, quantized_predictions: int32 [n].
    num_sample: in [0, n].
    counts: int64 [4]; images on which both networks are right, only the float one, only the
      quantized one, none.
    num_different: images on which the two predict different classes, of those counted.
    num_seen: the split's first so many images were looked at; those that could not be read are not
      counted.
    split_size: images of the test split.
    phases: names of the phases that the float and the quantized network are of.
    class_names: by label; empty where they are not known.
  """

  images: np.ndarray
  labels: np.ndarray
  float_predictions: np.ndarray
  quantized_predictions: np.ndarray
  num_sample: int
  counts: np.ndarray
  num_different: int
  num_seen: int
  split_size: int
  phases: tuple[str, str]
  class_names: tuple[str, ...]

  def class_name(self, label: int) -> str:
    """The class's name, or its number where there are no names."""
    return self.class_names[label] if self.class_names else str(label)


def write_gallery(workdir: Path, gallery: Gallery) -> None:
  """Writes `workdir`/gallery.npz atomically: a NumPy archive without pickled objects."""
  buffer = io.BytesIO()
  fields = {field.name: getattr(gallery, field.name) for field in dataclasses.fields(gallery)}
  # Empty, NumPy would take the names for numbers.
  fields["class_names"] = np.array(gallery.class_names, np.str_)
  np.savez_compressed(buffer, **fields)
  write_atomic(Path(workdir) / GALLERY_FILE, buffer.getvalue())


def read_gallery(workdir: Path) -> Gallery | None:
  """What `write_gallery` wrote; None if there is no such file.

  Raises:
    UsageError: if the file is damaged, or a field is missing or breaks its rule.
  """
  path = Path(workdir) / GALLERY_FILE
  if not path.exists():
    return None
  arrays = _read_arrays(path)
  for key, (rule, words) in _RULES.items():
    if key not in arrays:
      raise UsageError(f'{path}: "{key}" is missing; it must be {words}')
    if not rule(arrays[key]):
      raise UsageError(f'{path}: "{key}" must be {words}, got {_describe(arrays[key])}')
  _check_together(arrays, path)
  plain = {key: arrays[key].item() for key in _NUMBERS}
  names = {key: tuple(arrays[key].tolist()) for key in ("phases", "class_names")}
  return Gallery(**{**{key: arrays[key] for key in _RULES}, **plain, **names})


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
  try:
    # From memory: NumPy leaves a file open that it cannot make sense of.
    data = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(data) as archive:
      damaged = archive.testzip()  # compares the sums before a header is believed
    if damaged is not None:
      raise zipfile.BadZipFile(f"its part {damaged} is damaged")
    data.seek(0)
    with np.load(data, allow_pickle=False) as arrays:
      return {key: np.asarray(arrays[key]) for key in arrays.files}
  except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
    raise UsageError(f"{path} must be a NumPy archive without pickles: {error}") from error


def _is_images(array: np.ndarray) -> bool:
  return (
    array.dtype == np.uint8 and array.ndim == 4 and array.size > 0 and array.shape[-1] in (1, 3)
  )


def _is_counts(*shape: int) -> Callable[[np.ndarray], bool]:
  return lambda array: array.shape == shape and _are_whole(array)


def _are_whole(array: np.ndarray) -> bool:
  return array.dtype.kind in "iu" and bool(np.all(array >= 0))


def _are_names(array: np.ndarray) -> bool:
  return array.dtype.kind == "U" and array.ndim == 1


_LABELS = (lambda array: array.ndim == 1 and _are_whole(array), "a list of integers >= 0")
_COUNT = (_is_counts(), "an integer >= 0")
_RULES: dict[str, tuple[Callable[[np.ndarray], bool], str]] = {
  "images": (_is_images, "uint8 [n, h, w, c], n >= 1 and c 1 or 3"),
  "labels": _LABELS,
  "float_predictions": _LABELS,
  "quantized_predictions": _LABELS,
  "num_sample": _COUNT,
  "counts": (_is_counts(4), "four integers >= 0"),
  "num_different": _COUNT,
  "num_seen": _COUNT,
  "split_size": _COUNT,
  "phases": (lambda array: _are_names(array) and array.shape == (2,), "two strings"),
  "class_names": (_are_names, "a list of strings"),
}
_NUMBERS = tuple(key for key, rule in _RULES.items() if rule is _COUNT)
_ORDERED = (
  ("num_sample", "images"),
  ("images that differ", "num_different"),
  ("num_different", "sum of counts"),
  ("sum of counts", "num_seen"),
  ("num_seen", "split_size"),
)


def _check_together(arrays: dict[str, np.ndarray], path: Path) -> None:
  """What the fields must be to one another."""
  num_images, num_names = len(arrays["images"]), len(arrays["class_names"])
  for key in ("labels", "float_predictions", "quantized_predictions"):
    if len(arrays[key]) != num_images:
      raise UsageError(
        f'{path}: "{key}" must have a value for each of the {num_images} images,'
        f" got {len(arrays[key])}"
      )
    if num_names and int(arrays[key].max()) >= num_names:
      raise UsageError(
        f'{path}: "{key}" must be below {num_names}, the number of "class_names",'
        f" got {int(arrays[key].max())}"
      )
  differs = arrays["float_predictions"] != arrays["quantized_predictions"]
  numbers = {key: int(arrays[key]) for key in _NUMBERS} | {
    "images": num_images,
    "images that differ": int(np.sum(differs)),
    "sum of counts": int(arrays["counts"].sum()),
  }
  for small, large in _ORDERED:
    if numbers[small] > numbers[large]:
      raise UsageError(
        f"{path}: the {small} must be at most the {large}, got {numbers[small]} and"
        f" {numbers[large]}"
      )


def _describe(array: Any) -> str:
  return f"{array.dtype} {list(array.shape)}" + (f": {array.tolist()}" if array.size <= 4 else "")
