"""launch/tpu.sh against a pretended gcloud whose hosts are folders, in which tpu_host.sh runs."""

import shlex

import pytest
from launch_helpers import World, flags_of

API = ("--backend=tpu-api", "--accelerator_type=v5litepod-8")
GCE = ("--backend=gce",)
BUCKET = "--bucket=gs://b/runs/one"
TRAIN = ("--", "--config=configs/c.py", "--config.data.manual_dir=/my images/$x")


@pytest.fixture
def world(tmp_path):
  world = World(tmp_path)
  world.commit()
  return world


def tpu(world, *flags, train=TRAIN, **environment):
  return world.run(
    "launch/tpu.sh",
    "--name=run1",
    "--project=p",
    "--zone=us-east5-a",
    "--poll_seconds=0.1",
    *flags,
    *train,
    **environment,
  )


def created(world):
  return [call for call in world.calls("gcloud") if "create" in call]


@pytest.mark.parametrize("backend", [API, GCE])
def test_from_nothing_to_the_workdir_at_home(world, backend):
  world.write("script", "steps=3,6 status=0")
  done = tpu(world, *backend)
  assert done.returncode == 0, done.stderr + done.stdout
  (call,) = world.trainings()
  assert call[4:] == [
    "--workdir=../bcgd_workdir",
    "--expected_platform=tpu",
    "--expected_devices=8",
    "--config=configs/c.py",
    "--config.data.manual_dir=/my images/$x",
  ]
  assert world.calls("uv")[0][:6] == ["uv", "venv", "--quiet", "--clear", "--python", "3.12"]
  assert world.calls("uv")[1][-1] == "jax[tpu]==0.12.0.1"
  assert "step 3\nstep 6\n" in done.stdout
  assert (world.root / "runs/run1/checkpoints/step_00000006/manifest.json").exists()
  assert not (world.stub / "machine").exists()


def printed(done):
  """The commands that a dry run shows, as lists of words."""
  return [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("+ ")]


def test_the_commands_that_create(world):
  spot = ("--provisioning=spot", "--create_flag=--internal-ips", BUCKET, "--dry_run")
  (call,) = [call for call in printed(tpu(world, *API, *spot)) if "create" in call]
  assert call[4:] == [
    "create",
    "run1",
    "--node-id=run1",
    "--project=p",
    "--zone=us-east5-a",
    "--accelerator-type=v5litepod-8",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--valid-until-duration=6h",
    "--spot",
    "--internal-ips",
  ]
  flex = printed(tpu(world, *GCE, "--provisioning=flex-start", BUCKET, "--dry_run"))
  (call,) = [call for call in flex if "create" in call]
  flags = flags_of(call)
  assert flags["machine-type"] == "ct6e-standard-8t"
  assert flags["image-family"] == "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
  assert flags["provisioning-model"] == "FLEX_START"
  assert (flags["instance-termination-action"], flags["max-run-duration"]) == ("DELETE", "24h")


def test_preempted_once_then_finished_from_the_bucket(world):
  world.write("script", "steps=3 machine=SUSPENDED", "steps=6 status=0")
  done = tpu(world, *API, "--provisioning=spot", BUCKET, SAVE_SECONDS="0.1")
  assert done.returncode == 0, done.stderr + done.stdout
  assert "ended with status 255 at step 3 or later" in done.stdout
  assert len(created(world)) == 2
  # the second machine began with what the first had copied
  for step in (3, 6):
    assert (world.root / f"runs/run1/checkpoints/step_0000000{step}/manifest.json").exists()
  assert list((world.stub / "bucket/b/runs/one.logs").glob("*.log"))


def test_a_machine_that_answers_no_more_is_replaced(world):
  world.write("script", "steps=3 wait=100 status=0", "status=0")
  world.write("silent_after_start", *["x"] * 3)
  done = tpu(world, *GCE, "--provisioning=spot", "--unanswered=3", BUCKET)
  assert done.returncode == 0, done.stderr + done.stdout
  assert "run1 is ready and does not answer." in done.stdout
  assert len(created(world)) == 2


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_stopped_machine_with_the_only_copy_is_not_deleted(world, when):
  world.write("script", "machine=TERMINATED")
  if when == "before":
    (world.stub / "machine").write_text("TERMINATED")
  done = tpu(world, *GCE)
  assert done.returncode == 1
  assert "its disk may hold the only copy of the workdir" in done.stderr
  assert (world.stub / "machine").exists()


def test_preempted_again_and_again_with_no_new_checkpoint(world):
  world.write("script", "steps=3 machine=SUSPENDED", *["machine=SUSPENDED"] * 9)
  done = tpu(world, *API, "--provisioning=spot", "--stalled_restarts=2", BUCKET, SAVE_SECONDS="0.1")
  assert done.returncode == 255
  assert "2 starts in a row brought no new checkpoint (newest step: 3)" in done.stderr
  assert len(world.trainings()) == 3
  assert (world.root / "runs/run1/checkpoints/step_00000003/manifest.json").exists()
  assert not (world.stub / "machine").exists()


