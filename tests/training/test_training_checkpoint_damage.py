"""Checkpoints survive: a death at any moment, and any damage to the files of the newest."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bcgd_jax.errors import UsageError
from bcgd_jax.training import manifest as manifests
from bcgd_jax.training.checkpoint import CheckpointStore, CheckpointWarning

WORKER = Path(__file__).with_name("checkpoint_worker.py")
ABSTRACT = {
  "w": jax.ShapeDtypeStruct((1000,), jnp.float32),
  "n": jax.ShapeDtypeStruct((), jnp.int32),
}


class DeathError(Exception):
  """Stands for the end of the process."""


def open_store(directory: Path, **kwargs: Any) -> CheckpointStore:
  return CheckpointStore(directory, **({"config_hash": "abc"} | kwargs))


def save(store: CheckpointStore, step: int, *, value: int | None = None) -> None:
  value = step if value is None else value
  state = {"w": jnp.full(1000, value, jnp.float32), "n": jnp.array(value, jnp.int32)}
  store.save(step, state, phase="a", extra={"step": value})


def check_latest(directory: Path) -> tuple[int, int]:
  """Step and value of the latest checkpoint; it and those before it must be whole."""
  store = open_store(directory)
  for step in store.steps():
    store.restore(step, ABSTRACT)
  meta = store.latest()
  assert meta is not None
  state = store.restore(meta.step, ABSTRACT)
  value = meta.extra["step"]
  np.testing.assert_array_equal(state["w"], np.full(1000, value))
  assert int(state["n"]) == value
  return meta.step, value


@contextlib.contextmanager
def death_after(num_calls: int) -> Iterator[None]:
  """Lets `num_calls` calls that rename, remove or flush pass; from then on each one dies."""
  count = itertools.count()

  def mortal(original: Any, *, half: bool = False) -> Any:
    def call(*arguments: Any, **kwargs: Any) -> Any:
      if next(count) < num_calls:
        return original(*arguments, **kwargs)
      if half:
        os.unlink(files_in(arguments[0])[-1])
      raise DeathError

    return call

  with (
    mock.patch.object(os, "replace", mortal(os.replace)),
    mock.patch.object(manifests, "sync_directory", mortal(manifests.sync_directory)),
    mock.patch.object(Path, "unlink", mortal(Path.unlink)),
    mock.patch.object(shutil, "rmtree", mortal(shutil.rmtree, half=True)),
  ):
    yield


def names_in(directory: Path) -> list[str]:
  return sorted(path.name for path in directory.iterdir())


def files_in(slot: Path) -> list[Path]:
  return sorted(path for path in slot.rglob("*") if path.is_file())


class DeathTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _keep_path(self, tmp_path: Path) -> None:
    self.directory = tmp_path / "checkpoints"

  def start_worker(self, *arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(self.directory), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

  def test_events_surround_the_commit(self):
    seen = []
    store = open_store(self.directory, on_event=lambda *event: seen.append((*event, store.steps())))
    save(store, 1)
    save(store, 2)
    self.assertEqual(
      seen,
      [("written", 1, ()), ("committed", 1, (1,)), ("written", 2, (1,)), ("committed", 2, (1, 2))],
    )

  def test_death_before_the_commit_leaves_the_previous_checkpoint(self):
    save(open_store(self.directory), 1)

    def die(event: str, step: int) -> None:
      raise DeathError(event)

    with self.assertRaisesRegex(DeathError, "written"):
      save(open_store(self.directory, on_event=die), 2)
    self.assertEqual(names_in(self.directory), ["step_00000001", "step_00000002"])
    self.assertEqual(open_store(self.directory).steps(), (1,))
    self.assertEqual(check_latest(self.directory), (1, 1))
    save(open_store(self.directory), 3)
    self.assertEqual(names_in(self.directory), ["step_00000001", "step_00000003"])

  def test_first_save_that_died_is_no_checkpoint(self):
    with self.assertRaises(DeathError):
      save(open_store(self.directory, on_event=mock.Mock(side_effect=DeathError)), 1)
    self.assertIsNone(open_store(self.directory).latest())
    save(open_store(self.directory), 1)
    self.assertEqual(check_latest(self.directory), (1, 1))

  @parameterized.parameters(("written", 2), ("committed", 3))
  def test_sigkill_around_the_commit(self, event, latest):
    worker = self.start_worker(1, 5, event, 3)
    output, _ = worker.communicate(timeout=120)
    self.assertEqual(worker.returncode, -signal.SIGKILL)
    self.assertEqual(output.split("\n")[:-1], ["committed 1", "committed 2"])
    self.assertEqual(check_latest(self.directory), (latest, latest))
    save(open_store(self.directory), latest + 1)
    self.assertEqual(open_store(self.directory).steps(), (latest, latest + 1))
    self.assertLen(names_in(self.directory), 2)

  def test_sigkill_at_any_moment_loses_nothing_announced(self):
    delays = random.Random(0)
    announced = 0
    for _ in range(2):
      worker = self.start_worker(announced + 1, announced + 10_000, "never", 0)
      assert worker.stdout is not None
      worker.stdout.readline()
      time.sleep(delays.uniform(0.1, 0.4))
      worker.kill()
      rest, _ = worker.communicate(timeout=60)
      lines = [int(line.split()[1]) for line in rest.splitlines()]
      announced = max([announced + 1, *lines])
      latest, value = check_latest(self.directory)
      self.assertIn(latest, (announced, announced + 1))  # the last commit may not be printed
      self.assertEqual(value, latest)
      announced = latest

  @parameterized.named_parameters(
    (
      "saving_the_next_step",
      lambda store: save(store, 4, value=99),
      {(1, 2, 3): 3, (1, 2, 3, 4): 99, (2, 3, 4): 99},
    ),
    ("saving_a_step_again", lambda store: save(store, 3, value=99), {(1, 2, 3): (3, 99)}),
    ("discarding", lambda store: store.discard_after(1), {(1, 2, 3): 3, (1, 2): 2, (1,): 1}),
  )
  def test_death_at_every_change_of_the_disk_loses_nothing(self, act, allowed):
    """Each time one call more survives, until all do; `allowed` is {steps: latest value}."""
    for step in (1, 2, 3):
      save(open_store(self.directory, keep=3), step)
    before = shutil.copytree(self.directory, self.directory.with_name("before"))
    seen = set()
    for survived in range(200):
      shutil.rmtree(self.directory)
      shutil.copytree(before, self.directory)
      died = False
      with death_after(survived):
        try:
          act(open_store(self.directory, keep=3))
        except DeathError:
          died = True
      # Without a warning: what an interrupted call leaves is whole, or no checkpoint.
      _, value = check_latest(self.directory)
      steps = open_store(self.directory).steps()
      self.assertIn(value, np.atleast_1d(allowed[steps]))
      seen.add((steps, value))
      save(open_store(self.directory, keep=3), 5)
      self.assertEqual(check_latest(self.directory), (5, 5))
      self.assertLessEqual(len(names_in(self.directory)), 3)
      if not died:
        break
    self.assertFalse(died)
    self.assertLen(seen, sum(len(np.atleast_1d(values)) for values in allowed.values()))


class DamageTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _save_two(self, tmp_path: Path) -> None:
    self.directory = tmp_path
    self.store = open_store(tmp_path)
    save(self.store, 1)
    save(self.store, 2)
    self.newest = tmp_path / "step_00000002"

  def assert_falls_back(self, *texts: str) -> None:
    with pytest.warns(CheckpointWarning) as caught:
      meta = self.store.latest()
    assert meta is not None
    self.assertEqual(meta.step, 1)
    self.assertLen(caught, 1)
    for text in ("checkpoint of step 2 is damaged and passed over", *texts):
      self.assertIn(text, str(caught[0].message))
    self.assertEqual(caught[0].filename, __file__)

  def test_byte_flipped_in_each_file(self):
    files = files_in(self.newest)
    self.assertGreater(len(files), 5)
    for path in files:
      content = path.read_bytes()
      middle = len(content) // 2
      changed = (
        content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
        if (content)
        else b"x"
      )
      path.write_bytes(changed)
      if content and path.name != manifests.MANIFEST_NAME:
        self.assert_falls_back(str(path), "must have sha256 ", ", got ")
      else:
        self.assert_falls_back(str(path))
      path.write_bytes(content)
    self.assertEqual(check_latest(self.directory), (2, 2))

  def test_each_file_truncated_or_deleted(self):
    for path in files_in(self.newest):
      content = path.read_bytes()
      if path.name == manifests.MANIFEST_NAME:
        continue
      if content:
        path.write_bytes(content[:-1])
        rule = f"{path} must have {len(content)} bytes, got {len(content) - 1}"
        self.assert_falls_back(rule)
      path.unlink()
      self.assert_falls_back(f"{path} must be a readable file of {len(content)} bytes", "No such")
      path.write_bytes(content)
    self.assertEqual(check_latest(self.directory), (2, 2))

  def test_bytes_of_the_manifest_count(self):
    path = self.newest / manifests.MANIFEST_NAME
    content = path.read_bytes()
    whole = manifests.read_manifest(self.newest)
    for index in range(0, len(content), 5):
      path.write_bytes(content[:index] + bytes([content[index] ^ 0x01]) + content[index + 1 :])
      # A changed space outside of a string may still be a space to JSON: nothing is lost then.
      try:
        self.assertEqual(manifests.read_manifest(self.newest), whole)
      except manifests.DamagedCheckpointError:
        continue

  @parameterized.parameters(0, 1, 100, -1)
  def test_torn_manifest(self, length):
    path = self.newest / manifests.MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:length])
    self.assert_falls_back(f"{path} must be a readable manifest, got JSONDecodeError")

  @parameterized.parameters("[]", "{}", '{"manifest": 1}', '{"manifest": {}, "sha256": "0"}', "1")
  def test_manifest_of_other_json(self, text):
    (self.newest / manifests.MANIFEST_NAME).write_text(text)
    self.assert_falls_back(manifests.MANIFEST_NAME)

  def test_directory_moved_to_another_step(self):
    self.newest.rename(self.directory / "step_00000009")
    with pytest.warns(CheckpointWarning, match="must be of step 9, got 2"):
      self.assertEqual(self.store.latest().step, 1)

  def test_files_of_others_are_tolerated(self):
    (self.newest / "state" / ".nfs0001").write_text("x")
    (self.directory / "notes.txt").write_text("x")
    (self.directory / "step_1").mkdir()
    self.assertEqual(check_latest(self.directory), (2, 2))
    save(self.store, 3)
    self.assertEqual(self.store.steps(), (2, 3))
    self.assertIn("step_1", names_in(self.directory))

  def test_none_intact_is_an_error_that_names_all(self):
    for step in (1, 2):
      os.truncate(self.directory / f"step_{step:08d}" / manifests.MANIFEST_NAME, 10)
    with (
      pytest.warns(CheckpointWarning),
      self.assertRaisesRegex(UsageError, "only damaged ones: .*00000002.*; .*00000001.* remove"),
    ):
      self.store.latest()

  def test_restore_verifies_too(self):
    path = self.newest / "state" / "_CHECKPOINT_METADATA"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.warns(CheckpointWarning), self.assertRaisesRegex(UsageError, str(path)):
      self.store.restore(2, ABSTRACT)
    self.assertEqual(int(self.store.restore(1, ABSTRACT)["n"]), 1)

  def test_other_configuration_is_an_error_not_a_fallback(self):
    other = open_store(self.directory, config_hash="xyz")
    with self.assertRaisesRegex(UsageError, "must have config hash xyz, got abc: .* workdir"):
      other.latest()
    with self.assertRaisesRegex(UsageError, "must have config hash xyz, got abc"):
      other.restore(2, ABSTRACT)

  def test_other_format_version_is_an_error_not_a_fallback(self):
    with mock.patch.object(manifests, "FORMAT_VERSION", 99):
      save(self.store, 3)
    with self.assertRaisesRegex(UsageError, "must be of format version 1, got 99; use"):
      self.store.latest()


class HistoryTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _keep_path(self, tmp_path: Path) -> None:
    self.directory = tmp_path

  @parameterized.parameters(2, 3)
  def test_keeps_the_latest(self, keep):
    store = open_store(self.directory, keep=keep)
    for value, step in enumerate((5, 10, 100, 1000, 123_456_789)):
      save(store, step, value=value)
    self.assertEqual(store.steps(), (10, 100, 1000, 123_456_789)[-keep:])
    self.assertLen(names_in(self.directory), keep)
    self.assertEqual(check_latest(self.directory), (123_456_789, 4))

  def test_saving_a_step_again_replaces_it(self):
    store = open_store(self.directory)
    for value in (1, 2, 3):
      save(store, 7, value=value)
      self.assertEqual(check_latest(self.directory), (7, value))
      self.assertLen(names_in(self.directory), 1)
    save(store, 8)
    self.assertEqual(store.steps(), (7, 8))

  def test_older_step_than_the_latest_is_refused(self):
    store = open_store(self.directory)
    save(store, 7)
    with self.assertRaisesRegex(ValueError, r"must not be below .* 7, got 6; .*discard_after\(6\)"):
      save(store, 6)

  def test_going_on_from_an_older_step(self):
    store = open_store(self.directory, keep=3)
    for step in (10, 20, 30):
      save(store, step)
    with self.assertRaises(DeathError):
      save(open_store(self.directory, on_event=mock.Mock(side_effect=DeathError)), 40)
    store.discard_after(10)
    self.assertEqual(names_in(self.directory), ["step_00000010"])
    self.assertEqual(check_latest(self.directory), (10, 10))
    save(store, 20, value=21)
    self.assertEqual(check_latest(self.directory), (20, 21))

  def test_discard_all_or_nothing(self):
    store = open_store(self.directory / "new")
    store.discard_after(3)
    save(store, 0)
    store.discard_after(0)
    self.assertEqual(store.steps(), (0,))
    store.discard_after(-1)
    self.assertIsNone(store.latest())
    with self.assertRaisesRegex(ValueError, "step must be >= -1, got -2"):
      store.discard_after(-2)
