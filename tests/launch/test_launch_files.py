"""What docs/running.md shows, the container's file and the packages it names."""

import json
import re
import runpy
import subprocess

import pytest
from launch_helpers import ROOT, World, make_fake_environment

RUNNING = (ROOT / "docs" / "running.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", RUNNING, re.DOTALL)
# lines that end with \ go on
COMMANDS = [
  command.strip()
  for block in BLOCKS
  for command in re.findall(r"(?:.*\\\n)*.*\n", block)
  if command.strip()
]
VARIABLES = "project=my-project; zone=us-west4-a; bucket=gs://my-project-bcgd\n"


def commands(beginning: str) -> list[str]:
  found = [command for command in COMMANDS if command.startswith(beginning)]
  assert found
  return found


@pytest.mark.parametrize("command", commands("bash launch/"))
def test_commands_that_launch_pass_a_dry_run(tmp_path, command):
  world = World(tmp_path)
  world.commit()
  words = command.split(" ", 2)
  dry = f"{words[0]} {words[1]} --dry_run {words[2]}"
  done = world.run("-c", VARIABLES + dry)
  assert done.returncode == 0, done.stderr
  assert "+ " in done.stdout or "--install_only" in command
  assert world.calls("gcloud") == []


def test_the_command_that_submits(tmp_path):
  world = World(tmp_path)
  make_fake_environment(world, ".venv-cuda13")
  world.write("script", "status=0", "status=0")
  (command,) = commands("sbatch")
  options, script, flags = command.partition("launch/slurm.sbatch")
  assert "--nodes=2" in options
  done = world.run(
    "-c",
    f"bash {script} {flags}",
    SLURM_SUBMIT_DIR=str(world.root),
    SLURM_JOB_ID="7",
    SLURM_NTASKS="2",
    SLURM_NNODES="2",
    SLURM_GPUS_ON_NODE="8",
  )
  assert done.returncode == 0, done.stderr
  assert world.trainings()[0][-1] == "--config.data.num_workers=60"


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_bash(block):
  subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_what_is_named_exists():
  modules = re.findall(r"python -m (bcgd_jax(?:\.\w+)+)", RUNNING)
  files = re.findall(r"(?:configs|launch)/\w+\.\w+", RUNNING)
  paths = [f"{module.replace('.', '/')}.py" for module in modules] + files
  assert len(set(paths)) >= 8
  assert [path for path in paths if not (ROOT / path).exists()] == []


def test_linked_headings_exist():
  headings = re.findall(r"^#+ (.+)$", RUNNING, re.MULTILINE)
  anchors = {heading.lower().replace(",", "").replace(" ", "-") for heading in headings}
  assert set(re.findall(r"\]\(#([^)]+)\)", RUNNING)) <= anchors


def instructions() -> list[tuple[str, str]]:
  lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
  return [tuple(line.split(" ", 1)) for line in lines if line.strip() and not line.startswith("#")]


def test_the_container_runs_the_command_itself():
  # in shell form, a shell would get SIGTERM
  found = dict(instructions())
  assert json.loads(found["ENTRYPOINT"])[:3] == ["python", "-m", "bcgd_jax.main"]
  assert found["STOPSIGNAL"] == "SIGTERM"
  known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "STOPSIGNAL", "ENTRYPOINT"}
  assert set(found) == known


def test_the_container_copies_what_is_there_and_not_ignored():
  kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
  copied = {name for key, value in instructions() if key == "COPY" for name in value.split()[:-1]}
  assert copied == kept
  assert all((ROOT / name).exists() for name in copied)


def test_accelerators_ask_for_the_same_jax_as_the_package(monkeypatch):
  given = {}
  monkeypatch.setattr("setuptools.setup", lambda **keywords: given.update(keywords))
  monkeypatch.chdir(ROOT)
  runpy.run_path("setup.py")
  (jax,) = [package for package in given["install_requires"] if package.startswith("jax")]
  for name in ("tpu", "cuda12", "cuda13"):
    assert given["extras_require"][name] == [jax.replace("jax", f"jax[{name}]")]
