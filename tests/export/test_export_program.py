"""Integer programs against the network, and ONNX Runtime against the program: code for code."""

import dataclasses
import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from export_helpers import MEAN, STD, code_names, make_case, make_images, network_codes
from flax import linen as nn

from bcgd_jax.errors import UsageError
from bcgd_jax.export.integer import Affine, FloatSum, Requantizer, SameStepSum, TableSum
from bcgd_jax.export.interpreter import predict, run_program
from bcgd_jax.export.onnx import make_onnx
from bcgd_jax.export.program import make_program
from bcgd_jax.models import Quantization
from bcgd_jax.numerics import Binary, Ternary, Uniform

SHAPE = (13, 11, 1)
LEVELS = ("ORT_ENABLE_ALL", "ORT_ENABLE_BASIC")


def quantize(weight, *, first="same", last="same", bits=4):
  return Quantization(
    weight=weight,
    first=weight if first == "same" else first,
    last=weight if last == "same" else last,
    activation_bits=bits,
  )


def run_onnx(model, images, *, level="ORT_ENABLE_ALL", folder=None):
  options = onnxruntime.SessionOptions()
  options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
  options.log_severity_level = 3
  if folder is not None:
    options.optimized_model_filepath = str(folder / "optimized.onnx")
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(None, {"image": images}), strict=True))


