"""Two real processes over gloo compute what one device computes, each from its half of the data."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def run_workers(folder: Path, *, count: int, devices: int, mode: str, dtype: str, steps: int):
  """Starts `count` processes, waits for all and returns what process 0 wrote."""
  output = folder / f"{count}_{devices}_{mode}_{dtype}.npz"
  environment = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
    "TFDS_DATA_DIR": str(folder / "data"),
  }
  port = free_port()
  workers = [
    subprocess.Popen(
      [
        *(sys.executable, str(HERE / "gloo_worker.py"), str(port), str(index), str(count)),
        *(str(devices), mode, dtype, str(steps), str(output)),
      ],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(count)
  ]
  logs = [worker.communicate(timeout=400)[0] for worker in workers]
  for worker, log in zip(workers, logs, strict=True):
    assert worker.returncode == 0, log
  with np.load(output) as arrays:
    return dict(arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("processes")


@pytest.mark.parametrize(
  ("mode", "dtype", "steps", "margin", "tolerance"),
  [
    ("pmap", "float64", 20, 1e-9, 1e-9),
    ("shard_map", "float32", 3, 2e-6, 1e-6),
  ],
)
def test_two_processes_match_one_device(folder, mode, dtype, steps, margin, tolerance):
  one = run_workers(folder, count=1, devices=1, mode=mode, dtype=dtype, steps=steps)
  two = run_workers(folder, count=2, devices=2, mode=mode, dtype=dtype, steps=steps)
  assert one.keys() == two.keys()
  assert one.pop("margin") > margin  # nearer to a threshold, rounding decides over a code
  compared = [name for name in one if dtype == "float64" or "params" in name]
  assert len(compared) > 9
  for name in compared:
    np.testing.assert_allclose(two[name], one[name], atol=tolerance, rtol=0, err_msg=name)
