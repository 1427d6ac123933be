"""gallery.npz: what a run's two networks say of test images, and which of these are shown."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_config
from training_helpers import BATCH, initial_state, make_batches, make_options

from bcgd_jax.report.gallery import GALLERY_FILE, read_gallery
from bcgd_jax.report.records import read_metrics
from bcgd_jax.training import gallery
from bcgd_jax.training.gallery import Predictions
from bcgd_jax.training.loop import train_and_evaluate
from bcgd_jax.training.parallel import AXIS_NAME, Parallel
from bcgd_jax.training.run import load_phase, open_run
from bcgd_jax.training.steps import predict_step


def quick_config():
  """The tiny run without what the gallery has no part in."""
  config = tiny_config() | {"selection": "last"}
  config["data"]["validation_examples"] = 0
  config["float"]["ema_decay"] = 0.0
  config["quantized"]["recalibrate_batches"] = 0
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(run, workdir) of the tiny run on two devices: one float phase, one quantized."""
  workdir = tmp_path_factory.mktemp("gallery") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    devices = jax.devices()[:2]
    train_and_evaluate(quick_config(), workdir, devices=devices)
    yield open_run(quick_config(), workdir, devices=devices), workdir


def test_counts_agree_with_the_test_scores(finished):
  _, workdir = finished
  found = read_gallery(workdir)
  scores = {r["phase"]: r["accuracy"] for r in read_metrics(workdir) if r["kind"] == "test"}
  both, only_float, only_quantized, none = found.counts.tolist()
  assert (both + only_float) / 360 == scores["float"]
  assert (both + only_quantized) / 360 == scores["quantized"]
  assert both + only_float + only_quantized + none == found.num_seen == found.split_size == 360
  assert only_float + only_quantized <= found.num_different <= 360 - both
  assert found.phases == ("float", "quantized")
  assert 0 < both < 360


def test_images_are_those_of_the_split_and_spaced_evenly(finished):
  run, workdir = finished
  found = read_gallery(workdir)
  positions = [0, 40, 80, 120, 160, 199, 239, 279, 319, 359]  # round(i * 359 / 9)
  assert found.num_sample == len(positions)
  for index, position in enumerate(positions):
    example = run.dataset.test[position]
    np.testing.assert_array_equal(found.images[index], example["image"])
    assert found.labels[index] == example["label"]
  others = slice(found.num_sample, None)
  assert np.all(found.float_predictions[others] != found.quantized_predictions[others])
  assert found.class_names == tuple("0123456789")


def test_written_again_it_is_the_same_file(finished):
  run, workdir = finished
  first = (workdir / GALLERY_FILE).read_bytes()
  (workdir / GALLERY_FILE).unlink()
  gallery.write_run_gallery(run, load_phase(run, run.phases[-1]))
  assert (workdir / GALLERY_FILE).read_bytes() == first


def test_large_split_is_looked_at_in_part(finished, monkeypatch):
  run, _ = finished
  before, after = run.phases
  ends = [(phase, load_phase(run, phase)) for phase in (before, after)]
  whole = gallery.predict_test(run, *ends)
  monkeypatch.setattr(gallery, "MAX_EXAMPLES", 150)  # batches are of 112
  part = gallery.predict_test(run, *ends)
  for name in Predictions._fields:
    np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:150])
  assert whole.mask.tolist() == [True] * 360


def test_several_processes_write_none(finished, monkeypatch):
  run, workdir = finished
  (workdir / GALLERY_FILE).rename(workdir / "kept")
  with monkeypatch.context() as patch:
    patch.setattr(jax, "process_count", lambda: 2)
    gallery.write_run_gallery(run, None)
  assert not (workdir / GALLERY_FILE).exists()
  (workdir / "kept").rename(workdir / GALLERY_FILE)


@pytest.mark.parametrize(
  ("quantized", "expected"),
  [
    ([False, True], (0, 1)),
    ([False, False, True], (1, 2)),
    ([False, True, True], (0, 2)),
    ([True], None),
    ([False], None),
    ([False, False], None),
    ([True, False], None),
    ([True, True], None),
  ],
)
def test_phases_that_are_compared(quantized, expected):
  phases = [SimpleNamespace(is_quantized=value) for value in quantized]
  found = gallery.compared_phases(phases)
  assert found == (expected and tuple(phases[index] for index in expected))


def make_predictions(size, *, different=(), unread=()):
  labels = np.arange(size, dtype=np.int32) % 10
  quantized = labels.copy()
  quantized[list(different)] = 11
  mask = np.ones(size, np.bool_)
  mask[list(unread)] = False
  return Predictions(labels, labels, quantized, mask)


@pytest.mark.parametrize(
  ("found", "sample", "others"),
  [
    (make_predictions(4, different=[1]), [0, 1, 2, 3], []),
    (make_predictions(4, unread=[0, 2]), [1, 3], []),
    # the sample is every 10th of 0..90; of the others every disagreement is shown
    (make_predictions(91, different=[10, 11, 45]), list(range(0, 91, 10)), [11, 45]),
    (make_predictions(91, different=[11, 45], unread=[45]), None, [11]),
    (make_predictions(91, different=range(91)), None, [1, 11, 21, 31, 41, 49, 59, 69, 79, 89]),
  ],
)
def test_images_that_are_shown(found, sample, others):
  shown, different = gallery.choose_positions(found)
  assert sample is None or shown.tolist() == sample
  assert len(shown) <= gallery.NUM_SHOWN
  assert np.all(found.mask[shown])
  assert not set(shown) & set(different)
  assert len(different) <= gallery.NUM_SHOWN
  assert different.tolist() == others


def test_outcomes_are_counted_without_unread_images():
  found = Predictions(
    labels=np.array([1, 1, 1, 1, 1, 1]),
    float_=np.array([1, 1, 1, 0, 2, 2]),
    quantized=np.array([1, 2, 2, 1, 3, 3]),
    mask=np.array([True, True, True, True, True, False]),
  )
  assert gallery.count_outcomes(found).tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_predictions_come_in_the_order_of_the_batch(mode):
  options = make_options(np.float32, axis_name=AXIS_NAME)
  state = initial_state(options, np.float32)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  (batch,) = make_batches(np.float32, 1)
  parallel = Parallel(mode, jax.devices()[:4])
  mapped = parallel.map_step(
    functools.partial(predict_step, options=options), num_replicated=1, donate=False
  )
  found = mapped(parallel.replicate(variables), parallel.place_batch(batch))
  model = options.model.clone(axis_name=None)
  logits = jax.jit(functools.partial(model.apply, train=False))(variables, batch["image"])
  expected = np.asarray(jnp.argmax(logits, axis=-1))
  np.testing.assert_array_equal(np.asarray(found), expected)
  assert found.shape == (BATCH,)
  assert len(set(expected.tolist())) > 1
