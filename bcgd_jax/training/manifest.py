"""Directories of checkpoints and their manifests: the proof that files are as they were written.

The manifest is written last and appears by one atomic rename, so its presence *is* the commit. It
lists size and SHA-256 of every other file and carries a digest of itself, because the array storage
alone loads a flipped byte without a word.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bcgd_jax.errors import UsageError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_SLOT_NAME = re.compile(r"step_(\d{8,})(?:-(\d+))?")


class DamagedCheckpointError(Exception):
  """A committed checkpoint is not as it was written: names the file, the rule and the values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
  """Contents of manifest.json.

  Attributes:
    step: training step of the state.
    phase: name of the phase the step belongs to.
    config_hash: identity of the configuration that wrote the checkpoint.
    extra: the caller's own JSON values.
    tree: "path/of/leaf" -> {"shape": [ints], "dtype": name}, in the order of the flattened tree.
    files: POSIX path below the checkpoint's directory -> {"size": bytes, "sha256": hex digits}.
  """

  step: int
  phase: str
  config_hash: str
  extra: dict[str, Any]
  tree: dict[str, dict[str, Any]]
  files: dict[str, dict[str, Any]]


class Slot(NamedTuple):
  """Directory of one saving; slots sort by age: by step, then by how often that step was saved."""

  step: int
  revision: int
  path: Path

  @property
  def committed(self) -> bool:
    return (self.path / MANIFEST_NAME).exists()


def make_slot(directory: Path, step: int, revision: int) -> Slot:
  """The slot of the revision-th saving (from 1) of a step; creates nothing."""
  suffix = "" if revision == 1 else f"-{revision}"
  return Slot(step, revision, directory / f"step_{step:08d}{suffix}")


def list_slots(directory: Path) -> list[Slot]:
  """All slots below `directory`, committed or not, oldest first; none if it does not exist."""
  if not directory.is_dir():
    return []
  slots = []
  for path in directory.iterdir():
    match = _SLOT_NAME.fullmatch(path.name)
    if match and path.is_dir():
      slots.append(Slot(int(match[1]), int(match[2] or 1), path))
  return sorted(slots)


def remove_slot(slot: Slot) -> None:
  """Removes a slot, its manifest first: cut short, it leaves no checkpoint with missing files."""
  (slot.path / MANIFEST_NAME).unlink(missing_ok=True)
  sync_directory(slot.path)
  shutil.rmtree(slot.path)


def check_extra(extra: Any) -> None:
  """Raises ValueError unless `extra` is a dict that JSON gives back equal (no tuples, no NaN)."""
  try:
    same = isinstance(extra, dict) and json.loads(json.dumps(extra, allow_nan=False)) == extra
  except (TypeError, ValueError) as error:
    raise ValueError(f"extra must hold JSON values only, got {extra!r} ({error})") from error
  if not same:
    raise ValueError(f"extra must be a dict that JSON gives back equal, got {extra!r}")


def seal_files(directory: Path) -> dict[str, dict[str, Any]]:
  """Flushes all files and folders below `directory` to the disk; returns size and digest of each.

  Without the flush a power cut could keep the manifest and lose the data it vouches for.
  """
  files = {}
  for path in _walk_files(directory):
    files[path.relative_to(directory).as_posix()] = _fingerprint(path, flush=True)
  for folder, _, _ in os.walk(directory, topdown=False):
    sync_directory(Path(folder))
  return files


def _walk_files(directory: Path) -> Iterator[Path]:
  for folder, folders, names in os.walk(directory):
    folders.sort()
    yield from (Path(folder) / name for name in sorted(names))


def _fingerprint(path: Path, *, flush: bool = False) -> dict[str, Any]:
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if flush:
      os.fsync(file.fileno())
    return {"size": file.tell(), "sha256": digest}


def sync_directory(directory: Path) -> None:
  """Makes renames, creations and removals inside `directory` survive a power cut (fsync)."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_manifest(directory: Path, manifest: Manifest) -> None:
  """Commits the checkpoint in `directory`: the manifest appears whole and durable, or not."""
  body = {"version": FORMAT_VERSION, **asdict(manifest)}
  text = json.dumps({"manifest": body, "sha256": _digest(body)}, indent=1, allow_nan=False)
  temporary = directory / f"{MANIFEST_NAME}.tmp"
  with temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, directory / MANIFEST_NAME)
  sync_directory(directory)


def _digest(body: dict[str, Any]) -> str:
  # sort_keys: the digest must not depend on how the file is laid out.
  text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(directory: Path) -> Manifest:
  """Reads a committed checkpoint's manifest.

  Raises:
    DamagedCheckpointError: if it cannot be read or is not what was written.
    UsageError: if it is whole but of another format version.
  """
  path = directory / MANIFEST_NAME
  try:
    outer = json.loads(path.read_text(encoding="utf-8"))
    body, digest = outer["manifest"], outer["sha256"]
    actual = _digest(body)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DamagedCheckpointError(
      f"{path} must be a readable manifest, got {type(error).__name__}: {error}"
    ) from error
  if digest != actual:
    raise DamagedCheckpointError(f"{path} must have sha256 {digest}, got {actual}")
  version = body.pop("version")
  if version != FORMAT_VERSION:
    raise UsageError(
      f"{path} must be of format version {FORMAT_VERSION}, got {version}; "
      "use the release of bcgd_jax that wrote it"
    )
  return Manifest(**body)


def check_files(directory: Path, manifest: Manifest) -> None:
  """Raises DamagedCheckpointError at the first file that is missing or not as it was written.

  Files that the manifest does not list are tolerated: network file systems leave their own.
  """
  for name, wanted in manifest.files.items():
    path = directory / name
    try:
      size = path.stat().st_size
      if size != wanted["size"]:
        raise DamagedCheckpointError(f"{path} must have {wanted['size']} bytes, got {size}")
      digest = _fingerprint(path)["sha256"]
    except OSError as error:
      raise DamagedCheckpointError(
        f"{path} must be a readable file of {wanted['size']} bytes, got {error}"
      ) from error
    if digest != wanted["sha256"]:
      raise DamagedCheckpointError(f"{path} must have sha256 {wanted['sha256']}, got {digest}")
