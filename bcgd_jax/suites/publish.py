"""What a suite leaves for people: results.md and the figures, beside results.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bcgd_jax.report.files import write_atomic
from bcgd_jax.suites.figures import suite_pictures
from bcgd_jax.suites.plan import run_name
from bcgd_jax.suites.spec import Suite
from bcgd_jax.suites.tables import suite_table

Record = Mapping[str, Any]
TABLE_FILE = "results.md"


def publish(suite: Suite, workdir: Path, records: Sequence[Record], *, command: str) -> None:
  """Writes results.md and the figures anew."""
  pictures = suite_pictures(suite, records)
  for picture in pictures:
    write_atomic(workdir / picture.file_name, picture.png)
  lines = [f"# {suite.title}", "", suite_table(suite, records).to_markdown(), ""]
  done = [r for r in records if r["status"] == "done"]
  lines += [f"- {note}" for note in (*suite.notes, *_start_notes(done), *_environment_notes(done))]
  lines += [f"- Command: `{command}`", ""]
  for picture in pictures:
    lines += [f"## {picture.title}", "", f"![{picture.alt}]({picture.file_name})", ""]
    lines += [picture.caption, ""]
  write_atomic(workdir / TABLE_FILE, "\n".join(lines).encode())


def _start_notes(done: Sequence[Record]) -> list[str]:
  """A line for each shared first phase that rows start from different trainings of.

  A first phase is trained a second time when its folder is gone, and gives other weights on another
  machine. Its validation curve, which every record has, tells the trainings apart.
  """
  trainings: dict[str, dict[tuple[float, ...], list[str]]] = {}
  for record in done:
    start = record["starts_from"] or run_name(record["row"], record["seed"])
    phase = next(iter(record["epochs"]))
    curve = tuple(p["accuracy"] for p in record["validation"] if p["phase"] == phase)
    trainings.setdefault(start, {}).setdefault(curve, []).append(record["row"])
  notes = []
  for start, by_curve in trainings.items():
    *others, most = sorted(by_curve.values(), key=len)
    if others:
      rows = "; ".join(", ".join(f'"{row}"' for row in group) for group in others)
      notes.append(
        f"The phase {start} that rows start from was trained {len(by_curve)} times. Not from the "
        f'training that "{most[0]}" and most others start from: {rows}.'
      )
  return notes


def _environment_notes(done: Sequence[Record]) -> list[str]:
  """One line for each different place and commit that runs come from."""
  places: dict[str, int] = {}
  for record in done:
    environment = record["environment"]
    text = _place(environment)
    for resumed in environment.get("resumed_in", []):
      text += f"; resumed: {_place(resumed)}"
    places[text] = places.get(text, 0) + 1
  return [f"{count} run{'s' if count > 1 else ''}: {text}" for text, count in places.items()]


def _place(environment: Mapping[str, Any]) -> str:
  e = environment
  return (
    f"commit {e['commit'] or 'unknown'}, {e['num_devices']} x {e['device']}, "
    f"{e['cpu_cores']} CPU cores a run, Python {e['python']}, jax {e['jax']}, "
    f"flax {e['flax']}, optax {e['optax']}"
  )
