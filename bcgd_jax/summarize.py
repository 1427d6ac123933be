"""Prints a network's layers, bits, bytes and MACs: python -m bcgd_jax.summarize --config=FILE.

Nothing is trained or compiled. --workdir=DIR takes the configuration of a run instead.
"""

import dataclasses

from bcgd_jax.cli import CONFIG, WORKDIR, config_of_workdir, required_config
from bcgd_jax.command import run_command
from bcgd_jax.data import dataset_info
from bcgd_jax.errors import UsageError
from bcgd_jax.report import layer_table, print_table
from bcgd_jax.training.recipe import make_model
from bcgd_jax.training.results import layer_rows
from bcgd_jax.training.run import make_data_options
from bcgd_jax.training.settings import parse_settings


def main() -> None:
  if (CONFIG.value is None) == (WORKDIR.value is None):
    raise UsageError("give either --config or --workdir.")
  settings = parse_settings(required_config() if WORKDIR.value is None else config_of_workdir())
  info = dataset_info(make_data_options(settings))
  last = list(settings.phases.values())[-1]
  model = make_model(
    settings,
    num_classes=info.num_classes,
    weights=last.quantize_weights or last.optimizer == "binary_relax",
    activations=last.quantize_activations,
  )
  rows = layer_rows(model, info.image_shape)
  shape = "x".join(map(str, info.image_shape))
  title = f"{settings.model.name} on {info.name} ({shape})"
  print_table(layer_table([dataclasses.asdict(row) for row in rows], title=title))


if __name__ == "__main__":
  run_command(main)
