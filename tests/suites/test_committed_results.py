"""The tables in docs/results, and those in the README, say what the records say."""

import re
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


# a table of the README that is part of a suite's, without some of its columns and rows
QUOTED = re.compile(r"<!-- from docs/results/(\w+)/results\.md -->\n+((?:\|.*\n)+)")


def test_readme_quotes_the_tables_rightly():
  quoted = QUOTED.findall(Path("README.md").read_text())
  assert [name for name, _ in quoted] == ["fashion_mnist", "fashion_mnist_long"]
  for name, text in quoted:
    records = read_json(FOLDER / name / "results.json")["runs"]
    table = suite_table(load_suite(name), records)
    headers = [column.header for column in table.columns]
    whole = {row[0]: dict(zip(headers, row, strict=True)) for row in table.rows}
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    for row in lines[2:]:
      assert dict(zip(lines[0], row, strict=True)).items() <= whole[row[0]].items()
