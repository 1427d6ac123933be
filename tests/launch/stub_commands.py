"""Stands in for gcloud, uv, srun, nvidia-smi and others when the launch scripts are tested.

Called with NAME ARGUMENTS... (see make_command); $STUB is a folder that holds the pretended world:

    calls            one JSON list a call, in order
    machine          state of the one machine or group, absent where there is none
    names            policies and templates, one a line
    bucket/B/...     gs://B/...
    host.I/          home of host I
    script           what the next trainings do, one line each, such as "steps=4 status=143"
"""

import contextlib
import fcntl
import glob
import json
import os
import signal
import sys
import time
from pathlib import Path

# shutil and subprocess take longer to import than most calls take to run: where needed
STUB = Path(os.environ.get("STUB", "."))
MACHINE = STUB / "machine"


def record(name: str, arguments: list[str]) -> None:
  with (STUB / "calls").open("a") as file:
    file.write(json.dumps([name, *arguments]) + "\n")


def take_line(path: Path) -> str:
  """Removes and returns the first line of a file, "" where there is none."""
  if not path.exists():
    return ""
  with path.open("r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # tasks and hosts ask at the same time
    lines = file.readlines()
    file.seek(0)
    file.truncate()
    file.writelines(lines[1:])
  return lines[0].strip() if lines else ""


def options_of(arguments: list[str]) -> dict[str, str]:
  pairs = (argument[2:].partition("=") for argument in arguments if argument.startswith("--"))
  return {key: value for key, _, value in pairs}


def gcloud(arguments: list[str]) -> int:
  words = [argument for argument in arguments if not argument.startswith("--")]
  options = options_of(arguments)
  if words[0] == "alpha":
    words = words[1:]
  match words:
    case ["storage", verb, *places]:
      return storage(verb, places, "delete-unmatched-destination-objects" in options)
    case ["compute", "tpus", "queued-resources", verb, *names]:
      return machine(verb, names, "ACTIVE")
    case ["compute", "instances", "describe", *_]:
      print("10.0.0.7")
    case ["compute", "instances", verb, *names]:
      return machine(verb, names, "RUNNING")
    case ["compute", "instance-groups", "managed", "list-instances", name]:
      for index in range(int((STUB / "size").read_text())):
        print(f"{name}-{'xyz'[index]}\t{MACHINE.read_text()}")
    case ["compute", "instance-groups", "managed", "resize", _]:
      (STUB / "size").write_text(options["size"])
    case ["compute", "instance-groups", "managed", verb, *names]:
      return machine(verb, names, "RUNNING", with_state=False)
    case ["compute", "resource-policies" | "instance-templates", verb, *names]:
      return named(verb, names)
    case ["compute", "tpus", "tpu-vm", "ssh", _]:
      return ssh(options["worker"], options["command"])
    case ["compute", "tpus", "tpu-vm", "scp", source, target]:
      copy_to_host(source, options["worker"], target)
    case ["compute", "ssh", name]:
      return ssh(host_of(name), options["command"])
    case ["compute", "scp", source, target]:
      copy_to_host(source, host_of(target.split(":")[0]), target)
    case _:
      raise AssertionError(words)
  return 0


def machine(verb: str, names: list[str], ready: str, *, with_state: bool = True) -> int:
  import shutil

  if verb == "list":
    if MACHINE.exists():
      print(f"other\t{ready}\nname with\t-" if with_state else "other")
      print(f"run1\t{MACHINE.read_text()}" if with_state else "run1")
  elif verb == "create":
    assert not MACHINE.exists(), "it is there already"
    assert names == ["run1"]
    if refusal := take_line(STUB / "refusals"):
      print(f"ERROR: {refusal}", file=sys.stderr)
      return 1
    for index in range(4):
      (STUB / f"host.{index}").mkdir()
    MACHINE.write_text(ready)
    if (STUB / "later_refusals").exists():
      (STUB / "later_refusals").rename(STUB / "refusals")
  elif verb == "delete":
    assert MACHINE.exists(), "there is nothing to delete"
    MACHINE.unlink()
    for home in STUB.glob("host.*"):
      end_processes(home)
      shutil.rmtree(home)
  return 0


def end_processes(home: Path) -> None:
  """A machine takes its processes with it."""
  pid = home / "bcgd_run" / "pid"
  if pid.exists() and not (home / "bcgd_run" / "status").exists():
    with contextlib.suppress(ProcessLookupError):
      os.killpg(int(pid.read_text()), signal.SIGKILL)


def named(verb: str, names: list[str]) -> int:
  path = STUB / "names"
  known = path.read_text().splitlines() if path.exists() else []
  if verb == "list":
    print("\n".join(known))
    return 0
  if verb == "create":
    known.append(names[-1])
  else:
    known.remove(names[-1])
  path.write_text("".join(f"{name}\n" for name in known))
  return 0


def host_of(name: str) -> str:
  """A group's machines are called run1-x, run1-y, ..."""
  return str(max(0, "xyz".find(name[-1])))


def copy_to_host(source: str, host: str, target: str) -> None:
  import shutil

  shutil.copy(source, STUB / f"host.{host}" / target.split(":")[1])


def ssh(host: str, command: str) -> int:
  if not MACHINE.exists() or MACHINE.read_text() not in ("ACTIVE", "RUNNING"):
    return 255
  if take_line(STUB / "drops"):
    return 255
  if " start " in command and (STUB / "silent_after_start").exists():
    (STUB / "silent_after_start").rename(STUB / "drops")
  os.environ |= {"HOME": str(STUB / f"host.{host}"), "HOST": host}
  os.chdir(os.environ["HOME"])
  os.execvp("bash", ["bash", "-c", command])


def storage(verb: str, places: list[str], delete: bool) -> int:
  import shutil

  paths = [
    STUB / "bucket" / place.removeprefix("gs://") if place.startswith("gs://") else Path(place)
    for place in places
  ]
  if take_line(STUB / "storage_fails") or (verb == "rsync" and "SABOTAGE" in os.environ):
    print("ERROR: 503 backend", file=sys.stderr)
    return 1
  if verb == "ls":
    found = glob.glob(str(paths[0]))
    found = [path for path in found if not Path(path).is_dir() or os.listdir(path)]
    if not found:
      print("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.", file=sys.stderr)
      return 1
    print("\n".join(found))
  elif verb == "rsync":
    if delete:
      shutil.rmtree(paths[1], ignore_errors=True)
    shutil.copytree(paths[0], paths[1], dirs_exist_ok=True)
  else:
    paths[1].parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(paths[0], paths[1])
  return 0


def uv(arguments: list[str]) -> int:
  if arguments[0] == "venv":
    make_command(Path(arguments[-1]) / "bin" / "python", "python")
  return 0


def make_command(path: Path, name: str) -> None:
  """Writes an executable that stands in for the command of this name."""
  path.parent.mkdir(parents=True, exist_ok=True)
  # imported, not run as a file: so it is compiled once
  code = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import stub_commands as s"
  )
  path.write_text(
    f'#!/bin/sh\nexec {sys.executable} -S -c "{code}; sys.exit(s.main())" {name} "$@"\n'
  )
  path.chmod(0o755)


