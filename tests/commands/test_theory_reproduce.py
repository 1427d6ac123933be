"""python -m bcgd_jax.theory.reproduce: bad input, a check that fails, and a whole small run."""

import json
import subprocess
import sys

import jax
import pytest
from command_helpers import ROOT, run_command

PICTURES = {"correlation.png", "descent.png", "instability.png", "multiclass.png", "blending.png"}
FILES = PICTURES | {"theory.json", "theory.md"}

# The command on closed forms alone, one of which is made wrong by a twentieth.
WRONG_FORM = """
import jax
from bcgd_jax.command import run_command
from bcgd_jax.report.plotting import Picture
from bcgd_jax.theory import checks, reproduce, sampling, two_layer

def coarse_grad(*problem, ste, right=two_layer.coarse_grad):
  return right(*problem, ste=ste) * (1.05 if ste == "identity" else 1.0)

two_layer.coarse_grad = coarse_grad
reproduce.run_experiments = lambda num_samples, seed, announce: sampling.compare_closed_forms(
  jax.random.key(seed), num_samples
)
reproduce.make_checks = lambda comparisons: [checks.check_comparison(c) for c in comparisons]
reproduce.draw_pictures = lambda _: [
  Picture(file_name="a.png", png=b"png", title="A title", caption="A caption.", alt="An alt.")
]
run_command(reproduce.main)
"""


def reproduce(tmp_path, *flags):
  return run_command("theory.reproduce", *flags, data_dir=tmp_path / "no_data")


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--samples=9999"], ["--samples", "[10000, 2^31)", "got 9999"]),
    (["--seed=-1"], ["--seed", "[0, 2^31)", "got -1"]),
    (["--output=gs://bucket/theory"], ["--output", "gs://bucket/theory"]),
    (["--output=FILE"], ["--output", "file"]),
    (["--output=FILE/below"], ["--output", "below"]),
  ],
)
def test_bad_input(tmp_path, flags, words):
  file = tmp_path / "file"
  file.write_text("mine")
  default = f"--output={tmp_path / 'out'}"
  done = reproduce(tmp_path, default, *(flag.replace("FILE", str(file)) for flag in flags))
  assert done.returncode == 2, done.stdout + done.stderr
  assert done.stdout == ""  # nothing was measured
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ")
  for word in words:
    assert word in line
  assert [path.name for path in tmp_path.iterdir()] == ["file"]
  assert file.read_text() == "mine"


def test_output_is_required(tmp_path):
  done = reproduce(tmp_path)
  assert done.returncode == 2
  assert done.stderr.strip() == "error: --output must name a folder."


def test_failing_check(tmp_path):
  flags = [f"--output={tmp_path}", "--samples=50000", "--seed=3"]
  done = subprocess.run(
    [sys.executable, "-c", WRONG_FORM, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=500,
  )
  failing = ["coarse gradient (identity), v trainable", "coarse gradient (identity), spurious"]
  assert done.returncode == 1, done.stdout + done.stderr
  assert "Traceback" not in done.stderr
  rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
  assert rows[failing[0]].endswith("FAIL")
  assert rows["coarse gradient (ReLU), v trainable"].endswith("pass")
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: 2 of 14 checks failed: ")
  for name in failing:
    assert name in line
  # what was measured is written all the same
  written = json.loads((tmp_path / "theory.json").read_text())
  failed = [check["name"] for check in written["checks"] if not check["passed"]]
  assert failed[0] == failing[0]
  assert (written["samples"], written["seed"]) == (50000, 3)
  text = (tmp_path / "theory.md").read_text()
  assert "| FAIL |" in text
  assert "## A title\n\n![An alt.](a.png)\n\nA caption.\n" in text
  assert (tmp_path / "a.png").read_bytes() == b"png"


@pytest.mark.long
def test_whole_run(tmp_path):
  out = tmp_path / "new" / "out"
  done = reproduce(tmp_path, f"--output={out}", "--samples=20000")
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stderr == ""
  assert {path.name for path in out.iterdir()} == FILES
  written = json.loads((out / "theory.json").read_text())
  assert len(written["checks"]) == 44
  assert all(check["passed"] for check in written["checks"])
  assert written["jax_version"] == jax.__version__
  assert written["seconds"] > 0
  assert written["device"]
  for check in written["checks"]:
    assert f"\n{check['name']}  " in done.stdout
  text = (out / "theory.md").read_text()
  assert text.count("| pass |") == 44
  for name in PICTURES:
    assert f"]({name})" in text
    assert (out / name).read_bytes().startswith(b"\x89PNG")
