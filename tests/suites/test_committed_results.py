"""The tables in docs/results say what the records beside them say."""

from pathlib import Path

import pytest

from bcgd_jax.report import read_json
from bcgd_jax.suites import load_suite
from bcgd_jax.suites.figures import suite_pictures
from bcgd_jax.suites.tables import suite_table

FOLDER = Path("docs/results")
SUITES = sorted(path.parent.name for path in FOLDER.glob("*/results.json"))


@pytest.mark.parametrize("name", SUITES)
def test_table_and_figures_follow_from_the_records(name):
  suite = load_suite(name)
  records = read_json(FOLDER / name / "results.json")["runs"]
  planned = {(row.name, seed) for row in suite.rows for seed in row.seeds}
  assert {(r["row"], r["seed"]) for r in records} == planned
  page = (FOLDER / name / "results.md").read_text()
  assert suite_table(suite, records).to_markdown() in page
  for picture in suite_pictures(suite, records):
    assert f"![{picture.alt}]({picture.file_name})" in page
    assert (FOLDER / name / picture.file_name).exists()


@pytest.mark.parametrize("name", SUITES)
def test_finished_rows_say_where_they_ran(name):
  for record in read_json(FOLDER / name / "results.json")["runs"]:
    if record["status"] == "done":
      commit = record["environment"]["commit"]
      assert commit
      assert not commit.endswith("dirty")
      assert record["command"].startswith("python -m bcgd_jax.main --config=configs/")
