"""Takes over torchvision's float weights: python -m bcgd_jax.import_weights --model=... --from=...

Reads ResNet-18/34 from a safetensors file, or from a .pth state dict where PyTorch is installed,
and writes a folder that a phase of the same name can start from: --config.float.start_from=DIR.
"""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from absl import flags

from bcgd_jax.command import local_folder, run_command
from bcgd_jax.errors import UsageError
from bcgd_jax.models.torchvision import TORCHVISION_MODELS, convert_weights
from bcgd_jax.report import write_json
from bcgd_jax.training.checkpoint import CheckpointStore
from bcgd_jax.training.manifest import sync_directory
from bcgd_jax.training.settings import config_hash
from bcgd_jax.training.workdir import CONFIG_FILE, PHASES_FOLDER

_MODEL = flags.DEFINE_enum("model", None, list(TORCHVISION_MODELS), "The network of the file.")
_FROM = flags.DEFINE_string("from", None, "A .safetensors file, or a .pth or .pt state dict.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; new or empty.")
_PHASE = flags.DEFINE_string("phase", "float", "The phase that will start from it.")

PyTree = Any


def main() -> None:
  if _MODEL.value is None:
    raise UsageError(f"--model must be one of {', '.join(TORCHVISION_MODELS)}.")
  if not _FROM.value:
    raise UsageError("--from must name a .safetensors, .pth or .pt file.")
  output = local_folder(_OUTPUT.value, flag="--output")
  record = import_weights(
    Path(_FROM.value).expanduser(), output, model=_MODEL.value, phase=_PHASE.value
  )
  imported = record["imported"]
  print(
    f"{imported['file']}: {imported['model']}, {imported['num_classes']} classes, "
    f"{imported['num_parameters']:,} parameters."
  )
  print(f"Start from it: --config.{_PHASE.value}.start_from={output}")


def import_weights(source: Path, output: Path, *, model: str, phase: str) -> dict[str, Any]:
  """Writes a folder as a run leaves it whose phase `phase` ended with the weights of a file.

  The folder appears by one rename once everything in it is on the disk. A process killed before
  leaves a hidden folder beside it, which nothing reads.

  Args:
    source: the weights; the suffix says the format.
    output: new or empty.
    model: one of `TORCHVISION_MODELS`.
    phase: name of a phase.
  Returns:
    What its config.json holds: where the weights come from.
  Raises:
    UsageError: if an argument is not as said, the file cannot be read, or its tensors are not the
      network's.
  """
  if not phase.isidentifier():
    raise UsageError(f"--phase must be the name of a phase, such as float, got {phase!r}.")
  _check_free(output)
  name, read = _find_reader(source)
  tensors = read(source)
  try:
    variables = convert_weights(tensors, model=model)
  except ValueError as error:
    raise UsageError(f"{source}: {error}.") from error
  config = {"imported": _describe(source, variables, model=model, file_format=name)}
  output = output.absolute()
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
      folder = Path(scratch) / "weights"
      folder.mkdir()
      write_json(folder / CONFIG_FILE, config)
      store = CheckpointStore(folder / PHASES_FOLDER / phase, config_hash=config_hash(config))
      store.save(0, variables, phase=phase, extra={})
      sync_directory(folder)
      # a rename never replaces a folder that holds files
      os.rename(folder, output)
    sync_directory(output.parent)
  except OSError as error:
    raise UsageError(f"--output could not be written to {output}: {error}.") from error
  return config


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
  """Every tensor of a safetensors file, by name.

  Raises:
    UsageError: if it is not such a file.
  """
  try:
    return safetensors.numpy.load_file(path)
  except (OSError, TypeError, safetensors.SafetensorError) as error:
    raise UsageError(f"{path} must be a safetensors file of NumPy's types: {error}.") from error


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
  """Every tensor of a state dict saved by torch.save, by name; no code in the file is run.

  Raises:
    UsageError: if PyTorch is not installed, or the file holds anything but tensors by name.
  """
  if importlib.util.find_spec("torch") is None:
    raise UsageError(
      f"reading {path} needs PyTorch, which is not installed: pip install torch, or take the "
      "safetensors file of the same weights."
    )
  import torch  # only this format needs it

  try:
    state = torch.load(path, weights_only=True, map_location="cpu")
  except Exception as error:  # whatever damaged bytes lead its unpickler to
    raise UsageError(f"{path} must be a state dict saved by torch.save: {error}.") from error
  if not isinstance(state, dict) or not all(torch.is_tensor(x) for x in state.values()):
    raise UsageError(f"{path} must be a state dict of tensors alone; save model.state_dict().")
  return {
    str(name): (x.float() if x.is_floating_point() else x).numpy() for name, x in state.items()
  }


_READERS: dict[str, tuple[str, Callable[[Path], dict[str, np.ndarray]]]] = {
  ".safetensors": ("safetensors", read_safetensors),
  ".pth": ("torch", read_state_dict),
  ".pt": ("torch", read_state_dict),
}


def _find_reader(source: Path) -> tuple[str, Callable[[Path], dict[str, np.ndarray]]]:
  if source.suffix not in _READERS:
    raise UsageError(f"--from must end in one of {', '.join(_READERS)}, got {source}.")
  if not source.is_file():
    raise UsageError(f"--from must be a file, but {source} is none.")
  return _READERS[source.suffix]


def _check_free(output: Path) -> None:
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UsageError(f"--output must be a new or an empty folder, got {output}.")


def _describe(source: Path, variables: PyTree, *, model: str, file_format: str) -> dict[str, Any]:
  with source.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  params = variables["params"]
  return {
    "model": TORCHVISION_MODELS[model],
    "num_classes": len(params["fc"]["bias"]),
    "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
    "file": source.name,
    "sha256": digest,
    "format": file_format,
  }


if __name__ == "__main__":
  run_command(main, interrupted="nothing was written")
