"""Which runs a suite consists of, what they share, and the commands that stand for them."""

import json
import shlex
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from suite_helpers import CONFIG, TINY

from bcgd_jax.errors import UsageError
from bcgd_jax.suites import Row, Suite, load_suite
from bcgd_jax.suites.plan import plan_runs, resolve, slug
from bcgd_jax.training.settings import parse_settings, to_json

SUITES = sorted(path.stem for path in Path("configs/suites").glob("*.py"))


def suite_of(*rows: Row) -> Suite:
  return Suite(name="s", title="S", baseline=rows[0].name, rows=rows)


def plan(*rows: Row, **overrides: str):
  dotted = {key.replace("__", "."): value for key, value in overrides.items()}
  return plan_runs(suite_of(*rows), Path("w"), overrides=dotted)


def test_rows_that_agree_in_the_float_phase_share_it():
  one = Row(name="1W", config=CONFIG)
  four = Row(name="4W", config=CONFIG, overrides={"quantization.weight_bits": 4})
  float_run, first, second = plan(
    Row(name="float", config=CONFIG, overrides={"phases": ("float",)}), one, four
  )
  assert float_run.start is None
  assert first.start is float_run
  assert second.start is float_run
  assert first.config["float"]["start_from"] == "w/runs/float/seed0"


def test_a_float_row_is_shared_wherever_it_stands_in_the_suite():
  quantized, float_run = plan(
    Row(name="1W", config=CONFIG),
    Row(name="float", config=CONFIG, overrides={"phases": ("float",)}),
  )
  assert quantized.start is float_run


def test_without_a_float_row_the_shared_phase_comes_first_and_is_no_row():
  start, first, second = plan(
    Row(name="a", config=CONFIG), Row(name="b", config=CONFIG, overrides={"quantized.rho": 0.0})
  )
  assert start.row is None
  assert start.config["phases"] == ("float",)
  assert first.start is start
  assert second.start is start


@pytest.mark.parametrize(
  "overrides",
  [
    {"float.epochs": 1.0},
    {"model.name": "resnet14"},
    {"data.train_examples": 100},
    {"data.batch_size": 32},
    {"selection": "best_validation"},
  ],
)
def test_another_float_phase_is_not_shared(overrides):
  runs = plan(Row(name="a", config=CONFIG), Row(name="b", config=CONFIG, overrides=overrides))
  assert [run.row is None for run in runs] == [True, False, True, False]
  assert runs[1].start is not runs[3].start


def test_seeds_do_not_share():
  runs = plan(Row(name="a", config=CONFIG, seeds=(0, 1)))
  assert [(run.name, run.start.seed) for run in runs if run.row] == [
    ("a, seed 0", 0),
    ("a, seed 1", 1),
  ]


def test_from_scratch_and_given_starts_are_left_alone():
  scratch, given = plan(
    Row(name="a", config=CONFIG, overrides={"phases": ("quantized",)}),
    Row(name="b", config=CONFIG, overrides={"float.start_from": "elsewhere"}),
  )
  assert scratch.start is None
  assert given.start is None
  assert given.config["float"]["start_from"] == "elsewhere"


def test_where_a_run_starts_from_is_not_its_identity():
  row = Row(name="a", config=CONFIG)
  here, there = (plan_runs(suite_of(row), Path(w), overrides={})[1] for w in ("here", "there"))
  assert here.config != there.config
  assert here.identity == there.identity


def test_overrides_of_the_command_reach_every_row():
  runs = plan(
    Row(name="a", config=CONFIG),
    Row(name="b", config=CONFIG, overrides={"float.epochs": 5.0}),
    float__epochs="2",
    data__flip="true",
    data__mean="0.25",
    data__manual_dir="x",
  )
  for run in runs:
    assert run.config["float"]["epochs"] == 2.0
    assert run.config["data"]["flip"] is True
    assert run.config["data"]["mean"] == (0.25,)
    assert run.config["data"]["manual_dir"] == "x"


