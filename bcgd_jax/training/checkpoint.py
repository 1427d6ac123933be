"""Checkpoints: Orbax stores the arrays, a manifest of ours commits and verifies them.

    directory/step_00000123/state/         arrays, written by Orbax (OCDBT + Zarr), by leaf path
    directory/step_00000123/manifest.json  appears last; a directory without it is no checkpoint

Saving a step again writes step_00000123-2 beside the first and removes the first only after the
commit.
"""

import concurrent.futures
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bcgd_jax.errors import TrainingError, UsageError
from bcgd_jax.training import manifest as manifests
from bcgd_jax.training import tree_storage
from bcgd_jax.training.distributed import is_primary

STATE_NAME = "state"


class CheckpointWarning(UserWarning):
  """A damaged checkpoint was passed over in favour of an older one."""


@dataclass(frozen=True, slots=True)
class CheckpointMeta:
  """What a checkpoint says of itself.

  Attributes:
    step: training step, as given to `CheckpointStore.save`.
    phase: name of the phase the step belongs to.
    extra: the caller's own JSON values.
  """

  step: int
  phase: str
  extra: dict[str, Any]


class CheckpointStore:
  """A directory of checkpoints of one run, of which at least the latest two are kept.

  Whatever moment the process dies at, the last committed checkpoint stays: a new one counts from
  the instant its manifest appears, and older ones are removed only afterwards. One process (of
  several: all of them, calling every method together, over one shared file system) may save at a
  time; any number may read.

  Args:
    directory: where the checkpoints lie; created by the first `save`. A local or mounted path.
    config_hash: identity of the run's configuration, not empty; those of another are refused.
    keep: number of latest steps kept, >= 2 so that a damaged one has a fallback.
    on_event: called as on_event(event, step) on every process, from the thread that writes, with
      "written" between the writing of the arrays and the commit, "committed" right after it. What
      it raises, `wait` raises.
  Raises:
    ValueError, TypeError: if an argument breaks these rules.
    UsageError: if `directory` exists and is not a directory.
  """

  def __init__(
    self,
    directory: Path,
    *,
    config_hash: str,
    keep: int = 2,
    on_event: Callable[[str, int], None] | None = None,
  ) -> None:
    _check_text("config_hash", config_hash)
    _check_int("keep", keep, minimum=2)
    # Orbax refuses relative paths.
    self._directory = Path(directory).absolute()
    if self._directory.exists() and not self._directory.is_dir():
      raise UsageError(f"checkpoint directory must be a directory, got the file {directory}")
    self._config_hash = config_hash
    self._keep = keep
    self._on_event = on_event
    self._pending: concurrent.futures.Future[None] | None = None
    self._thread: concurrent.futures.ThreadPoolExecutor | None = None

  def save(self, step: int, tree: Any, *, phase: str, extra: dict[str, Any]) -> None:
    """`save_async`, then `wait`: blocks until the checkpoint is durable."""
    self.save_async(step, tree, phase=phase, extra=extra)
    self.wait()

  def save_async(self, step: int, tree: Any, *, phase: str, extra: dict[str, Any]) -> None:
    """Writes and commits a checkpoint, then removes those beyond `keep`, while the caller goes on.

    Waits for the save before it, copies the tree, and leaves the rest to a thread. What went wrong
    there is raised by the next call that waits: any method but `steps`.

    A step that is committed already is replaced, without a moment at which neither is there. What
    an interrupted save left behind is removed.

    Args:
      step: >= 0 and not below the latest committed step.
      tree: PyTree of jax.Array (on one device, or laid out over several in any way) and numpy
        arrays or scalars; at least one array with a value in it.
      phase: name of the training phase, not empty.
      extra: a dict that JSON gives back equal; NaN and tuples are not.
    Raises:
      ValueError: if `step` lies below the latest committed step (another history would win at the
        next `latest`; call `discard_after` first), `extra` is not JSON, the tree has no values, or
        a leaf is a typed PRNG key (store jax.random.key_data) or of a dtype that JAX would cast.
      TypeError: if a leaf is no array, or an argument is of the wrong type.
    """
    _check_int("step", step, minimum=0)
    _check_text("phase", phase)
    manifests.check_extra(extra)
    extra = copy.deepcopy(extra)
    self._wait_for_all()
    leaves = tree_storage.flatten_paths(tree)
    specs = tree_storage.describe_leaves(leaves, abstract=False)
    arrays = tree_storage.fetch_arrays(leaves)
    slot = self._next_slot(step)
    if is_primary():
      self._remove_uncommitted()
      slot.path.mkdir(parents=True)
    _barrier("checkpoint_prepared")
    wait_for_arrays = tree_storage.write_arrays(slot.path / STATE_NAME, arrays)

    def finish() -> None:
      # no collective of ours here: it would cross those of the training steps
      wait_for_arrays()
      self._emit("written", step)
      if is_primary():
        self._commit(slot, phase=phase, extra=extra, tree=specs)
      self._emit("committed", step)
      if is_primary():
        self._prune()

    if self._thread is None:
      self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._pending = self._thread.submit(finish)

  def wait(self) -> None:
    """Blocks until the last `save_async` of this process is durable; raises what went wrong."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def steps(self) -> tuple[int, ...]:
    """Committed steps, ascending; whether their files are intact is not looked at."""
    return tuple(sorted({slot.step for slot in self._committed()}))

  def latest(self) -> CheckpointMeta | None:
    """The newest intact checkpoint, or None where none was ever committed.

    Reads every file of it. One that is damaged is passed over with a `CheckpointWarning` naming the
    file, the rule and the values. Changes nothing on disk.

    Raises:
      UsageError: if there are checkpoints but none is intact (a run that began again at step 0
        would hide the loss), or one belongs to another configuration or format version.
      TrainingError: if processes see different checkpoints.
    """
    self._wait_for_all()
    found = self._newest_intact(self._committed())
    _require_agreement(found[0].step if found else -1)
    if found is None:
      return None
    manifest = found[1]
    return CheckpointMeta(manifest.step, manifest.phase, manifest.extra)

  def restore(self, step: int, abstract_tree: Any) -> Any:
    """Reads a checkpoint back, bit for bit, after verifying its files.

    Args:
      step: a committed step.
      abstract_tree: PyTree of jax.ShapeDtypeStruct or arrays with exactly the saved paths, shapes
        and dtypes. Containers without leaves come from here.
    Returns:
      PyTree of jax.Array with the structure of `abstract_tree`. A leaf for which that tree names a
      sharding (a ShapeDtypeStruct's, or a committed array's) has it; every other is an uncommitted
      array on the default device, which pmap(in_axes=None), jit and shard_map all accept. Weak
      types are not kept.
    Raises:
      ValueError: if `step` is not committed, or the trees differ (all differences are listed);
        nothing is ever cast, padded or left out.
      UsageError: if the checkpoint is damaged or belongs to another configuration.
    """
    _check_int("step", step, minimum=0)
    self._wait_for_all()
    slots = [slot for slot in self._committed() if slot.step == step]
    if not slots:
      raise ValueError(f"step must be one of {list(self.steps())}, got {step}")
    leaves = tree_storage.flatten_paths(abstract_tree)
    wanted = tree_storage.describe_leaves(leaves, abstract=True)
    found = self._newest_intact(slots)
    assert found is not None
    slot, manifest = found
    differences = tree_storage.list_differences(manifest.tree, wanted)
    if differences:
      raise ValueError(
        f"abstract_tree must have the paths, shapes and dtypes saved in {slot.path}, got"
        f"{differences}"
      )
    arrays = tree_storage.read_arrays(slot.path / STATE_NAME, wanted)
    placed = [tree_storage.place_array(arrays[path], leaf) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_tree), placed)

  def discard_after(self, step: int) -> None:
    """Removes every checkpoint of a step above `step`, newest first, and interrupted saves.

    For a run that goes on from an older checkpoint than the newest. -1 removes all.
    """
    _check_int("step", step, minimum=-1)
    self._wait_for_all()
    if is_primary():
      for slot in reversed(self._committed()):
        if slot.step > step:
          manifests.remove_slot(slot)
      self._remove_uncommitted()
    _barrier("checkpoint_discarded")

  def _wait_for_all(self) -> None:
    """Until this process's save and, where it is another, the primary's commit are done."""
    self.wait()
    _barrier("checkpoint_committed")

  def _committed(self) -> list[manifests.Slot]:
    return [slot for slot in manifests.list_slots(self._directory) if slot.committed]

  def _next_slot(self, step: int) -> manifests.Slot:
    committed = self._committed()
    if committed and committed[-1].step > step:
      raise ValueError(
        f"step must not be below the latest committed step {committed[-1].step}, got {step}; "
        f"call discard_after({step}) to give up the later ones"
      )
    revision = max((slot.revision for slot in committed if slot.step == step), default=0) + 1
    _require_agreement(revision)
    return manifests.make_slot(self._directory, step, revision)

  def _commit(
    self,
    slot: manifests.Slot,
    *,
    phase: str,
    extra: dict[str, Any],
    tree: dict[str, tree_storage.LeafSpec],
  ) -> None:
    manifest = manifests.Manifest(
      step=slot.step,
      phase=phase,
      config_hash=self._config_hash,
      extra=extra,
      tree=tree,
      files=manifests.seal_files(slot.path),
    )
    for parent in (self._directory, self._directory.parent):
      manifests.sync_directory(parent)
    manifests.write_manifest(slot.path, manifest)

  def _newest_intact(
    self, slots: list[manifests.Slot]
  ) -> tuple[manifests.Slot, manifests.Manifest] | None:
    problems = []
    for slot in reversed(slots):
      try:
        return slot, self._read_intact(slot)
      except manifests.DamagedCheckpointError as error:
        problems.append(str(error))
        warnings.warn(
          f"checkpoint of step {slot.step} is damaged and passed over: {error}",
          CheckpointWarning,
          stacklevel=3,
        )
    if problems:
      raise UsageError(
        f"{self._directory} must hold an intact checkpoint, got only damaged ones: "
        f"{'; '.join(problems)}; restore the files or remove the directory to begin again"
      )
    return None

  def _read_intact(self, slot: manifests.Slot) -> manifests.Manifest:
    manifest = manifests.read_manifest(slot.path)
    if manifest.config_hash != self._config_hash:
      raise UsageError(
        f"checkpoint {slot.path} must have config hash {self._config_hash}, got "
        f"{manifest.config_hash}: it belongs to another configuration; use another workdir"
      )
    if manifest.step != slot.step:
      raise manifests.DamagedCheckpointError(
        f"{slot.path / manifests.MANIFEST_NAME} must be of step {slot.step}, got {manifest.step}"
      )
    manifests.check_files(slot.path, manifest)
    return manifest

  def _prune(self) -> None:
    committed = self._committed()
    current = {slot.step: slot for slot in committed}  # the last revision of a step wins
    kept = {current[step] for step in sorted(current)[-self._keep :]}
    for slot in committed:
      if slot not in kept:
        manifests.remove_slot(slot)

  def _remove_uncommitted(self) -> None:
    for slot in manifests.list_slots(self._directory):
      if not slot.committed:
        manifests.remove_slot(slot)

  def _emit(self, event: str, step: int) -> None:
    if self._on_event is not None:
      self._on_event(event, step)


def _check_int(name: str, value: Any, *, minimum: int) -> None:
  if not isinstance(value, int) or isinstance(value, bool):
    raise TypeError(f"{name} must be a Python int, got {type(value).__name__} {value!r}")
  if value < minimum:
    raise ValueError(f"{name} must be >= {minimum}, got {value}")


def _check_text(name: str, value: Any) -> None:
  if not isinstance(value, str) or not value:
    raise ValueError(f"{name} must be a non-empty string, got {value!r}")


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _require_agreement(value: int) -> None:
  """Local folders instead of a shared one, or a stale view of it, would part the processes."""
  if jax.process_count() == 1:
    return
  primary = int(multihost_utils.broadcast_one_to_all(np.int32(value)))
  if primary != value:
    raise TrainingError(
      f"all processes must see the same checkpoints, got {primary} on process 0 and {value} on "
      f"process {jax.process_index()}; the workdir must lie on one shared file system"
    )
