"""Runs the launch scripts from a small checkout, with stub commands first on the PATH."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from stub_commands import make_command

ROOT = Path(__file__).parent.parent.parent
NAMES = ("gcloud", "uv", "gcsfuse", "mountpoint", "srun", "scontrol", "nvidia-smi")


class World:
  """A checkout with the launch scripts and the folder in which the stubs keep what they pretend."""

  def __init__(self, folder: Path) -> None:
    self.root, self.stub, bins = folder / "check out", folder / "stub", folder / "bin"
    for path in (self.root, self.stub, bins):
      path.mkdir()
    shutil.copytree(ROOT / "launch", self.root / "launch")
    shutil.copy(ROOT / "setup.py", self.root)
    for name in NAMES:
      make_command(bins / name, name)
    self.environment = {
      **os.environ,
      "PATH": f"{bins}:{os.environ['PATH']}",
      "STUB": str(self.stub),
      "RESTART_SECONDS": "0",
      "SAVE_SECONDS": "60",
      "STOP_SECONDS": "3",
    }

  def commit(self) -> None:
    """Makes the checkout a repository: tpu.sh copies what is committed."""
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "m")):
      subprocess.run(["git", *words], cwd=self.root, check=True)

  def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
      ["bash", *command],
      cwd=self.root,
      env={**self.environment, **environment},
      capture_output=True,
      text=True,
      check=False,
      timeout=300,
    )

  def write(self, name: str, *lines: str) -> None:
    """What the stubs read: a script of trainings, refusals, ..."""
    (self.stub / name).write_text("".join(f"{line}\n" for line in lines))

  def calls(self, *beginning: str) -> list[list[str]]:
    """The recorded calls that begin with these words."""
    path = self.stub / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [call for call in found if tuple(call[: len(beginning)]) == beginning]

  def trainings(self) -> list[list[str]]:
    return self.calls("python", "-u", "-m", "bcgd_jax.main")


def make_fake_environment(world: World, name: str) -> None:
  """An environment that the scripts take for installed, with a Python that trains by script."""
  make_command(world.root / name / "bin" / "python", "python")


def flags_of(call: Sequence[str]) -> dict[str, str]:
  pairs = (word[2:].partition("=") for word in call if word.startswith("--"))
  return {key: value for key, _, value in pairs}
