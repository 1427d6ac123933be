"""Whole runs in this process: other mappings, other optimizers, other starts."""

import jax
import numpy as np
import pytest
from tiny_config import tiny_config

from bcgd_jax.errors import UsageError
from bcgd_jax.numerics import make_projection
from bcgd_jax.report.records import read_metrics
from bcgd_jax.training.loop import train_and_evaluate
from bcgd_jax.training.run import (
  Hooks,
  abstract_tree,
  load_phase,
  map_eval_step,
  open_run,
  score_split,
)
from configs import default


@pytest.fixture(autouse=True, scope="module")
def data_dir(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    yield


def of_kind(records, kind, phase):
  return [r for r in records if r["kind"] == kind and r["phase"] == phase]


def test_binary_relax_hands_its_float_weights_to_the_quantized_phase(tmp_path):
  config = tiny_config()
  relaxed = default.get_phase().to_dict()
  relaxed |= {"epochs": 1.0, "optimizer": "binary_relax", "quantize_activations": True}
  config |= {"relaxed": relaxed, "phases": ("relaxed", "quantized"), "selection": "last"}
  config["quantized"]["epochs"] = 0.25  # one step
  config["parallel"] = "shard_map"
  entered = {}

  def keep_relaxed(event, step):
    # the last checkpoint of the relaxed phase holds w in its parameters and y in its optimizer
    if event == "committed" and step == 4 and "tree" not in entered:
      run = open_run(config, tmp_path / "run", devices=jax.devices()[:2])
      entered["tree"] = run.store.restore(4, abstract_tree(run, run.phases[0]))

  train_and_evaluate(
    config, tmp_path / "run", devices=jax.devices()[:2], hooks=Hooks(on_checkpoint=keep_relaxed)
  )
  run = open_run(config, tmp_path / "run", devices=jax.devices()[:2])
  y = load_phase(run, run.phases[0])["params"]
  w = entered["tree"]["state"].params
  q = make_projection(run.phases[0].quantizers)(y)
  # the weights after an epoch's last step are relaxed with the next epoch's eta
  expected = (y["conv1"]["kernel"] + 1.04 * q["conv1"]["kernel"]) / 2.04
  np.testing.assert_allclose(w["conv1"]["kernel"], expected, atol=1e-6)
  assert float(np.abs(w["conv1"]["kernel"] - q["conv1"]["kernel"]).max()) > 1e-3
  records = read_metrics(tmp_path / "run")
  assert [r["quantized"] for r in records if r["kind"] == "test"] == [True, True]
  assert of_kind(records, "test", "relaxed")[0]["num_examples"] == 360


def test_one_batch_is_overfitted_at_one_bit_and_best_validation_is_kept(tmp_path):
  config = tiny_config()
  config |= {"log_every_steps": 5, "checkpoint_every_steps": 5}
  config["data"] |= {"train_examples": 16, "pad": 0, "flip": False}
  for name, epochs in (("float", 20.0), ("quantized", 60.0)):
    config[name] |= {"epochs": epochs, "ema_decay": 0.0, "recalibrate_batches": 0}
    config[name] |= {"schedule": "constant", "learning_rate": 0.02, "momentum": 0.9}
  config["eval_every_epochs"] = 10.0
  result = train_and_evaluate(config, tmp_path / "run", devices=jax.devices()[:1])
  records = read_metrics(tmp_path / "run")
  assert of_kind(records, "train", "quantized")[-1]["accuracy"] == 1.0
  assert of_kind(records, "train", "quantized")[-1]["loss"] < 0.1
  assert result["weight_bits"] == 1
  run = open_run(config, tmp_path / "run", devices=jax.devices()[:1])
  best = run.store.restore(80, abstract_tree(run, run.phases[1]))["best"]
  scores = [r["accuracy"] for r in of_kind(records, "validation", "quantized")]
  assert float(best["accuracy"]) == np.float32(max(scores))


@pytest.mark.parametrize("selection", ["last", "best_validation"])
def test_last_validation_score_is_that_of_the_weights_a_phase_ends_with(tmp_path, selection):
  config = tiny_config() | {"phases": ("quantized",), "selection": selection}
  devices = jax.devices()[:1]
  train_and_evaluate(config, tmp_path / "run", devices=devices)
  run = open_run(config, tmp_path / "run", devices=devices)
  (phase,) = run.phases
  variables = run.parallel.replicate(load_phase(run, phase))
  end = score_split(run, map_eval_step(run, phase), variables, "validation")
  scores = of_kind(read_metrics(tmp_path / "run"), "validation", "quantized")
  assert [r["epoch"] for r in scores] == [1.0, 2.0, 3.0, 3.0]
  assert scores[-1]["accuracy"] == end.accuracy
  assert scores[-1]["loss"] == pytest.approx(end.loss, rel=1e-5)
  assert scores[-1]["loss"] != pytest.approx(scores[-2]["loss"], rel=1e-3)


def test_start_from_another_network_is_refused(tmp_path):
  config = tiny_config() | {"phases": ("float",), "selection": "last"}
  config["float"] |= {"epochs": 0.25, "ema_decay": 0.0}
  train_and_evaluate(config, tmp_path / "first", devices=jax.devices()[:1])
  other = config | {"model": config["model"] | {"name": "resnet14"}}
  other["phases"] = ("float", "quantized")
  other["float"] = config["float"] | {"start_from": str(tmp_path / "first")}
  with pytest.raises(UsageError, match=r"phases/float must hold weights of this run's network"):
    train_and_evaluate(other, tmp_path / "second", devices=jax.devices()[:1])
