"""Image folders and ImageNet archives in miniature."""

import io
import tarfile
from pathlib import Path
from typing import Any

from bcgd_jax.data import DataOptions
from bcgd_jax.data.imagenet import TRAIN_ARCHIVE, VALIDATION_ARCHIVE, Expected


def folder_options(folder: Path, **changes: Any) -> DataOptions:
  values = {
    "dataset": "image_folder",
    "manual_dir": str(folder),
    "image_size": 32,
    "batch_size": 8,
    "eval_batch_size": 8,
    "flip": True,
    "seed": 3,
  }
  return DataOptions(**{**values, **changes})


def write_archives(folder: Path, target: Path) -> Expected:
  """ImageNet's two archives out of an image folder; returns what they hold."""
  target.mkdir()
  classes = sorted(path.name for path in (folder / "train").iterdir())
  with tarfile.open(target / TRAIN_ARCHIVE, "w") as outer:
    for name in classes:
      buffer = io.BytesIO()
      with tarfile.open(fileobj=buffer, mode="w") as inner:
        for path in sorted((folder / "train" / name).iterdir()):
          inner.add(path, path.name)
      member = tarfile.TarInfo(f"{name}.tar")
      member.size = buffer.tell()
      buffer.seek(0)
      outer.addfile(member, buffer)
  files = sorted((folder / "val").glob("*/*"), key=lambda path: path.name)
  with tarfile.open(target / VALIDATION_ARCHIVE, "w") as tar:
    for path in files:
      tar.add(path, path.name)
  return Expected(
    classes=tuple(classes),
    validation_labels=tuple(path.parent.name for path in files),
    num_train=len(list((folder / "train").glob("*/*"))),
  )
