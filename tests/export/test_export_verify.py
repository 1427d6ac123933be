"""The comparison of network, program and ONNX Runtime finds what differs, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
from export_helpers import MEAN, STD, code_names, make_case, make_images, make_variables

from bcgd_jax.export.onnx import make_onnx
from bcgd_jax.export.reference import find_margins, make_reference
from bcgd_jax.export.runtime import make_runtime
from bcgd_jax.export.verify import verify
from bcgd_jax.models import Quantization, create_model
from bcgd_jax.numerics import Binary
from bcgd_jax.training.steps import normalize

SHAPE = (12, 12, 1)
BINARY = Quantization(weight=Binary(), first=Binary(), last=Binary(), activation_bits=4)


def compare(change_runtime=lambda result: result, change_network=lambda result: result):
  model, variables, program = make_case("resnet8", SHAPE, BINARY, residual_alpha="stream")
  runtime = make_runtime(make_onnx(program, outputs=code_names(program)))
  reference = make_reference(model, variables)
  images = make_images(SHAPE, count=6)
  labels = np.arange(6) % 7
  return verify(
    program,
    [(images[:4], labels[:4]), (images[4:], labels[4:])],
    network=lambda x: change_network(
      jax.device_get(reference(normalize(jnp.asarray(x), (MEAN,), (STD,))))
    ),
    runtime=lambda x: change_runtime(runtime(x)),
  )


def test_equal_things_are_found_equal():
  found = compare()
  assert [layer.name for layer in found.layers] == [
    *("layer1_act", "layer1_0/act1", "layer1_act_2", "layer2_0/act1", "layer2_act"),
    *("layer3_0/act1", "layer3_act"),
  ]
  assert found.num_images == 6
  assert found.layers[0].num_codes == 6 * 12 * 12 * 16
  assert found.runtime_predictions == found.network_predictions == 0
  assert all(layer.runtime_differs == 0 for layer in found.layers)
  # float32 may take the other side of a threshold, not more
  assert all(layer.margin < 1e-4 for layer in found.layers)
  assert found.correct["network"] == found.correct["interpreter"] == found.correct["runtime"]


def test_a_code_of_the_runtime_that_differs_is_found():
  calls = []

  def change(result):
    calls.append(None)
    if len(calls) == 2:
      codes = result["layer2_act"].copy()
      codes[1, 2, 3, 4] += 1
      result["layer2_act"] = codes
      result["logits"] = -result["logits"]
    return result

  found = compare(change_runtime=change)
  by_name = {layer.name: layer for layer in found.layers}
  assert by_name["layer2_act"].runtime_differs == 1
  assert by_name["layer2_act"].runtime_first == (5, (2, 3, 4))
  assert sum(layer.runtime_differs for layer in found.layers) == 1
  assert found.runtime_predictions == 2


def test_of_an_image_the_first_layer_that_differs_counts():
  def change(result):
    values, codes, logits = result
    for name in ("layer1_0/act1", "layer3_act"):
      other = codes[name].copy()
      other[0] = (other[0] + 2) % 16
      codes = {**codes, name: other}
    return values, codes, logits

  by_name = {layer.name: layer for layer in compare(change_network=change).layers}
  assert by_name["layer1_0/act1"].network_differs == 2 * 12 * 12 * 16
  assert by_name["layer1_0/act1"].network_first == (0, (0, 0, 0))
  assert by_name["layer3_act"].network_differs == 0


def test_margins_by_hand():
  values = np.array([0.5, 1.25, -3.0, 20.0, 0.5, 2.0, 14.5, 13.0], np.float32)
  codes = np.array([1, 1, 0, 15, 0, 4, 15, 15], np.uint8)
  found = find_margins(values, codes, num_levels=15)
  assert found.tolist() == [0.0, 0.25, 0.0, 0.0, 0.5, 1.0, 0.0, 1.0]


def test_a_network_of_float_activations_has_logits_and_no_codes():
  model = create_model("resnet8", num_classes=7, quantization=Quantization(weight=Binary()))
  variables = make_variables(model, SHAPE, seed=0)
  x = normalize(jnp.asarray(make_images(SHAPE, count=2)), (MEAN,), (STD,))
  values, codes, logits = make_reference(model, variables)(x)
  assert values == codes == {}
  np.testing.assert_allclose(logits, model.apply(variables, x, train=False), rtol=1e-5, atol=1e-5)