def test_a_failed_run_is_brought_back_and_not_started_again(world):
  world.write("script", "steps=3 status=1", "status=0")
  done = tpu(world, *API)
  assert done.returncode == 1
  assert len(world.trainings()) == 1
  assert (world.root / "runs/run1/checkpoints/step_00000003/manifest.json").exists()
  assert not (world.stub / "machine").exists()


def test_a_run_that_saved_goes_on_on_the_same_machine(world):
  world.write("script", "steps=3 status=143", "steps=5 status=142", "status=0")
  done = tpu(world, *GCE, "--keep")
  assert done.returncode == 0
  assert (len(created(world)), len(world.trainings())) == (1, 3)
  assert done.stdout.count("step 3\n") == 1  # the log is shown once
  assert (world.stub / "machine").exists()


def test_dropped_connections_are_nothing(world):
  world.write("script", "steps=3 wait=1 status=0")
  world.write("drops", *["x"] * 2)
  assert tpu(world, *API).returncode == 0
  assert len(world.trainings()) == 1


def test_a_machine_and_its_run_are_used_again(world):
  world.write("script", "steps=3 status=0")
  (world.stub / "machine").write_text("ACTIVE")
  home = world.stub / "host.0"
  home.mkdir()
  # what the launcher left: a run that ends while somebody follows it again
  (home / "bcgd_jax").symlink_to(world.root)
  notes = home / "bcgd_run"
  notes.mkdir()
  (notes / "log").write_text("step 1\n")
  (home / "bcgd_env/bin").mkdir(parents=True)
  (home / "bcgd_env/bin/python").symlink_to(world.stub / "python")
  (world.stub / "python").write_text(
    # until it is followed
    "#!/bin/sh\ntouch $STUB/calls\n"
    "until [ $(grep -c tpu-vm $STUB/calls) -ge 4 ]; do sleep 0.1; done\necho step 2\n"
  )
  (world.stub / "python").chmod(0o755)
  world.run("launch/tpu_host.sh", "start", "", "--workdir=../w", HOME=str(home))
  done = tpu(world, *API)
  assert done.returncode == 0, done.stderr
  assert "following it" in done.stdout
  assert "step 1\nstep 2\n" in done.stdout
  assert created(world) == []
  assert world.calls("uv") == []


def test_several_hosts_by_the_tpu_api(world):
  world.write("script", *["steps=3 status=0"] * 2)
  done = tpu(world, "--backend=tpu-api", "--accelerator_type=v4-16", BUCKET)
  assert done.returncode == 0, done.stderr + done.stdout
  flags = [flags_of(call) for call in world.trainings()]
  assert [f["distributed"] for f in flags] == ["auto"] * 2
  assert {f["workdir"] for f in flags} == {"../bcgd_bucket/runs/one"}
  assert {f["expected_devices"] for f in flags} == {"8"}  # v4 counts cores
  assert len(world.calls("gcsfuse")) == 2
  assert (world.root / "runs/run1/checkpoints/step_00000003/manifest.json").exists()


def test_several_hosts_as_a_managed_group(world):
  world.write("script", *["steps=3 status=143"] * 2, *["status=0"] * 2)
  done = tpu(world, *GCE, "--hosts=2", "--topology=2x4", "--provisioning=spot", BUCKET)
  assert done.returncode == 0, done.stderr + done.stdout
  flags = [flags_of(call) for call in world.trainings()]
  assert sorted(f["process_id"] for f in flags) == ["0", "0", "1", "1"]
  assert {(f["coordinator_address"], f["num_processes"]) for f in flags} == {("10.0.0.7:8476", "2")}
  policy, template, group = created(world)
  assert flags_of(policy)["accelerator-topology"] == "2x4"
  assert flags_of(template)["instance-termination-action"] == "STOP"
  assert flags_of(group)["target-size-policy-mode"] == "bulk"
  assert flags_of(group)["workload-policy"] == (
    "projects/p/regions/us-east5/resourcePolicies/run1-policy"
  )
  assert (world.stub / "names").read_text() == ""


def test_a_failed_host_counts_before_the_peers_it_took_along(world):
  world.write("script.0", "steps=3 status=134")
  world.write("script.1", "status=1")
  done = tpu(world, *GCE, "--hosts=2", "--topology=2x4", BUCKET)
  assert done.returncode == 1
  assert "host 1 ended with status 1." in done.stdout


def test_a_host_that_hangs_after_its_peers_left_is_killed(world):
  world.write("script.0", "steps=3 status=143", "status=0")
  world.write("script.1", "deaf=1 wait=100 status=0", "status=0")
  done = tpu(world, *GCE, "--hosts=2", "--topology=2x4", BUCKET, STOP_SECONDS="1")
  assert done.returncode == 0, done.stderr + done.stdout
  assert "host 1 ended with status 137." in done.stdout
  assert len(world.trainings()) == 4


