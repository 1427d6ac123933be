"""What stands at the top of a report: of a finished run its outcome, of another how far it is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bcgd_jax.report import formats
from bcgd_jax.report.lines import Records
from bcgd_jax.report.tables import Column, Table, is_quantized, summary_table


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
  """The top of the page.

  Attributes:
    title: of the page, a line.
    lead: a sentence or two below it.
    cards: (name, value, note) of the numbers to see first; the note may be "".
    heading: of the first section.
    table: what it shows.
    caption: of the table.
  """

  title: str
  lead: str
  cards: tuple[tuple[str, str, str], ...]
  heading: str
  table: Table
  caption: str


def finished_overview(summary: Mapping[str, Any]) -> Overview:
  """The outcome of a finished run.

  Args:
    summary: as summary.json.
  """
  return Overview(
    title=f"{summary['model']} on {summary['dataset']}",
    lead=_finished_lead(summary),
    cards=_finished_cards(summary),
    heading="Result",
    table=summary_table(summary),
    caption=_result_caption(summary),
  )


def unfinished_overview(config: Mapping[str, Any], records: Records) -> Overview:
  """How far a run is that has not ended: it runs, or was stopped.

  Args:
    config: the run's configuration.
    records: the metrics so far, at least one.
  """
  last = records[-1]
  step, phase = formats.format_count(last["step"]), last["phase"]
  title = f"{config['model']['name']} on {config['data']['dataset']}"
  return Overview(
    title=title,
    lead=(
      f"Not finished: the run is going on or was stopped. Recorded up to step {step}, in phase"
      f" {phase}."
    ),
    cards=_progress_cards(records),
    heading="So far",
    table=_progress_table(records, title=title),
    caption="The last report of each phase so far; training values are means since the one before.",
  )


def _finished_lead(summary: Mapping[str, Any]) -> str:
  parameters = f"{formats.format_count(summary['num_parameters'])} parameters"
  if not is_quantized(summary):
    return f"Trained in float: 32-bit weights and activations, {parameters}."
  bits = [
    f"{kind} from 32 to {formats.format_bits(value)}"
    for kind, value in (
      ("weights", summary["weight_bits"]),
      ("activations", summary["activation_bits"]),
    )
    if value is not None and value < formats.FLOAT_BITS
  ]
  return f"Quantized by blended coarse gradient descent: {', '.join(bits)}; {parameters}."


def _finished_cards(summary: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
  cards = []
  float_accuracy, accuracy = summary["float_test_accuracy"], summary["quantized_test_accuracy"]
  if float_accuracy is not None:
    cards.append(("Float test accuracy", formats.format_percent(float_accuracy), ""))
  if is_quantized(summary):
    change = ""
    if accuracy is not None and float_accuracy is not None:
      change = f"{100 * (accuracy - float_accuracy):+.2f} points against float"
    cards.append(("Quantized test accuracy", formats.format_percent(accuracy), change))
    float_bytes, num_bytes = summary["float_bytes"], summary["quantized_bytes"]
    sizes = f"{formats.format_bytes(float_bytes)} to {formats.format_bytes(num_bytes)}"
    cards.append(("Times smaller", formats.format_ratio(float_bytes, num_bytes), sizes))
  else:
    cards.append(("Size of parameters", formats.format_bytes(summary["float_bytes"]), ""))
  seconds = sum(summary["phase_seconds"].values())
  cards.append(("Time of all phases", formats.format_duration(seconds), ""))
  return tuple(cards)


def _result_caption(summary: Mapping[str, Any]) -> str:
  examples = summary["num_test_examples"]
  text = f"Accuracy on {formats.format_count(examples)} test examples"
  if examples:
    text += f" (one is {100 / examples:.2g} points)"
  if not is_quantized(summary):
    return f"{text}."
  return (
    f"{text}. Sizes count all parameters, also those that stay float; single layers may have other"
    " bit widths than the two given here: see Layers."
  )


def _progress_cards(records: Records) -> tuple[tuple[str, str, str], ...]:
  latest = {record["kind"]: record for record in records}
  cards = [("Step", formats.format_count(records[-1]["step"]), f"phase {records[-1]['phase']}")]
  if "train" in latest:
    train = latest["train"]
    accuracy = f"accuracy {formats.format_percent(train['accuracy'])}"
    cards.append(("Training loss", f"{train['loss']:.4g}", accuracy))
  if "validation" in latest:
    found = latest["validation"]
    at = f"at step {formats.format_count(found['step'])}"
    cards.append(("Validation accuracy", formats.format_percent(found["accuracy"]), at))
  timing = latest.get("train", {}).get("timing", {})
  if "step_seconds" in timing:
    share = timing.get("input_wait_share")
    wait = "" if share is None else f"{formats.format_percent(share)} of it waiting for input"
    cards.append(("Time of a step", f"{timing['step_seconds']:.3g} s", wait))
  return tuple(cards)


def _progress_table(records: Records, *, title: str) -> Table:
  # kind by kind, so that each cell shows the last value that there is
  latest: dict[str, dict[str, Mapping[str, Any]]] = {}
  for record in records:
    latest.setdefault(record["phase"], {})[record["kind"]] = record
  steps = {record["phase"]: record["step"] for record in records}
  return Table(
    title=title,
    columns=(
      Column("Phase"),
      Column("Step", numeric=True),
      Column("Training loss", numeric=True),
      Column("Training accuracy", numeric=True),
      Column("Validation accuracy", numeric=True),
      Column("Test accuracy", numeric=True),
    ),
    rows=tuple(
      (
        phase,
        formats.format_count(steps[phase]),
        f"{kinds['train']['loss']:.4g}" if "train" in kinds else "-",
        *(
          formats.format_percent(kinds[kind]["accuracy"]) if kind in kinds else "-"
          for kind in ("train", "validation", "test")
        ),
      )
      for phase, kinds in latest.items()
    ),
  )
