"""launch/gpu.sh against a pretended driver and a training that ends as its script says."""

import signal
import subprocess
import time

import pytest
from launch_helpers import World, flags_of, make_fake_environment


@pytest.fixture
def world(tmp_path):
  world = World(tmp_path)
  for cuda in (12, 13):
    make_fake_environment(world, f".venv-cuda{cuda}")
    checksum = subprocess.run(
      ["bash", "-c", "cksum <setup.py"], cwd=world.root, capture_output=True, text=True, check=True
    ).stdout.strip()
    stamp = world.root / f".venv-cuda{cuda}" / ".installed"
    stamp.write_text(f"train,cuda{cuda} {checksum}\n")
  return world


def gpu(world, *flags, **environment):
  return world.run("launch/gpu.sh", "--config=c.py", "--workdir=runs/a b", *flags, **environment)


def test_a_run_gets_every_gpu_and_the_flags_as_they_are(world):
  world.write("script", "status=0")
  done = gpu(world, "--config.data.manual_dir=/my images/$x")
  assert done.returncode == 0, done.stderr
  (call,) = world.trainings()
  assert call[4:] == [
    "--expected_platform=gpu",
    "--expected_devices=2",
    "--config=c.py",
    "--workdir=runs/a b",
    "--config.data.manual_dir=/my images/$x",
  ]


@pytest.mark.parametrize(
  ("driver", "cuda"),
  [("580.65.06, 9.0", 13), ("600.1, 7.0", 12), ("570.2, 12.0", 12), ("525.60.13, 8.0", 12)],
)
def test_cuda_by_driver_and_card(world, driver, cuda):
  done = gpu(world, "--dry_run", DRIVER=driver)
  assert f"+ .venv-cuda{cuda}/bin/python -u -m bcgd_jax.main" in done.stdout
  assert f".[train,cuda{cuda}]" in done.stdout
  assert not world.trainings()
  assert not (world.root / "runs").exists()


def test_an_old_driver_is_bad_input(world):
  done = gpu(world, DRIVER="470.1, 7.5")
  assert done.returncode == 2
  assert done.stderr == "error: the NVIDIA driver must be 525 or newer, got 470.1.\n"


def test_some_gpus(world):
  world.write("script", "status=0")
  assert gpu(world, "--gpus=1,3,4").returncode == 0
  assert flags_of(world.trainings()[0])["expected_devices"] == "3"


def test_a_killed_run_goes_on(world):
  world.write("script", "steps=3 status=137", "steps=6 status=134", "status=0")
  done = gpu(world)
  assert done.returncode == 0
  assert "ended with status 137 at step 3 or later" in done.stdout
  assert len(world.trainings()) == 3


def test_a_run_that_gets_nowhere_is_given_up(world):
  world.write("script", "steps=3 status=137", *["status=137"] * 5)
  done = gpu(world)
  assert done.returncode == 137
  assert "3 starts in a row brought no new checkpoint (newest step: 3)" in done.stderr
  assert len(world.trainings()) == 4


@pytest.mark.parametrize("status", [1, 2])
def test_a_failed_run_is_not_started_again(world, status):
  world.write("script", f"steps=3 status={status}", "status=0")
  assert gpu(world).returncode == status
  assert len(world.trainings()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(world, number):
  world.write("script", "steps=3 wait=100 status=0", "status=0")
  shell = subprocess.Popen(
    ["env", "--default-signal=INT", "bash", "launch/gpu.sh", "--config=c.py", "--workdir=w"],
    cwd=world.root,
    env=world.environment,
    restore_signals=True,
  )
  deadline = time.monotonic() + 60
  while not (world.stub / "waiting").exists():
    assert time.monotonic() < deadline
    time.sleep(0.02)
  shell.send_signal(number)
  assert shell.wait(timeout=60) == 143
  assert (world.root / "w/checkpoints/step_00000077/manifest.json").exists()
  assert len(world.trainings()) == 1


def test_the_workdir_must_be_given(world):
  done = world.run("launch/gpu.sh", "--config=c.py")
  assert (done.returncode, done.stderr) == (2, "error: --workdir=DIR is missing.\n")