def test_hosts_with_other_versions_do_not_start(world):
  world.write("versions.1", "python 3.12.0, jax 0.6.2")
  done = tpu(world, *GCE, "--hosts=2", "--topology=2x4", BUCKET)
  assert done.returncode == 1
  assert "host 1 has other versions than host 0" in done.stderr
  assert "[host 1] python 3.12.0, jax 0.6.2" in done.stdout
  assert "may still be there and cost money" in done.stdout
  assert world.trainings() == []


def test_no_machine_at_first_is_an_error_and_later_waited_for(world):
  world.write("refusals", "no capacity")
  assert tpu(world, *GCE).returncode == 1
  assert world.trainings() == []
  world.write("script", "machine=TERMINATED", "status=0")
  (world.stub / "calls").unlink()
  world.write("later_refusals", "no capacity", "no capacity")
  done = tpu(world, *GCE, "--provisioning=spot", BUCKET)
  assert done.returncode == 0, done.stderr + done.stdout
  assert done.stderr.count("no capacity") == 2
  assert len(created(world)) == 4


def test_a_bucket_that_cannot_be_read_is_not_an_empty_one(world):
  world.write("storage_fails", *["x"] * 9)
  done = tpu(world, *API, BUCKET)
  assert done.returncode == 1
  assert "cannot look into gs://b/runs/one" in done.stdout
  assert world.trainings() == []


def test_a_copy_that_fails_keeps_the_machine(world):
  world.write("script", "steps=3 status=0")
  done = tpu(world, *API, BUCKET, SABOTAGE="1")
  assert done.returncode == 1
  assert (world.stub / "machine").exists()
  assert "may still be there and cost money" in done.stdout


@pytest.mark.parametrize("flags", [API, (*GCE, "--provisioning=spot", BUCKET), (*GCE, "--delete")])
def test_a_dry_run_prints_and_touches_nothing(world, flags):
  done = tpu(world, *flags, "--dry_run", "--output=my runs")
  assert done.returncode == 0, done.stderr
  assert "+ gcloud compute" in done.stdout
  assert world.calls() == []
  assert not (world.root / "my runs").exists()
  assert "--delete" in flags or "mkdir -p 'my runs'" in done.stdout


def test_delete_alone(world):
  (world.stub / "machine").write_text("ACTIVE")
  assert tpu(world, *API, "--delete", train=()).returncode == 0
  assert not (world.stub / "machine").exists()
  assert len(world.calls("gcloud")) == 1


def test_proxied_ssh(world):
  done = tpu(world, *API, "--iap", "--dry_run")
  assert "+ gcloud alpha compute tpus tpu-vm ssh run1" in done.stdout
  done = tpu(world, *GCE, "--iap", "--dry_run")
  assert "--tunnel-through-iap" in done.stdout


@pytest.mark.parametrize(
  ("flags", "error"),
  [
    ((), "--backend is missing"),
    (("--backend=gke",), "--backend must be tpu-api or gce, got gke"),
    ((*API, "--zone="), "--zone is missing"),
    ((*API, "--provisioning=spot"), "--bucket is missing: a spot or flex-start machine"),
    ((*API, "--provisioning=flex-start"), "--provisioning must be standard or spot"),
    ((*API, "--seed=3"), "there is no flag --seed; those of bcgd_jax.main come after --"),
    ((*API, BUCKET + "/"), "--bucket must be gs://BUCKET/PATH"),
    ((*GCE, "--hosts=4", BUCKET), "--topology is missing"),
    ((*GCE, "--hosts=4", "--topology=4x4"), "several hosts need one workdir that all see"),
    ((*GCE, "--machine_type=tpu7x-standard-4t"), "--devices is missing"),
    (("--backend=tpu-api", "--accelerator_type=v3-8"), "--runtime_version is missing"),
  ],
)
def test_bad_input(world, flags, error):
  done = tpu(world, *flags)
  assert done.returncode == 2
  assert error in done.stderr
  assert world.calls() == []


@pytest.mark.parametrize(
  ("train", "error"),
  [
    ((), "-- --config=configs/X.py is missing"),
    (("--", "--config=c.py", "--workdir=w"), "--workdir is set by tpu.sh"),
  ],
)
def test_bad_flags_of_the_training(world, train, error):
  done = tpu(world, *API, train=train)
  assert done.returncode == 2
  assert error in done.stderr


def test_changes_that_would_not_be_copied(world):
  (world.root / "new.py").touch()
  done = tpu(world, *API)
  assert done.returncode == 2
  assert "changes that are not committed would not be copied" in done.stderr


def test_the_price_of_an_hour(world):
  assert "8 chips at 1.20 $ an hour: 9.60 $" in tpu(world, *API, "--price=1.20", "--dry_run").stdout
