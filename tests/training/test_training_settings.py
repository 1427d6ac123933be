"""Bad configurations are refused with the key, the rule and the value."""

import pytest

from bcgd_jax.errors import UsageError
from bcgd_jax.training.settings import config_hash, parse_settings, to_json
from configs import default


def changed(**changes):
  """The default configuration with `block__key=value` changes."""
  config = default.get_config().to_dict()
  for name, value in changes.items():
    *blocks, key = name.split("__")
    target = config
    for block in blocks:
      target = target[block]
    target[key] = value
  return config


BAD = {
  "weight_bits": ({"quantization__weight_bits": 12}, r"quantization\.weight_bits .* got 12"),
  "activation_bits": ({"quantization__activation_bits": 0}, r"activation_bits .* got 0"),
  "wrong_type": ({"data__batch_size": "64"}, r"data\.batch_size must be of type int, got '64'"),
  "bool_is_no_int": ({"data__pad": True}, r"data\.pad must be of type int, got True"),
  "float_for_int": ({"data__batch_size": 64.5}, r"data\.batch_size must be of type int, got 64\.5"),
  "infinite": ({"float__learning_rate": float("inf")}, r"float\.learning_rate must be finite"),
  "choice": ({"parallel": "pjit"}, r"parallel must be one of 'pmap', 'shard_map', got 'pjit'"),
  "batch": ({"data__batch_size": 0}, r"data\.batch_size must be >= 1, got 0"),
  "std": ({"data__std": (0.0,)}, r"data\.std must be positive"),
  "std_length": ({"data__std": (0.1, 0.2)}, r"data\.std must be positive and as long as mean"),
  "momentum": ({"quantized__momentum": 1.0}, r"quantized\.momentum must be in \[0, 1\), got 1\.0"),
  "rho": ({"quantized__rho": 1.5}, r"quantized\.rho must be in \[0, 1\], got 1\.5"),
  "distill_weight": ({"quantized__distill_weight": 1.5}, r"distill_weight must be .* got 1\.5"),
  "temperature": ({"float__distill_temperature": 0}, r"distill_temperature must be > 0, got 0\.0"),
  "no_teacher": (
    {"float__distill_weight": 0.5},
    r"config\.float\.distill_weight must be 0 in a first phase, which has no teacher, got 0\.5",
  ),
  "trains_nothing": (
    {"quantized__start_from": "runs/a"},
    r"config\.quantized\.start_from must be empty in the last phase, got 'runs/a'",
  ),
  "decay": ({"float__decay_epochs": (80.0, 20.0)}, r"float\.decay_epochs must be .* increasing"),
  "checkpoint": ({"checkpoint_every_steps": 75}, r"checkpoint_every_steps .* got 75"),
  "selection": ({"selection": "best_validation"}, r"data\.validation_examples must be > 0"),
  "phase_name": ({"phases": ("float", "quantised")}, r"phases names 'quantised'"),
  "no_phase": ({"phases": ()}, r"phases must be a non-empty tuple"),
  "relax": ({"quantized__optimizer": "binary_relax"}, r"quantized\.quantize_weights must be False"),
  "alpha_order": (
    {"phases": ("quantized", "float")},
    r"float\.quantize_activations must stay True",
  ),
  "block": ({"data": 3}, r"config\.data must be a block of keys, got 3"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_value_is_named(changes, message):
  with pytest.raises(UsageError, match=message):
    parse_settings(changed(**changes))


def test_missing_key_is_named():
  config = changed()
  del config["quantized"]["rho"]
  with pytest.raises(UsageError, match=r"config\.quantized\.rho is missing"):
    parse_settings(config)


def test_phases_run_in_the_order_named_and_others_are_left_out():
  assert list(parse_settings(changed()).phases) == ["float", "quantized"]
  assert list(parse_settings(changed(phases=("float",))).phases) == ["float"]


def test_lists_of_json_are_tuples_again():
  config = changed()
  assert parse_settings({**config, "phases": list(config["phases"])}) == parse_settings(config)


def test_hash_ignores_order_and_sees_every_value():
  config = changed()
  reordered = dict(reversed(config.items()))
  assert config_hash(config) == config_hash(reordered)
  assert config_hash(config) != config_hash(changed(float__learning_rate=0.10001))
  assert to_json(config) == to_json(reordered)
