"""Starts the training program as one or several processes, and waits for what they write."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from bcgd_jax.report.records import METRICS_FILE, read_metric_lines

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

CONFIG = """
import ml_collections
from tiny_config import tiny_config

def get_config():
  return ml_collections.ConfigDict(tiny_config())
"""


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


class Program:
  """The processes of one start of a run.

  Args:
    shared: a folder for prepared data and compiled programs.
    workdir: of the run.
    count: processes; devices: of each.
    hang_at: see program_worker.py.
    config: a configuration file; the tiny run's by default.
    flags: further flags.
    last_flags: further flags of the last process alone.
  """

  def __init__(
    self,
    shared: Path,
    workdir: Path,
    *flags: str,
    count: int = 1,
    devices: int = 1,
    hang_at: str = "none",
    config: Path | None = None,
    last_flags: tuple[str, ...] = (),
  ) -> None:
    if config is None:
      config = shared / "config.py"
      if not config.exists():
        config.write_text(CONFIG)
    environment = {
      **os.environ,
      "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
      "TFDS_DATA_DIR": str(shared / "data"),
      "JAX_NUM_CPU_DEVICES": str(devices),
      "JAX_COMPILATION_CACHE_DIR": str(shared / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    self.workdir = workdir
    self.logs = [workdir.parent / f"{workdir.name}.{index}.log" for index in range(count)]
    port = free_port()
    self.processes = []
    for index, log in enumerate(self.logs):
      command = [sys.executable, str(HERE / "program_worker.py"), hang_at]
      command += [f"--config={config}", f"--workdir={workdir}", *flags]
      if count > 1:
        command += [f"--coordinator_address=localhost:{port}"]
        command += [f"--num_processes={count}", f"--process_id={index}"]
        command += [f"--expected_devices={count * devices}", "--expected_platform=cpu"]
      if index == count - 1:
        command += last_flags
      with open(log, "a") as file:
        self.processes.append(
          subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
          )
        )

  def wait_for_step(self, step: int, *, seconds: float = 500) -> None:
    """Until a training step is logged that is not below `step`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      lines = read_metric_lines(self.workdir / METRICS_FILE)
      if any(r["kind"] == "train" and r["step"] >= step for _, r in lines):
        return
      assert all(process.poll() is None for process in self.processes), self.text()
      time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached in {seconds} seconds:\n{self.text()}")

  def wait(self, *, seconds: float = 500) -> list[int]:
    """Exit statuses as a shell counts them: 128 + signal for a process that a signal ended."""
    end = time.monotonic() + seconds
    try:
      codes = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
    except subprocess.TimeoutExpired as error:
      raise AssertionError(f"still running after {seconds} seconds:\n{self.text()}") from error
    finally:
      self.kill()
    return [code if code >= 0 else 128 - code for code in codes]

  def kill(self) -> None:
    """Ends what is left, workers too."""
    for process in self.processes:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

  def text(self) -> str:
    return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)
