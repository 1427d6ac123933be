"""Checks the theory and draws it: python -m bcgd_jax.theory.reproduce --output=DIR.

Prints a table of checks and writes it to DIR as theory.json and theory.md, with five pictures. Exit
status 0 if all checks pass, 1 if one fails (everything is printed and written all the same), 2 for
bad input, which is found before anything is computed. The time grows with --samples.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from bcgd_jax.command import make_folder, run_command
from bcgd_jax.errors import CheckError, UsageError
from bcgd_jax.report import print_table, write_json
from bcgd_jax.report.files import write_atomic
from bcgd_jax.report.plotting import Picture
from bcgd_jax.theory.checks import Check, checks_table, make_checks
from bcgd_jax.theory.experiments import run_experiments
from bcgd_jax.theory.figures import draw_pictures

DEFAULT_SAMPLES = 40_000_000
MIN_SAMPLES = 10_000  # means of fewer are not yet Gaussian enough for limits in standard errors
_LIMIT = 2**31  # of samples and seeds

OUTPUT = flags.DEFINE_string("output", None, "Folder for theory.json, theory.md and the pictures.")
SAMPLES = flags.DEFINE_integer(
  "samples", DEFAULT_SAMPLES, "Inputs drawn for each closed form that is checked by sampling."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.")


def main() -> None:
  num_samples, seed = SAMPLES.value, SEED.value
  if not MIN_SAMPLES <= num_samples < _LIMIT:
    raise UsageError(f"--samples must be in [{MIN_SAMPLES}, 2^31), got {num_samples}.")
  if not 0 <= seed < _LIMIT:
    raise UsageError(f"--seed must be in [0, 2^31), got {seed}.")
  folder = make_folder(OUTPUT.value, flag="--output")
  start = time.perf_counter()
  evidence = run_experiments(
    num_samples, seed, announce=lambda part: print(f"measuring {part}", flush=True)
  )
  checks = make_checks(evidence)
  pictures = draw_pictures(evidence)
  seconds = time.perf_counter() - start
  print_table(checks_table(checks))
  _write_results(
    folder,
    checks,
    pictures,
    facts={
      "samples": num_samples,
      "seed": seed,
      "jax_version": jax.__version__,
      "device": jax.devices()[0].device_kind,
      "seconds": round(seconds, 1),
    },
  )
  failed = [check.name for check in checks if not check.passed]
  if failed:
    raise CheckError(f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")


def _write_results(
  folder: Path, checks: Sequence[Check], pictures: Sequence[Picture], *, facts: dict[str, Any]
) -> None:
  for picture in pictures:
    write_atomic(folder / picture.file_name, picture.png)
  write_atomic(folder / "theory.md", _write_markdown(checks, pictures, facts).encode())
  rows = [dataclasses.asdict(check) | {"passed": check.passed} for check in checks]
  write_json(folder / "theory.json", facts | {"checks": rows})


def _write_markdown(
  checks: Sequence[Check], pictures: Sequence[Picture], facts: dict[str, Any]
) -> str:
  table = checks_table(checks)
  command = (
    "python -m bcgd_jax.theory.reproduce --output=DIR"
    f" --samples={facts['samples']} --seed={facts['seed']}"
  )
  parts = [
    f"# {table.title}",
    f"`{command}`, jax {facts['jax_version']}, {facts['device']}, {facts['seconds']} s.",
    table.to_markdown(),
  ]
  for picture in pictures:
    parts += [f"## {picture.title}", f"![{picture.alt}]({picture.file_name})", picture.caption]
  return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
  run_command(main, interrupted="nothing was written")
