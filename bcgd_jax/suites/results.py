"""results.json: a record a run, enough to draw the suite's table and figures without the runs."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bcgd_jax.errors import UsageError
from bcgd_jax.report import read_json, read_metrics, write_json
from bcgd_jax.suites.execute import is_finished
from bcgd_jax.suites.plan import PlannedRun, run_name
from bcgd_jax.training.environment import ENVIRONMENT_FILE
from bcgd_jax.training.settings import FLOAT_BITS, PhaseSettings, parse_settings
from bcgd_jax.training.workdir import RUN_FILE

RESULTS_FILE = "results.json"
Record = dict[str, Any]


def read_results(
  workdir: Path, suite: str, runs: Iterable[PlannedRun]
) -> dict[tuple[str, int], Record]:
  """The finished runs' records by (row, seed); empty if there are none yet.

  Raises:
    UsageError: if the file is not one of this suite, or has a record that would be lost: of a row
      or seed that the suite has not, or of another configuration of its row.
  """
  path = workdir / RESULTS_FILE
  if not path.exists():
    return {}
  stored = read_json(path)
  if stored.get("suite") != suite:
    raise UsageError(
      f"{path} must be of the suite {suite!r}, got {stored.get('suite')!r}; use another --workdir."
    )
  try:
    found = {(r["row"], r["seed"]): r for r in stored["runs"] if r["status"] == "done"}
    identities = {key: record["identity"] for key, record in found.items()}
  except (KeyError, TypeError) as error:
    raise UsageError(f"{path} must hold a list of records under 'runs' ({error!r}).") from error
  planned = {(run.row.name, run.seed): run.identity for run in runs if run.row is not None}
  for key, identity in identities.items():
    if planned.get(key) != identity:
      what = (
        "with another configuration than this suite gives it"
        if key in planned
        else "which this suite has not"
      )
      raise UsageError(
        f"{path} holds {run_name(*key)}, {what}; use another --workdir, or the suite and overrides "
        "it was started with."
      )
  return found


def collect(run: PlannedRun) -> Record:
  """The record of a finished run, out of its folder."""
  assert run.row is not None, "only rows have records"
  settings = parse_settings(run.config)
  record = read_json(run.workdir / RUN_FILE)
  environment = read_json(run.workdir / ENVIRONMENT_FILE)
  metrics = own = read_metrics(run.workdir)
  seconds = dict(record["phase_seconds"])
  epochs = {name: phase.epochs for name, phase in settings.phases.items()}
  if run.start is not None:
    first = next(iter(settings.phases))
    metrics = [*read_metrics(run.start.workdir), *own]
    seconds[first] = read_json(run.start.workdir / RUN_FILE)["phase_seconds"][first]
  name, last = list(settings.phases.items())[-1]
  first_step = max((r["step"] for r in own if r["phase"] != name), default=0)
  test = [r for r in metrics if r["kind"] == "test" and r["phase"] == name][-1]
  train = [r for r in metrics if r["kind"] == "train" and r["phase"] == name]
  return {
    **_head(run),
    "status": "done",
    "test_accuracy": test["accuracy"],
    "test_loss": test["loss"],
    "num_test_examples": record["num_test_examples"],
    **_last_epoch(train, last, first_step=first_step),
    "validation": _curve(metrics, settings.phases),
    "weight_bits": record["weight_bits"],
    "activation_bits": record["activation_bits"],
    "float_bytes": record["float_bytes"],
    "quantized_bytes": record["quantized_bytes"],
    "rho_steps": None if record["weight_bits"] == FLOAT_BITS else _rho_steps(train, first_step),
    "epochs": epochs,
    "seconds": seconds,
    "environment": environment,
  }


def write_results(
  workdir: Path, *, head: Mapping[str, Any], runs: Sequence[PlannedRun], found: Mapping[Any, Record]
) -> list[Record]:
  """Writes results.json, a record for every run of the suite, and returns the records."""
  records = []
  for run in runs:
    if run.row is not None:
      record = {**_head(run), **found.get((run.row.name, run.seed), {"status": "not run"})}
      # records of older versions have another command for the same configuration, and no start
      records.append({**record, "command": run.command, "starts_from": _start_name(run)})
  write_json(workdir / RESULTS_FILE, {**head, "runs": records})
  return records


def failed(run: PlannedRun) -> Record:
  """The record of a run that could not go on."""
  return {**_head(run), "status": "failed"}


def missing(runs: Sequence[PlannedRun], found: Mapping[Any, Record]) -> list[PlannedRun]:
  """The runs to train: rows without a record, and what those start from, unless it is finished."""
  rows = [run for run in runs if run.row is not None and (run.row.name, run.seed) not in found]
  starts = [run.start for run in rows if run.start is not None and not is_finished(run.start)]
  return [run for run in runs if run in rows or run in starts]


def _head(run: PlannedRun) -> Record:
  assert run.row is not None, "only rows have records"
  return {
    "row": run.row.name,
    "seed": run.seed,
    "identity": run.identity,
    "command": run.command,
    "starts_from": _start_name(run),
  }


def _start_name(run: PlannedRun) -> str | None:
  return None if run.start is None else run.start.name


def _last_epoch(
  train: Sequence[Mapping[str, Any]], phase: PhaseSettings, *, first_step: int
) -> Record:
  """Mean training loss and accuracy over the phase's last epoch, as its steps saw it."""
  end = train[-1]["step"]
  begin = end - (end - first_step) / max(phase.epochs, 1.0)
  last = [r for r in train if r["step"] > begin]
  return {f"train_{key}": statistics.fmean(r[key] for r in last) for key in ("loss", "accuracy")}


def _rho_steps(train: Sequence[Mapping[str, Any]], first_step: int) -> float:
  """Sum of rho over the last phase's steps."""
  steps = itertools.pairwise([first_step, *(r["step"] for r in train)])
  return sum((b - a) * r["rho"] for (a, b), r in zip(steps, train, strict=True))


def _curve(
  metrics: Sequence[Mapping[str, Any]], phases: Mapping[str, PhaseSettings]
) -> list[Record]:
  """Validation accuracy against epochs, counted through all phases."""
  curve, before = [], 0.0
  for name, phase in phases.items():
    curve += [
      {"phase": name, "epoch": before + r["epoch"], "accuracy": r["accuracy"]}
      for r in metrics
      if r["kind"] == "validation" and r["phase"] == name
    ]
    before += phase.epochs
  return curve
