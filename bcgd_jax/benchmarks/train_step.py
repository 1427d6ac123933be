"""Times training steps: python -m bcgd_jax.benchmarks.train_step --model=resnet20 --devices=1.

Float, 1W4A and 4W4A networks of one model on one batch, each by the step that runs take, in turns;
each ratio to float is the median of those within a round. With --against=brevitas, PyTorch takes
turns too, float and quantized by Brevitas, on the CPU alone (it needs the extra `bench`).
"""

import functools
import importlib.metadata
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from absl import flags
from ml_collections import config_flags

from bcgd_jax.benchmarks.peaks import peak_flops
from bcgd_jax.benchmarks.rotation import paired_ratios, time_in_rotation
from bcgd_jax.benchmarks.step_cases import Problem, StepCase
from bcgd_jax.command import run_command
from bcgd_jax.errors import UsageError
from bcgd_jax.models import MODEL_NAMES
from bcgd_jax.report import Table, print_table, write_json
from bcgd_jax.report.files import write_atomic
from bcgd_jax.report.tables import Column
from bcgd_jax.training.environment import describe_environment

FLOAT = (32, 32)
BITS = (FLOAT, (1, 4), (4, 4))
# forward once, backward twice: the gradients in the inputs and in the weights
_PASSES = 3
_FLOPS_PER_MAC = 2

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/default.py", "A configuration, whose last phase is timed.", lock_config=True
)
_MODEL = flags.DEFINE_enum("model", "resnet20", list(MODEL_NAMES), "The network.")
_DEVICES = flags.DEFINE_integer("devices", 1, "How many devices; on CPUs virtual ones.", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Over all devices.", 1)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Height and width; 224 is ImageNet's.", 8)
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 10, "Logits.", 2)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of convolutions.")
_STEPS = flags.DEFINE_integer("steps", 3, "Steps timed at once.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 11, "How often each network takes its turn.", 1)
_AGAINST = flags.DEFINE_enum("against", "", ["", "brevitas"], "What is timed beside ours.")
_JSON = flags.DEFINE_string("json", None, "A file for the rows; the table in .md is put beside it.")

OURS = "bcgd_jax"

Row = dict[str, Any]
Key = tuple[str, int, int]  # implementation, weight bits, activation bits


class _Case(Protocol):
  """A training step, ours or another's."""

  def run(self, num_steps: int) -> None:
    """Takes that many steps and waits for the last."""


def main() -> None:
  opponent = _import_opponent(_MODEL.value) if _AGAINST.value else None
  devices = _find_devices(_DEVICES.value)
  problem = Problem(
    config=_CONFIG.value.to_dict(),
    model=_MODEL.value,
    batch_size=_BATCH_SIZE.value,
    image_size=_IMAGE_SIZE.value,
    num_classes=_NUM_CLASSES.value,
    dtype=_DTYPE.value,
  )
  rows = time_steps(problem, devices, steps=_STEPS.value, rounds=_ROUNDS.value, opponent=opponent)
  table = make_table(rows)
  print_table(table)
  if _JSON.value:
    path = Path(_JSON.value)
    write_json(path, rows)
    write_atomic(path.with_suffix(".md"), make_page(rows, table).encode())


def time_steps(
  problem: Problem,
  devices: Sequence[jax.Device],
  *,
  steps: int,
  rounds: int,
  opponent: Any | None = None,
) -> list[Row]:
  """One row for each of `BITS`, the first float, then the opponent's.

  Args:
    problem: model, batch and configuration.
    devices: those to use.
    steps: taken between two looks at the clock.
    rounds: how often each network takes its turn.
    opponent: the module `brevitas_step`, or None.
  Returns:
    Rows with the keys of the table, of `describe_environment`, and: step_seconds, the median;
    ratio_to_float, the median of the ratios within a round to the same implementation's float step,
    with its quartiles; ratio_to_bcgd_jax, the like to our step of equal bits; peak_memory_bytes of
    a device, see `StepCase`, None for others' steps; mfu: 6 x multiply-accumulates of a forward
    pass over what the devices could have done, None where their peak is not known.
  """
  ours = {
    bits: StepCase(problem, devices, weight_bits=bits[0], activation_bits=bits[1]) for bits in BITS
  }
  cases: dict[Key, _Case] = {(OURS, *bits): case for bits, case in ours.items()}
  environment = describe_environment()
  if opponent is not None:
    for bits in opponent.BITS:
      cases[opponent.NAME, *bits] = opponent.BrevitasCase(
        problem.model,
        problem.make_batch(),
        num_classes=problem.num_classes,
        quantized=bits != FLOAT,
      )
    environment |= {name: importlib.metadata.version(name) for name in ("torch", "brevitas")}
    environment["torch_threads"] = opponent.num_threads()
  for case in cases.values():
    case.run(2)
  seconds = time_in_rotation(
    {key: functools.partial(case.run, steps) for key, case in cases.items()}, num_rounds=rounds
  )
  peak = peak_flops(devices[0].device_kind)
  rows = []
  for (name, *bits), times in seconds.items():
    weight_bits, activation_bits = bits
    step_seconds = statistics.median(times) / steps
    low, middle, high = paired_ratios(times, seconds[name, *FLOAT])
    flops = _PASSES * _FLOPS_PER_MAC * ours[FLOAT].macs * problem.batch_size
    rows.append(
      {
        "model": problem.model,
        "implementation": name,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "batch_size": problem.batch_size,
        "image_size": problem.image_size,
        "num_classes": problem.num_classes,
        "dtype": problem.dtype,
        "devices": len(devices),
        "step_seconds": step_seconds,
        "images_per_second": problem.batch_size / step_seconds,
        "ratio_to_float": middle,
        "ratio_to_float_quartiles": [low, high],
        "ratio_to_bcgd_jax": paired_ratios(times, seconds[OURS, *bits])[1],
        "peak_memory_bytes": ours[weight_bits, activation_bits].peak_memory_bytes
        if name == OURS
        else None,
        "mfu": None if peak is None else flops / step_seconds / (peak * len(devices)),
        "rounds": rounds,
        "steps_per_round": steps,
        **environment,
      }
    )
  return rows


def make_table(rows: Sequence[Row]) -> Table:
  """The rows as they are printed."""
  first = rows[0]
  size = f"{first['image_size']} x {first['image_size']}"
  return Table(
    title=f"Training steps of {first['model']}, {first['batch_size']} images of {size}, "
    f"{first['dtype']}, {first['devices']} x {first['device']}",
    columns=(
      Column("Step of"),
      Column("W / A bits"),
      Column("Step, ms", numeric=True),
      Column("Images / s", numeric=True),
      Column("/ float", numeric=True),
      Column("Quartiles", numeric=True),
      Column("/ bcgd_jax", numeric=True),
      Column("Memory, MiB", numeric=True),
      Column("MFU", numeric=True),
    ),
    rows=tuple(_cells(row) for row in rows),
  )


def make_page(rows: Sequence[Row], table: Table) -> str:
  """The table as a page of its own, with what it needs to be made again."""
  first = rows[0]
  command = (
    f"python -m bcgd_jax.benchmarks.train_step --model={first['model']} "
    f"--devices={first['devices']} --batch_size={first['batch_size']} "
    f"--image_size={first['image_size']} --num_classes={first['num_classes']} "
    f"--dtype={first['dtype']} --steps={first['steps_per_round']} --rounds={first['rounds']}"
  ) + (" --against=brevitas" if "brevitas" in first else "")
  facts = (
    f"{first['device']}, {first['cpu_cores']} cores, Python {first['python']}, jax {first['jax']}, "
    f"commit {first['commit'] or 'unknown'}."
  )
  if "brevitas" in first:
    facts += (
      f" PyTorch {first['torch']} (eager, {first['torch_threads']} threads), "
      f"Brevitas {first['brevitas']}; their ratios to float are to PyTorch's float step."
    )
  return f"# {table.title}\n\n`{command}`\n\n{facts}\n\n{table.to_markdown()}\n"


def _cells(row: Row) -> tuple[str, ...]:
  low, high = row["ratio_to_float_quartiles"]
  memory = row["peak_memory_bytes"]
  return (
    row["implementation"],
    f"{row['weight_bits']} / {row['activation_bits']}",
    f"{1000 * row['step_seconds']:.2f}",
    f"{row['images_per_second']:,.0f}",
    f"{row['ratio_to_float']:.3f}",
    f"{low:.3f} to {high:.3f}",
    f"{row['ratio_to_bcgd_jax']:.3f}",
    "-" if memory is None else f"{memory / 2**20:,.0f}",
    "-" if row["mfu"] is None else f"{row['mfu']:.1%}",
  )


def _find_devices(count: int) -> list[jax.Device]:
  # read before the first use of JAX; other platforms do not look at it
  jax.config.update("jax_num_cpu_devices", count)
  found = jax.devices()
  if len(found) < count:
    raise UsageError(f"--devices must be at most the {len(found)} that JAX sees, got {count}.")
  return found[:count]


def _import_opponent(model: str) -> Any:
  """The module of PyTorch's steps, which needs the extra `bench`."""
  if _DEVICES.value != 1 or _DTYPE.value != "float32":
    raise UsageError("--against=brevitas must run with --devices=1 and --dtype=float32.")
  jax.config.update("jax_platforms", "cpu")
  try:
    # nothing else needs PyTorch and Brevitas
    from bcgd_jax.benchmarks import brevitas_step
  except ImportError as error:
    raise UsageError(
      f"--against=brevitas needs the extra `bench` (pip install 'bcgd_jax[bench]'): {error}."
    ) from error
  brevitas_step.check_model(model)
  return brevitas_step


if __name__ == "__main__":
  run_command(main, interrupted="nothing was written")
