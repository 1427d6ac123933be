"""The commands, end to end on a run of seconds."""

import json
import re

import pytest
from command_helpers import TINY, run_command

from bcgd_jax.report import read_metrics


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
  """A finished tiny run: (workdir, what main printed)."""
  workdir = tmp_path_factory.mktemp("run") / "tiny"
  flags = [f"--workdir={workdir}", "--profile_steps=2,3"]
  done = run_command("main", *TINY, *flags, data_dir=data_dir)
  assert done.returncode == 0, done.stderr
  return workdir, done


def find_test(workdir, phase):
  """What a run's metrics say of a phase's test accuracy."""
  records = read_metrics(workdir)
  return next(r for r in records if r["kind"] == "test" and r["phase"] == phase)


def test_main_prints_progress_a_table_and_the_report(run):
  workdir, done = run
  assert re.search(r"^float +step 4/4 .* examples/s", done.stdout, re.MULTILINE)
  assert re.search(r"^quantized +step 4/4 ", done.stdout, re.MULTILINE)
  assert re.search(r"^Test accuracy +\d+\.\d+ ?% +\d+\.\d+ ?%", done.stdout, re.MULTILINE)
  assert done.stdout.rstrip().endswith(f"Report: {workdir}/report/report.html")
  assert done.stderr == ""


def test_summary_agrees_with_the_metrics_and_the_arithmetic_of_bytes(run):
  workdir, _ = run
  summary = json.loads((workdir / "report" / "summary.json").read_text())
  tests = {r["phase"]: r["accuracy"] for r in read_metrics(workdir) if r["kind"] == "test"}
  assert summary["float_test_accuracy"] == tests["float"]
  assert summary["quantized_test_accuracy"] == tests["quantized"]
  assert (summary["weight_bits"], summary["activation_bits"]) == (1, 4)
  # ResNet-8 on one channel and 10 classes. Kernels: conv1 9*1*16; stages 2*9*16*16, 9*16*32 +
  # 9*32*32, 9*32*64 + 9*64*64; fc 64*10. Float: batch norm scale and bias 2*(3*16 + 2*32 + 2*64),
  # the classifier's 10 biases, 7 alphas.
  kernels = [144, 2304, 2304, 4608, 9216, 18432, 36864, 640]
  floats = 2 * (3 * 16 + 2 * 32 + 2 * 64) + 10 + 7
  assert summary["num_parameters"] == sum(kernels) + floats
  assert summary["float_bytes"] == 4 * (sum(kernels) + floats)
  assert summary["quantized_bytes"] == sum(n // 8 + 4 for n in kernels) + 4 * floats
  assert set(summary["phase_seconds"]) == {"float", "quantized"}


def test_report_and_events_are_there(run):
  workdir, _ = run
  for name in ("curves.png", "predictions.png", "weights.png", "alpha.png", "report.html"):
    assert (workdir / "report" / name).stat().st_size > 1000
  assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
  assert len(list((workdir / "profile").rglob("*.trace.json.gz"))) == 1


def test_report_draws_a_run_that_goes_on_and_changes_nothing_else(run, data_dir, tmp_path):
  workdir, _ = run
  copy = tmp_path / "copy"
  copy.mkdir()
  (copy / "config.json").write_bytes((workdir / "config.json").read_bytes())
  lines = (workdir / "metrics.jsonl").read_bytes()
  cut = lines[: lines.index(b'"kind": "codes"')]  # in the midst of the quantized phase, and a line
  (copy / "metrics.jsonl").write_bytes(cut)
  done = run_command("report", f"--workdir={copy}", data_dir=data_dir)
  assert done.returncode == 0, done.stderr
  assert "Recorded up to step 6, in phase quantized." in done.stdout
  assert re.search(r"^float +4 +\d", done.stdout, re.MULTILINE)
  assert done.stdout.endswith(f"Report: {copy}/report/report.html\n")
  assert sorted(path.name for path in copy.iterdir()) == ["config.json", "metrics.jsonl", "report"]
  assert (copy / "metrics.jsonl").read_bytes() == cut


def test_finished_run_says_so_and_changes_nothing(run, data_dir):
  workdir, _ = run
  before = (workdir / "metrics.jsonl").read_bytes()
  done = run_command("main", *TINY, f"--workdir={workdir}", data_dir=data_dir)
  assert done.returncode == 0, done.stderr
  assert "is finished" in done.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("phase", ["float", "quantized"])
def test_evaluate_gives_the_accuracy_of_training(run, data_dir, tmp_path, phase):
  workdir, _ = run
  path = tmp_path / "score.json"
  done = run_command(
    "evaluate", f"--workdir={workdir}", f"--phase={phase}", f"--json={path}", data_dir=data_dir
  )
  assert done.returncode == 0, done.stderr
  score = json.loads(path.read_text())
  assert score["accuracy"] == find_test(workdir, phase)["accuracy"]
  assert score["num_examples"] == 360
  assert score["split"] == "test"


def test_phase_can_start_from_another_run(run, data_dir, tmp_path):
  workdir, _ = run
  other = tmp_path / "other"
  done = run_command(
    "main", *TINY, f"--workdir={other}", f"--config.float.start_from={workdir}", data_dir=data_dir
  )
  assert done.returncode == 0, done.stderr
  records = read_metrics(other)
  assert not [r for r in records if r["phase"] == "float" and r["kind"] == "train"]
  assert find_test(other, "float")["accuracy"] == find_test(workdir, "float")["accuracy"]


def test_summarize_prints_a_row_a_layer_without_a_run(run, data_dir):
  workdir, _ = run
  done = run_command("summarize", TINY[0], data_dir=data_dir / "never_made")
  assert done.returncode == 0, done.stderr
  assert re.search(r"^conv1/kernel|^conv1 .*3x3x1x16 +1 ", done.stdout, re.MULTILINE)
  assert re.search(r"^Total ", done.stdout, re.MULTILINE)
  assert not (data_dir / "never_made").exists()
  again = run_command("summarize", f"--workdir={workdir}", data_dir=data_dir)
  assert again.stdout == done.stdout
