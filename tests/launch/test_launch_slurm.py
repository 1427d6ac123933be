"""launch/slurm.sbatch with a pretended srun: what a task sees, and when the job is queued again."""

import os
import signal
import subprocess
import time

import pytest
from launch_helpers import World, flags_of, make_fake_environment


@pytest.fixture
def world(tmp_path):
  world = World(tmp_path)
  make_fake_environment(world, ".venv-cuda13")
  world.environment |= {
    "SLURM_SUBMIT_DIR": str(world.root),
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
  }
  return world


COMMAND = ("launch/slurm.sbatch", "--config=c.py", "--workdir=runs/a b", "--config.x=1 2")


def test_a_task_a_node_sees_all_gpus(world):
  world.write("script", "status=0", "status=0")
  done = world.run(*COMMAND)
  assert done.returncode == 0, done.stderr
  assert len(world.trainings()) == 2
  flags = flags_of(world.trainings()[0])
  assert flags["distributed"] == "auto"
  assert flags["expected_devices"] == "16"
  assert flags["workdir"] == "runs/a b"
  assert flags["config.x"] == "1 2"
  assert world.calls("scontrol", "requeue") == []
  # what a task writes must not make the workdir look like a folder of something else
  assert not (world.root / "runs/a b").exists()


def test_the_tasks_environment(world):
  task = world.root / "task"
  task.write_text('#!/bin/sh\necho "$JAX_LOCAL_DEVICE_IDS ${LD_LIBRARY_PATH-unset}"\n')
  task.chmod(0o755)
  (world.root / ".venv-cuda13/bin/python").unlink()
  task.rename(world.root / ".venv-cuda13/bin/python")
  done = world.run(*COMMAND, LD_LIBRARY_PATH="/opt/cuda")
  assert done.stdout == "0,1,2,3,4,5,6,7 unset\n" * 2


def test_one_node_needs_no_peers(world):
  world.write("script", "status=0")
  environment = {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "", "GPUS": "4"}
  assert world.run(*COMMAND, **environment).returncode == 0
  flags = flags_of(world.trainings()[0])
  assert (flags["distributed"], flags["expected_devices"]) == ("off", "4")


def test_a_preempted_job_is_queued_again(world):
  world.write("script", "steps=5 status=143", "steps=5 status=143")
  done = world.run(*COMMAND)
  assert done.returncode == 143
  assert world.calls("scontrol", "requeue") == [["scontrol", "requeue", "7"]]
  assert "queued again" in done.stdout


def test_starts_without_checkpoints_are_counted_over_the_jobs_starts(world):
  world.write("script", *["steps=5 status=143"] * 20)
  requeues = []
  for count in range(4):
    world.run(*COMMAND, SLURM_RESTART_COUNT=str(count))
    requeues.append(len(world.calls("scontrol", "requeue")))
  # the first start wrote step 5; three more brought nothing
  assert requeues == [1, 2, 3, 3]


def test_restarts_are_bounded_even_with_checkpoints(world):
  world.write("script", "steps=5 status=143", "steps=5 status=143")
  done = world.run(*COMMAND, SLURM_RESTART_COUNT="20")
  assert "started again 20 times already" in done.stderr
  assert world.calls("scontrol", "requeue") == []


@pytest.mark.parametrize("status", [1, 2])
def test_a_failed_task_ends_the_job_whatever_its_peers_die_of(world, status):
  world.write("script.0", "steps=5 status=134")
  world.write("script.1", f"status={status}")
  assert world.run(*COMMAND).returncode == status
  assert world.calls("scontrol", "requeue") == []


def test_a_cancelled_job_is_not_queued_again(world):
  world.write("script", "steps=5 status=143", "steps=5 status=143")
  (world.stub / "job_state").write_text("CANCELLED")
  assert world.run(*COMMAND).returncode == 143
  assert world.calls("scontrol", "requeue") == []


def test_term_to_step_and_shell_while_the_step_saves(world):
  world.write("script", "steps=5 wait=100 status=0", "steps=5 wait=100 status=0")
  shell = subprocess.Popen(
    ["bash", *COMMAND], cwd=world.root, env=world.environment, stdout=subprocess.DEVNULL
  )
  deadline = time.monotonic() + 60
  while len(world.trainings()) < 2 or not (world.stub / "waiting").exists():
    assert time.monotonic() < deadline
    time.sleep(0.02)
  time.sleep(0.3)  # the second task may not have got to its wait
  os.kill(int((world.stub / "srun.pid").read_text()), signal.SIGUSR1)
  for _ in range(3):  # the batch shell is signalled again and again while the step saves
    time.sleep(0.05)
    shell.send_signal(signal.SIGTERM)
  assert shell.wait(timeout=60) == 143
  assert (world.root / "runs/a b/checkpoints/step_00000077/manifest.json").exists()
  assert world.calls("scontrol", "requeue") == [["scontrol", "requeue", "7"]]


@pytest.mark.parametrize(
  ("environment", "error"),
  [
    ({"SLURM_NTASKS": "16"}, "there must be one task a node, got 16 tasks on 2 nodes"),
    ({"VENV": "none"}, "none/bin/python is missing"),
  ],
)
def test_bad_input(world, environment, error):
  done = world.run(*COMMAND, **environment)
  assert done.returncode == 2
  assert error in done.stderr
  assert world.calls("srun") == []