def check(case, images, *, levels=LEVELS):
  """Network, program and ONNX Runtime have the same codes; the latter two the same logits."""
  model, variables, program = case
  found = run_program(program, images)
  codes, logits = network_codes(model, variables, images)
  for name, expected in codes.items():
    # a dense layer is a convolution to one pixel here
    np.testing.assert_array_equal(found[name].reshape(expected.shape), expected, err_msg=name)
  np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
  names = code_names(program)
  for level, outputs in itertools.product(levels, (names, ())):
    result = run_onnx(make_onnx(program, outputs=outputs), images, level=level)
    for name in outputs:
      np.testing.assert_array_equal(result[name], found[name], err_msg=f"{name} {level}")
    np.testing.assert_allclose(result["logits"], found["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channel_axis", [None, -1])
@pytest.mark.parametrize(
  "weight",
  [Binary, Ternary, lambda channel_axis: Uniform(4, channel_axis=channel_axis)],
  ids=["binary", "ternary", "uniform4"],
)
def test_an_alpha_each(weight, channel_axis):
  case = make_case("resnet8", SHAPE, quantize(weight(channel_axis=channel_axis)))
  check(case, make_images(SHAPE, count=7))


# every quantizer with every number of activation bits; the other choices take turns, so that each
# meets each quantizer
COMBINATIONS = [
  (weight, bits, (None, -1)[turn % 2], ("float", "8 bits", "same")[turn % 3], turn)
  for turn, (weight, bits) in enumerate(
    itertools.product([Binary, Ternary, Uniform(3), Uniform(4), Uniform(8)], [1, 2, 4, 6, 8])
  )
]


@pytest.mark.parametrize(
  ("weight", "bits", "channel_axis", "first", "turn"),
  COMBINATIONS,
  ids=[f"{turn}-A{bits}-first {first}" for _, bits, _, first, turn in COMBINATIONS],
)
def test_combinations(weight, bits, channel_axis, first, turn):
  if isinstance(weight, Uniform):
    quantizer = dataclasses.replace(weight, channel_axis=channel_axis)
  else:
    quantizer = weight(channel_axis=channel_axis)
  choices = {"float": None, "8 bits": Uniform(8, channel_axis=channel_axis), "same": quantizer}
  last = ("same", "float", "8 bits")[turn // 3 % 3]
  quantization = quantize(quantizer, first=choices[first], last=choices[last], bits=bits)
  shape = (9, 8, (1, 3)[turn // 2 % 2])
  # a float first layer is rounded to 16 bits: a code may differ where it lies on a threshold
  case = make_case("resnet8", shape, quantization, residual_alpha="network", seed=turn)
  check(case, make_images(shape, count=1 + turn % 3))


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("lenet5", (14, 15, 1)),
    ("vgg11", (17, 16, 3)),
    ("imagenet_resnet18", (37, 35, 3)),
    ("imagenet_resnet18", (34, 38, 3)),  # even: the first convolution is one of blocks
  ],
)
def test_models(name, shape):
  stream = {"residual_alpha": "stream"} if name == "imagenet_resnet18" else {}
  check(make_case(name, shape, quantize(Binary()), **stream), make_images(shape, count=2))


def test_one_image_and_any_batch():
  case = make_case("resnet8", SHAPE, quantize(Binary()), residual_alpha="stream")
  check(case, make_images(SHAPE, count=1), levels=LEVELS[:1])
  images = make_images(SHAPE, count=7)
  one_by_one = [run_program(case[2], images[i : i + 1])["logits"] for i in range(7)]
  np.testing.assert_array_equal(run_program(case[2], images)["logits"], np.concatenate(one_by_one))
  np.testing.assert_array_equal(predict(case[2], images), np.concatenate(one_by_one).argmax(1))


def test_forms_of_sums():
  kinds = {}
  for alpha in ("own", "stream", "network"):
    *_, program = make_case("resnet20", SHAPE, quantize(Binary()), residual_alpha=alpha)
    kinds[alpha] = [type(n) for n in program.nodes if isinstance(n, SameStepSum | TableSum)]
  assert kinds["own"] == [TableSum] * 9
  assert kinds["stream"].count(SameStepSum) == 7
  assert kinds["network"] == [SameStepSum] * 9
  *_, program = make_case("imagenet_resnet18", (33, 33, 1), quantize(Binary()))
  assert sum(isinstance(node, FloatSum) for node in program.nodes) == 3


@pytest.mark.parametrize(
  ("name", "shape"), [("resnet20", SHAPE), ("imagenet_resnet18", (34, 38, 3))]
)
def test_optimized_graph_has_no_transposition_and_no_unpacking(name, shape, tmp_path):
  *_, program = make_case(name, shape, quantize(Binary()), residual_alpha="stream")
  run_onnx(make_onnx(program), make_images(shape, count=1), folder=tmp_path)
  operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
  assert not {"Transpose", "Gather"} & set(operators)
  requantized = [n for n in program.nodes if isinstance(getattr(n, "scheme", None), Requantizer)]
  assert operators.count("QLinearConv") == len(requantized) >= 14


def test_one_bit_weights_take_one_bit():
  *_, program = make_case("resnet20", (32, 32, 3), quantize(Binary()), residual_alpha="stream")
  size = len(make_onnx(program).SerializeToString())
  weights = sum(node.weights.size for node in program.nodes if hasattr(node, "weights"))
  assert size < weights / 8 + 60_000


def test_largest_shift_is_told():
  *_, program = make_case("resnet8", SHAPE, quantize(Binary(), bits=8))
  assert any(isinstance(getattr(node, "scheme", None), Affine) for node in program.nodes)
  assert 0.0 < program.facts["largest_threshold_shift"] < 1e-3


class Stranger(nn.Module):
  quantization: Quantization

  def __call__(self, x, train):
    return x


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"mean": (0.5,)}, "data.mean must be k / 255 for an integer k"),
    ({"mean": (0.1, 0.2, 0.3)}, "data.mean and data.std must be one value each"),
    ({"model": Stranger(Quantization(activation_bits=4))}, "must be one of ResNet, VGG11, LeNet5"),
    ({"model": Stranger(Quantization.none())}, "activations must be quantized"),
  ],
)
def test_bad_input(change, words):
  model, variables, _ = make_case("lenet5", (8, 8, 1), quantize(Binary()))
  arguments = {
    "model": model,
    "variables": variables,
    "image_shape": (8, 8, 1),
    "mean": (MEAN,),
    "std": (STD,),
    "quantizers": {},
    "facts": {},
  } | change
  with pytest.raises(UsageError, match=words):
    make_program(**arguments)


def test_parameters_that_are_not_finite_are_refused():
  model, variables, _ = make_case("lenet5", (8, 8, 1), quantize(Binary()))
  variables["params"]["bn1"]["scale"] = variables["params"]["bn1"]["scale"].at[0].set(np.nan)
  with pytest.raises(UsageError, match="must be finite"):
    make_program(
      model, variables, image_shape=(8, 8, 1), mean=(MEAN,), std=(STD,), quantizers={}, facts={}
    )


def test_images_of_another_shape_are_refused():
  *_, program = make_case("lenet5", (8, 8, 1), quantize(Binary()))
  with pytest.raises(ValueError, match="images must be uint8"):
    run_program(program, np.zeros((1, 8, 9, 1), np.uint8))
