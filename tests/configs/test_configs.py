"""Every file in configs/ is complete, documented, and builds its network."""

import importlib
import re
from pathlib import Path

import jax
import pytest

from bcgd_jax.errors import UsageError
from bcgd_jax.training.recipe import example_input, make_model, model_quantizers
from bcgd_jax.training.settings import parse_settings
from configs import default

FOLDER = Path(__file__).parent.parent.parent / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SHAPES = {
  "digits": ((8, 8, 1), 10),
  "idx": ((28, 28, 1), 10),
  "cifar10": ((32, 32, 3), 10),
  "imagenet2012": ((224, 224, 3), 1000),
  "image_folder": ((64, 64, 3), 4),
}


def load(name):
  return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", NAMES)
def test_config_has_exactly_the_default_keys(name):
  def keys(mapping, prefix=""):
    for key, value in mapping.items():
      yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]

  assert set(keys(load(name).to_dict())) == set(keys(default.get_config().to_dict()))
  parse_settings(load(name).to_dict())


@pytest.mark.parametrize("name", NAMES)
def test_config_is_locked(name):
  with pytest.raises(AttributeError, match="learning_rte"):
    load(name).float.learning_rte = 1.0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "default"])
def test_header_names_paper_command_cost_and_expected_accuracy(name):
  text = (FOLDER / f"{name}.py").read_text()
  header = text.split('"""')[1]
  for word in ("Paper: Yin et al. 2018", "Recipe:", "Command:", "Cost:", "Expected:"):
    assert f"\n{word}" in header, f"{name}: no line {word!r}"
  commands = re.findall(r"--config=configs/(\w+)\.py", header)
  assert set(commands) <= {name}


@pytest.mark.parametrize("name", NAMES)
def test_network_of_the_last_phase_builds(name):
  settings = parse_settings(load(name).to_dict())
  shape, num_classes = SHAPES[settings.data.dataset]
  last = list(settings.phases.values())[-1]
  model = make_model(
    settings,
    num_classes=num_classes,
    weights=last.quantize_weights,
    activations=last.quantize_activations,
  )
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jax.numpy.zeros((1, *shape)), train=False)
  )
  alphas = [p for p, _ in jax.tree_util.tree_leaves_with_path(variables) if "alpha" in str(p[-1])]
  quantizers = model_quantizers(model, shape)
  assert example_input(shape).shape == (1, *shape)
  if "_float" in name:
    assert not quantizers
    assert not alphas
  else:
    named = re.search(r"_(\d)w4a", name)
    bits = int(named[1]) if named else settings.quantization.weight_bits
    assert (named is None) == (name == "default")
    assert {quantizer.num_bits for quantizer in quantizers.values()} == {bits}
    assert alphas


def test_unknown_key_is_named():
  config = default.get_config().to_dict()
  config["data"]["bath_size"] = 3
  with pytest.raises(UsageError, match=r"config\.data\.bath_size is not a key"):
    parse_settings(config)
