"""A finished run's network, ready to be folded."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from bcgd_jax.data.options import ENCODED_NAMES
from bcgd_jax.errors import UsageError
from bcgd_jax.export.integer import Program
from bcgd_jax.export.program import make_program
from bcgd_jax.training.environment import describe_commit
from bcgd_jax.training.recipe import make_model, model_quantizers
from bcgd_jax.training.run import Run, load_phase
from bcgd_jax.training.workdir import RUN_FILE

PyTree = Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
  """What a run's last phase ended with.

  Attributes:
    model: the network, computing in float32 whatever it was trained in: its parameters are float32.
    variables: "params" and "batch_stats", NumPy.
    image_shape: (height, width, channels).
    mean, std: what pixels in [0, 1] are normalised by.
    facts: see `Program`.
  """

  model: nn.Module
  variables: PyTree
  image_shape: tuple[int, int, int]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  facts: Mapping[str, Any]


def load_trained(run: Run) -> Trained:
  """Reads the last phase of a finished run.

  Raises:
    UsageError: if the run is not finished.
  """
  if not (run.workdir / RUN_FILE).exists():
    raise UsageError(
      f"--workdir must be a finished run's, but {run.workdir} has no {RUN_FILE}: start it again to "
      "finish it"
    )
  phase, settings, info = run.phases[-1], run.settings, run.dataset.info
  bits = settings.quantization
  wide = dataclasses.replace(settings.model, dtype="float32")
  model = make_model(
    dataclasses.replace(settings, model=wide),
    num_classes=info.num_classes,
    weights=bool(phase.quantizers),
    activations=phase.settings.quantize_activations,
  )
  return Trained(
    model=model,
    variables=jax.device_get(load_phase(run, phase)),
    image_shape=info.image_shape,
    mean=settings.data.mean,
    std=settings.data.std,
    facts={
      "version": importlib.metadata.version("bcgd_jax"),
      "commit": describe_commit(),
      "model": settings.model.name,
      "dataset": info.full_name,
      "class_names": list(info.class_names),
      **({"eval_resize": run.data_options.resize} if info.name in ENCODED_NAMES else {}),
      "weight_bits": bits.weight_bits,
      "activation_bits": bits.activation_bits,
      "mean": list(settings.data.mean),
      "std": list(settings.data.std),
      "phase": phase.name,
    },
  )


def fold_trained(trained: Trained) -> Program:
  """The network in integers.

  Raises:
    UsageError: as `make_program`.
  """
  return make_program(
    trained.model,
    trained.variables,
    image_shape=trained.image_shape,
    mean=trained.mean,
    std=trained.std,
    quantizers=model_quantizers(trained.model, trained.image_shape),
    facts=trained.facts,
  )
