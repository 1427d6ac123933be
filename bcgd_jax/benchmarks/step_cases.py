"""The training step of a run, compiled and ready to be timed on random images."""

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bcgd_jax.errors import TrainingError
from bcgd_jax.training.parallel import AXIS_NAME, Parallel
from bcgd_jax.training.recipe import enter_phase, make_phases
from bcgd_jax.training.results import layer_rows
from bcgd_jax.training.settings import parse_settings
from bcgd_jax.training.steps import train_step

PyTree = Any

# Random labels can be fitted, but not at the rates of a recipe: what diverges to NaN runs at
# another speed than what does not.
_LEARNING_RATE = 1e-3
_NUM_EXAMPLES = 50_000  # only schedules depend on it


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
  """What every case of one comparison has in common.

  Attributes:
    config: nested mapping with the keys of configs/default.py; its last phase is what is timed.
    model: name of the network.
    batch_size: over all devices.
    image_size: height and width of the images, which have three channels.
    num_classes: number of logits.
    dtype: "float32" or "bfloat16", of the convolutions.
  """

  config: Mapping[str, Any]
  model: str
  batch_size: int
  image_size: int
  num_classes: int
  dtype: str

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return (self.image_size, self.image_size, 3)

  def make_batch(self) -> dict[str, np.ndarray]:
    """Random images, uint8, and labels; always the same."""
    rng = np.random.default_rng(0)
    return {
      "image": rng.integers(0, 256, (self.batch_size, *self.image_shape), dtype=np.uint8),
      "label": rng.integers(0, self.num_classes, self.batch_size).astype(np.int32),
    }

  def configure(self, *, weight_bits: int, activation_bits: int) -> dict[str, Any]:
    """The configuration of one case: 32 bits are float, all else is equal."""
    config = copy.deepcopy(dict(self.config))
    name = config["phases"][-1]
    config["phases"] = (name,)
    config["model"] |= {"name": self.model, "dtype": self.dtype}
    config["data"] |= {"batch_size": self.batch_size}
    config["quantization"] |= {
      "weight_bits": weight_bits,
      "activation_bits": activation_bits,
      "alpha_init": "table",
    }
    config[name] |= {"learning_rate": _LEARNING_RATE, "start_from": "", "distill_weight": 0.0}
    return config


class StepCase:
  """The mapped and compiled training step of one bit width, with its state.

  The batch lies on the devices before the clock starts: what is timed is the step, not its input.

  Attributes:
    weight_bits, activation_bits: 32 is float.
    macs: multiply-accumulates of one image, forward.
    peak_memory_bytes: of one device, by XLA's account of the compiled step: arguments, results and
      temporary buffers, those shared by arguments and results counted once. A device's own counter
      would show the largest of all cases in a process.
  """

  def __init__(
    self, problem: Problem, devices: Sequence[jax.Device], *, weight_bits: int, activation_bits: int
  ) -> None:
    self.weight_bits, self.activation_bits = weight_bits, activation_bits
    config = problem.configure(weight_bits=weight_bits, activation_bits=activation_bits)
    settings = parse_settings(config)
    parallel = Parallel(settings.parallel, tuple(devices))
    (phase,) = make_phases(
      settings,
      num_classes=problem.num_classes,
      image_shape=problem.image_shape,
      num_examples=_NUM_EXAMPLES,
    )
    parallel.check_batch_size(
      problem.batch_size, name="--batch_size", parts=phase.settings.accumulate_steps
    )
    state = enter_phase(
      phase,
      None,
      settings=settings,
      image_shape=problem.image_shape,
      calibration_images=lambda num_batches: (),
    )
    self._state = parallel.replicate(state)
    self._batch = jax.device_put(
      parallel.place_batch(problem.make_batch()),
      NamedSharding(parallel.mesh, PartitionSpec(AXIS_NAME)),
    )
    mapped = parallel.map_step(
      functools.partial(train_step, options=phase.options), num_replicated=2, donate=True
    )
    self._compiled = mapped.lower(self._state, None, self._batch).compile()
    self.macs = sum(row.macs for row in layer_rows(phase.host_model, problem.image_shape))
    stats = self._compiled.memory_analysis()
    self.peak_memory_bytes = (
      stats.argument_size_in_bytes
      + stats.output_size_in_bytes
      + stats.temp_size_in_bytes
      - stats.alias_size_in_bytes
    )

  def run(self, num_steps: int) -> None:
    """Takes that many steps and waits for the last.

    Raises:
      TrainingError: if the loss is not finite.
    """
    for _ in range(num_steps):
      self._state, metrics = self._compiled(self._state, None, self._batch)
    loss = float(metrics["loss"])
    jax.block_until_ready(self._state)
    if not np.isfinite(loss):
      raise TrainingError(f"loss must stay finite for a time to mean anything, got {loss}.")

  def hlo(self) -> str:
    """The compiled program as text, for who wants to know where the time goes."""
    return str(self._compiled.as_text())