def python(arguments: list[str]) -> int:
  """bcgd_jax.main, or the program that prints versions."""
  if arguments[0] == "-":
    version = STUB / f"versions.{os.environ['HOST']}"
    print(version.read_text() if version.exists() else "python 3.12.0, jax 0.12.0.1")
    return 0
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(save_and_leave(workdir)))
  options = options_of(arguments)
  workdir = Path(options["workdir"])
  # the other hosts of a slice end as the first one does, or as their own script says
  own = STUB / f"script.{os.environ.get('HOST', os.environ.get('SLURM_PROCID', '0'))}"
  todo = dict(
    item.split("=") for item in take_line(own if own.exists() else STUB / "script").split()
  )
  if "deaf" in todo:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
  for step in filter(None, todo.get("steps", "").split(",")):
    commit(workdir, int(step))
    print(f"step {step}", flush=True)
  if "wait" in todo:
    (STUB / "waiting").touch()
    time.sleep(float(todo["wait"]))
  if "machine" in todo:
    wait_for_copy(workdir, int(todo.get("steps", "0")))
    MACHINE.write_text(todo["machine"])
    os.killpg(0, signal.SIGKILL)
  return int(todo["status"])


def commit(workdir: Path, step: int) -> None:
  folder = workdir / "checkpoints" / f"step_{step:08d}"
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "manifest.json").write_text("{}")


def wait_for_copy(workdir: Path, step: int) -> None:
  """Until the step is in the bucket: the machine goes away with its disk."""
  name = f"b/runs/one/checkpoints/step_{step:08d}/manifest.json"
  deadline = time.monotonic() + 60
  while step and not (STUB / "bucket" / name).exists():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def save_and_leave(workdir: Path) -> int:
  time.sleep(0.2)  # a save takes its time
  commit(workdir, 77)
  return 143


def gcsfuse(arguments: list[str]) -> int:
  bucket, mount = arguments[-2:]
  (STUB / "bucket" / bucket).mkdir(parents=True, exist_ok=True)
  os.rmdir(mount)
  os.symlink(STUB / "bucket" / bucket, mount)
  return 0


def mountpoint(arguments: list[str]) -> int:
  return 0 if os.path.islink(arguments[-1]) else 1


def srun(arguments: list[str]) -> int:
  """Runs the command once for each task and returns the highest status, as srun does."""
  import subprocess

  first = next(i for i, argument in enumerate(arguments) if not argument.startswith("--"))
  tasks = [
    subprocess.Popen(arguments[first:], env={**os.environ, "SLURM_PROCID": str(task)})
    for task in range(int(os.environ["SLURM_NTASKS"]))
  ]

  def pass_on(number: int, _: object) -> None:
    # as slurmctld does, to every process of the step
    for task in tasks:
      children = Path(f"/proc/{task.pid}/task/{task.pid}/children").read_text().split()
      for pid in [task.pid, *map(int, children)]:
        os.kill(pid, number)

  signal.signal(signal.SIGUSR1, lambda _, frame: pass_on(signal.SIGTERM, frame))
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  (STUB / "srun.pid").write_text(str(os.getpid()))
  statuses = [task.wait() for task in tasks]
  return max(128 - status if status < 0 else status for status in statuses)


def scontrol(arguments: list[str]) -> int:
  if arguments[:2] == ["show", "job"]:
    state = STUB / "job_state"
    print(f"JobId=7 JobState={state.read_text() if state.exists() else 'RUNNING'} Reason=None")
  return 0


def nvidia_smi(arguments: list[str]) -> int:
  for index in range(int(os.environ.get("GPUS", "2"))):
    print(index if "--query-gpu=index" in arguments else os.environ.get("DRIVER", "580.65, 9.0"))
  return 0


def main() -> int:
  name, *arguments = sys.argv[1:]
  record(name, arguments)
  return globals()[name.replace("-", "_")](arguments)
