"""Tables, figures and records of suites, against numbers worked out by hand."""

import pytest
from suite_helpers import CONFIG, record

from bcgd_jax.errors import UsageError
from bcgd_jax.report import write_json
from bcgd_jax.suites import Row, Suite
from bcgd_jax.suites.figures import suite_pictures
from bcgd_jax.suites.plan import plan_runs
from bcgd_jax.suites.publish import publish
from bcgd_jax.suites.results import missing, read_results, write_results
from bcgd_jax.suites.tables import mean_and_deviation, suite_table

SUITE = Suite(
  name="s",
  title="A suite",
  baseline="float",
  notes=("A note.",),
  rows=(
    Row(name="float", config=CONFIG, overrides={"phases": ("float",)}, seeds=(0, 1)),
    Row(name="BCGD", config=CONFIG, seeds=(0, 1), blending="1W4A", paper=0.6436),
    Row(name="rho = 0", config=CONFIG, overrides={"quantized.rho": 0.0}, blending="1W4A"),
    Row(name="failed", config=CONFIG, overrides={"quantized.rho": 1.0}),
    Row(name="waits", config=CONFIG, overrides={"quantized.rho": 0.5}),
  ),
)
FLOAT = {"weight_bits": 32, "activation_bits": 32, "rho_steps": None, "quantized_bytes": 4096}
RECORDS = [
  record("float", 0, 0.90, **FLOAT, epochs={"float": 1.0}),
  record("float", 1, 0.92, **FLOAT, epochs={"float": 1.0}),
  record("BCGD", 0, 0.89),
  record("BCGD", 1, 0.93, train_loss=0.35),
  record("rho = 0", 0, 0.87, rho_steps=0.0),
  {"row": "failed", "seed": 0, "status": "failed"},
  {"row": "waits", "seed": 0, "status": "not run"},
]


def cells(name):
  table = suite_table(SUITE, RECORDS)
  (row,) = (row for row in table.rows if row[0] == name)
  return dict(zip((column.header for column in table.columns), row, strict=True))


def test_means_deviations_and_paired_differences():
  # BCGD: 89 and 93, so mean 91, sample deviation 4 / sqrt(2); against float -1 and +1
  found = cells("BCGD")
  assert found["Test, %"] == "91.00 ± 2.83"
  assert found["Validation, %"] == "91.00 ± 2.83"
  assert found["Against float"] == "+0.00 ± 1.41"
  assert found["Train loss"] == "0.3000 ± 0.0707"
  assert found["Seeds"] == "2"
  assert found["W / A bits"] == "1 / 4"
  assert found["Epochs"] == "1 + 1"
  assert found["rho x steps"] == "0.78"
  assert found["Size"] == "128 B"
  assert found["Paper, %"] == "64.36"


def test_only_the_baseline_itself_has_no_difference():
  tied = [record("float", 0, 0.9, **FLOAT), record("rho = 0", 0, 0.9)]
  row = next(row for row in suite_table(SUITE, tied).rows if row[0] == "rho = 0")
  assert "+0.00" in row


def test_one_seed_has_no_deviation_and_the_baseline_no_difference():
  assert cells("rho = 0")["Test, %"] == "87.00"
  assert cells("rho = 0")["Against float"] == "-3.00"
  assert cells("float")["Against float"] == "-"
  assert cells("float")["rho x steps"] == "-"
  assert cells("float")["Paper, %"] == "-"


def test_what_has_not_finished_says_so():
  assert cells("failed")["Test, %"] == "failed"
  assert cells("waits")["Test, %"] == "not run"


def test_numbers_keep_their_sign():
  assert mean_and_deviation([1.0], 2, signed=True) == "+1.00"
  assert mean_and_deviation([-1.0, -2.0], 1, signed=True) == "-1.5 ± 0.7"


def test_figures_say_what_they_show_and_are_repeatable():
  pictures = {picture.file_name: picture for picture in suite_pictures(SUITE, RECORDS)}
  assert set(pictures) == {"curves.png", "blending.png", "bars.png"}
  assert "BCGD 9.00 %" in pictures["bars.png"].alt
  assert "1W4A at 0: 87.00 %; 1W4A at 0.78: 91.00 %" in pictures["blending.png"].alt
  assert "BCGD ends at 91.00 %" in pictures["curves.png"].alt
  again = {picture.file_name: picture for picture in suite_pictures(SUITE, RECORDS)}
  assert all(again[name].png == picture.png for name, picture in pictures.items())
  moved = [{**r, "test_accuracy": 0.5} if r["row"] == "BCGD" else r for r in RECORDS]
  other = {picture.file_name: picture for picture in suite_pictures(SUITE, moved)}
  assert other["bars.png"].png != pictures["bars.png"].png


def test_a_curve_ends_with_what_the_run_ends_with():
  # scored at the last step, and again after batch norm was estimated anew
  points = [{"phase": "quantized", "epoch": 2.0, "accuracy": a} for a in (0.5, 0.9)]
  (curves, _) = suite_pictures(SUITE, [record("BCGD", 0, 0.9, validation=points)])
  assert curves.alt.endswith("BCGD ends at 90.00 %.")


def test_no_figure_without_a_finished_run():
  assert suite_pictures(SUITE, RECORDS[-2:]) == []


