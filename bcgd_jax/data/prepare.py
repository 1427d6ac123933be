"""Prepares ImageNet: python -m bcgd_jax.data.prepare --dataset=imagenet2012 --manual_dir=DIR.

Reads the two archives of ILSVRC 2012 in --manual_dir and writes records to --data_dir. Started
again, it goes on with the shards that are missing.
"""

import time
from pathlib import Path

from absl import flags

from bcgd_jax.command import local_folder, make_folder, run_command
from bcgd_jax.data import imagenet
from bcgd_jax.data.datasets import data_root
from bcgd_jax.data.pipeline import count_cores
from bcgd_jax.errors import UsageError

_DATASET = flags.DEFINE_string("dataset", imagenet.NAME, "imagenet2012; others need none of this.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "The folder with the archives.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Where to write; by default TFDS's own folder.")
_SHORT_SIDE = flags.DEFINE_integer(
  "short_side", None, "Shrink training images whose short side is longer; by default none.", 64
)
_QUALITY = flags.DEFINE_integer("quality", 95, "JPEG quality of shrunk images.", 1, 100)
_JOBS = flags.DEFINE_integer("jobs", count_cores(), "Processes.", 1)


def main() -> None:
  if _DATASET.value != imagenet.NAME:
    raise UsageError(
      f"--dataset must be {imagenet.NAME}, got {_DATASET.value!r}: image folders are read as they "
      "are, other datasets are prepared by the first run that reads them."
    )
  manual_dir = local_folder(_MANUAL_DIR.value, flag="--manual_dir").expanduser()
  root = make_folder(str(data_root(_DATA_DIR.value)), flag="--data_dir")
  target = imagenet.prepare_imagenet(
    Path(manual_dir),
    root,
    expected=imagenet.published(),
    short_side=_SHORT_SIDE.value,
    quality=_QUALITY.value,
    jobs=_JOBS.value,
    report=_Lines(),
  )
  print(f"Prepared: {target}")


class _Lines:
  """A line now and then with the number of shards done."""

  def __init__(self) -> None:
    self._next = 0.0

  def __call__(self, done: int, total: int) -> None:
    if time.monotonic() >= self._next or done == total:
      print(f"{done} of {total} shards", flush=True)
      self._next = time.monotonic() + 10.0


if __name__ == "__main__":
  run_command(main)
