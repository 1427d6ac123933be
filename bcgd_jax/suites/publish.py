"""What a suite leaves for people: results.md and the figures, beside results.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bcgd_jax.report.files import write_atomic
from bcgd_jax.suites.figures import suite_pictures
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
  lines += [f"- {note}" for note in (*suite.notes, *_environment_notes(records))]
  lines += [f"- Command: `{command}`", ""]
  for picture in pictures:
    lines += [f"## {picture.title}", "", f"![{picture.alt}]({picture.file_name})", ""]
    lines += [picture.caption, ""]
  write_atomic(workdir / TABLE_FILE, "\n".join(lines).encode())


def _environment_notes(records: Sequence[Record]) -> list[str]:
  """One line for each different place and commit that runs come from, and their time in all."""
  done = [r for r in records if r["status"] == "done"]
  places: dict[str, int] = {}
  for record in done:
    e = record["environment"]
    text = (
      f"commit {e['commit'] or 'unknown'}, {e['num_devices']} x {e['device']}, "
      f"{e['cpu_cores']} CPU cores a run, Python {e['python']}, jax {e['jax']}, "
      f"flax {e['flax']}, optax {e['optax']}"
    )
    places[text] = places.get(text, 0) + 1
  return [f"{count} run{'s' if count > 1 else ''}: {text}" for text, count in places.items()]