@pytest.mark.parametrize(
  ("row", "words"),
  [
    (Row(name="a", config="configs/nothing.py"), "configs/nothing.py must be a Python file"),
    (Row(name="a", config=CONFIG, overrides={"quantized.roh": 0.0}), r"row 'a', quantized\.roh: "),
    (Row(name="a", config=CONFIG, overrides={"quantized.rho": 2.0}), r"rho must be in \[0, 1\]"),
    (Row(name="a", config=CONFIG, overrides={"quantized.rho": "x"}), r"row 'a', quantized\.rho: "),
  ],
)
def test_bad_rows_are_refused_before_anything_runs(row, words):
  with pytest.raises(UsageError, match=words):
    plan(row)


def test_rows_that_would_share_a_folder_are_refused():
  with pytest.raises(UsageError, match=r"rows '\+ x' and 'X' would share the folder 'x'; rename"):
    plan(Row(name="+ x", config=CONFIG), Row(name="X", config=CONFIG))


def test_the_seed_is_the_rows_own():
  with pytest.raises(UsageError, match="--set must leave seed to the suite's rows, got seed=7"):
    plan(Row(name="a", config=CONFIG), seed="7")


def test_commands_quote_what_the_shell_would_split():
  _, run = plan(Row(name="a", config=CONFIG), data__manual_dir="my data")
  assert "--config.data.manual_dir=my data" in shlex.split(run.command)


def test_bad_suites_are_refused(tmp_path):
  with pytest.raises(UsageError, match="distinct names"):
    suite_of(Row(name="a", config=CONFIG), Row(name="a", config=CONFIG))
  with pytest.raises(UsageError, match=r"seeds of row 'a' must be distinct, got \(0, 0\)"):
    suite_of(Row(name="a", config=CONFIG, seeds=(0, 0)))
  with pytest.raises(UsageError, match="baseline must be the name of a row"):
    Suite(name="s", title="S", baseline="z", rows=(Row(name="a", config=CONFIG),))
  with pytest.raises(UsageError, match=r"got 'nothing'; configs/suites here has \["):
    load_suite("nothing")
  path = tmp_path / "bad.py"
  path.write_text("x = 1")
  with pytest.raises(UsageError, match=r"must define get_suite\(\)"):
    load_suite(str(path))
  path.write_text("def get_suite():\n  return 1")
  with pytest.raises(UsageError, match="must return a Suite, got int"):
    load_suite(str(path))


def test_folders_are_named_after_rows():
  assert slug("1W4A, rho x steps = 0.78") == "1w4a-rho-x-steps-0.78"


def config_of_command(command: str, monkeypatch):
  """What the printed command would train, by the flags of the command itself."""
  _, _, module, *arguments = shlex.split(command)
  assert module == "bcgd_jax.main"
  # ml_collections learns which overrides there are from the process's own arguments
  monkeypatch.setattr("sys.argv", ["main", *arguments])
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
  values(["main", *arguments])
  return holder.value.to_dict()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections' own
@pytest.mark.parametrize("name", SUITES)
def test_committed_suites_resolve_and_their_commands_say_the_same(name, monkeypatch):
  suite = load_suite(name)
  assert suite.name == name
  runs = plan_runs(suite, Path("w"), overrides={})
  folders = [run.workdir for run in runs]
  assert len(set(folders)) == len(folders)
  for run in runs:
    parse_settings(run.config)
    if run.row is not None and run.seed == run.row.seeds[0]:
      alone = json.loads(to_json(config_of_command(run.command, monkeypatch)))
      assert alone == json.loads(to_json(resolve(run.row, run.seed, {}))), run.command


def test_a_tiny_row_resolves_as_its_overrides_say():
  config = resolve(Row(name="a", config=CONFIG, overrides=TINY), 7, {})
  assert config["seed"] == 7
  assert config["data"]["train_examples"] == 64