def test_the_page_holds_table_notes_command_and_pictures(tmp_path):
  publish(SUITE, tmp_path, RECORDS, command="python -m x")
  page = (tmp_path / "results.md").read_text()
  assert page.startswith("# A suite\n")
  assert "| BCGD | 1 / 4 | 0.78 | 1 + 1 |" in page
  assert "- A note." in page
  assert "- 5 runs: commit abc, 1 x CPU X, 1 CPU cores a run, Python 3.11.7, jax 0.10.2" in page
  assert "- Command: `python -m x`" in page
  for name in ("bars.png", "curves.png", "blending.png"):
    assert f"]({name})" in page
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_says_which_rows_start_from_another_training(tmp_path):
  def started(row, accuracies, **fields):
    points = [{"phase": "float", "epoch": 1.0 + i, "accuracy": a} for i, a in enumerate(accuracies)]
    return record(row, 0, 0.9, validation=points, **fields)

  first = started("float", (0.7, 0.8), epochs={"float": 2.0}, **FLOAT)
  same = started("BCGD", (0.7, 0.8), starts_from="float, seed 0")
  other = started("rho = 0", (0.7, 0.81), starts_from="float, seed 0")
  publish(SUITE, tmp_path, [first, same], command="x")
  assert "trained 2 times" not in (tmp_path / "results.md").read_text()
  publish(SUITE, tmp_path, [first, other, same], command="x")
  assert (
    "- The phase float, seed 0 that rows start from was trained 2 times. Not from the training "
    'that "float" and most others start from: "rho = 0".\n'
  ) in (tmp_path / "results.md").read_text()


def test_the_page_says_where_a_run_was_resumed(tmp_path):
  here = RECORDS[0]["environment"]
  moved = record("BCGD", 0, 0.9, environment={**here, "resumed_in": [{**here, "device": "GPU Y"}]})
  publish(SUITE, tmp_path, [moved], command="x")
  page = (tmp_path / "results.md").read_text()
  assert "- 1 run: commit abc, 1 x CPU X, 1 CPU cores a run, Python 3.11.7, jax 0.10.2" in page
  assert "; resumed: commit abc, 1 x GPU Y, 1 CPU cores a run," in page


def planned(tmp_path):
  return plan_runs(SUITE, tmp_path, overrides={})


def test_finished_rows_are_read_back_and_not_missing(tmp_path):
  runs = planned(tmp_path)
  first = next(run for run in runs if run.row and run.row.name == "BCGD")
  found = {("BCGD", 0): record("BCGD", 0, 0.9, identity=first.identity)}
  records = write_results(tmp_path, head={"suite": "s"}, runs=runs, found=found)
  assert [r["status"] for r in records].count("done") == 1
  assert len(records) == 7
  assert read_results(tmp_path, "s", runs) == {
    key: {**value, "starts_from": "float, seed 0", "command": first.command}
    for key, value in found.items()
  }
  todo = missing(runs, found)
  assert first not in todo
  assert len(todo) == 6


def test_only_a_start_that_something_waits_for_is_missing(tmp_path):
  row = Row(name="a", config=CONFIG)
  suite = Suite(name="s", title="S", baseline="a", rows=(row,))
  start, run = plan_runs(suite, tmp_path, overrides={})
  assert missing([start, run], {}) == [start, run]
  assert missing([start, run], {("a", 0): record("a", 0, 0.9)}) == []
  start.workdir.mkdir(parents=True)
  write_json(start.workdir / "run.json", {})
  assert missing([start, run], {}) == [run]


def test_records_of_another_configuration_are_refused(tmp_path):
  runs = planned(tmp_path)
  found = {("BCGD", 0): record("BCGD", 0, 0.9, identity="other")}
  write_results(tmp_path, head={"suite": "s"}, runs=runs, found=found)
  with pytest.raises(UsageError, match="holds BCGD, seed 0, with another configuration"):
    read_results(tmp_path, "s", runs)


@pytest.mark.parametrize(
  ("stored", "words"),
  [
    ({"suite": "other", "runs": []}, "must be of the suite 's', got 'other'"),
    ({}, "must be of the suite 's', got None"),
    ({"suite": "s"}, r"must hold a list of records under 'runs' \(KeyError\('runs'\)\)"),
    ({"suite": "s", "runs": 3}, "must hold a list of records under 'runs'"),
    ({"suite": "s", "runs": [{}]}, "must hold a list of records under 'runs'"),
    ({"suite": "s", "runs": [record("gone", 0, 0.9)]}, "holds gone, seed 0, which this suite has"),
    ({"suite": "s", "runs": [record("rho = 0", 5, 0.9)]}, "holds rho = 0, seed 5, which this"),
  ],
)
def test_a_file_that_would_be_lost_is_refused(tmp_path, stored, words):
  write_json(tmp_path / "results.json", stored)
  before = (tmp_path / "results.json").read_bytes()
  with pytest.raises(UsageError, match=words):
    read_results(tmp_path, "s", planned(tmp_path))
  assert (tmp_path / "results.json").read_bytes() == before


def test_failed_runs_are_tried_again(tmp_path):
  runs = planned(tmp_path)
  write_results(
    tmp_path,
    head={"suite": "s"},
    runs=runs,
    found={("failed", 0): {"row": "failed", "seed": 0, "status": "failed"}},
  )
  assert read_results(tmp_path, "s", runs) == {}
