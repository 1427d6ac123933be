"""The files of one network that inference is timed with: float, int8, and ours."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from onnxruntime import quantization as ort_quantization

from bcgd_jax.benchmarks.float_onnx import make_float_onnx
from bcgd_jax.export.onnx import make_onnx
from bcgd_jax.export.program import make_program
from bcgd_jax.export.stablehlo import write_stablehlo
from bcgd_jax.models import ImageClassifier, Quantization, create_model
from bcgd_jax.numerics import Binary, Ternary, Uniform, WeightQuantizer
from bcgd_jax.training.recipe import model_quantizers

FLOAT, INT8, XLA = "float, ONNX Runtime", "int8, ONNX Runtime", "float, XLA"

# (side of the images, classes): what each network is made for
SIZES = {"resnet20": (32, 10), "imagenet_resnet18": (224, 1000), "resnet8": (32, 10)}

_MEAN, _STD = (128 / 255,), (0.25,)
_CALIBRATION_BATCHES = 4
_QUANTIZERS: dict[int, WeightQuantizer] = {1: Binary(), 2: Ternary(), 4: Uniform(4), 8: Uniform(8)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
  """One of our networks; all activations have 4 bits.

  Attributes:
    weight_bits: of all layers.
    last_bits: of the classifier.
    residual_alpha: see `ResNet`.
  """

  weight_bits: int
  last_bits: int
  residual_alpha: str


VARIANTS = {
  "1W4A": Variant(weight_bits=1, last_bits=1, residual_alpha="network"),
  "2W4A": Variant(weight_bits=2, last_bits=2, residual_alpha="network"),
  "4W4A": Variant(weight_bits=4, last_bits=4, residual_alpha="network"),
  "1W4A, 8-bit classifier": Variant(weight_bits=1, last_bits=8, residual_alpha="network"),
  "1W4A, an alpha each": Variant(weight_bits=1, last_bits=1, residual_alpha="own"),
}


def write_files(model: str, folder: Path, *, image_size: int, num_classes: int) -> dict[str, Path]:
  """Writes every file into a folder and returns their paths by name.

  Weights and images are random: the time of an inference does not depend on them.

  Args:
    model: name of a network.
    folder: empty.
    image_size: height and width of images of 3 channels.
    num_classes: number of logits.
  """
  shape = (image_size, image_size, 3)
  network, variables = _make_network(model, shape, num_classes, Quantization.none(), "own")
  float_path = folder / "float.onnx"
  float_path.write_bytes(make_float_onnx(network, variables, image_shape=shape).SerializeToString())
  int8_path = folder / "int8.onnx"
  _write_int8(float_path, int8_path, shape)
  xla_path = folder / "float.stablehlo"
  xla_path.write_bytes(write_stablehlo(network, variables, image_shape=shape, mean=_MEAN, std=_STD))
  files = {FLOAT: float_path, INT8: int8_path, XLA: xla_path}
  for index, (name, variant) in enumerate(VARIANTS.items()):
    files[name] = folder / f"ours_{index}.onnx"
    files[name].write_bytes(_make_ours(model, shape, num_classes, variant))
  return files


def _make_network(
  name: str,
  shape: tuple[int, int, int],
  num_classes: int,
  quantization: Quantization,
  residual_alpha: str,
) -> tuple[ImageClassifier, Mapping[str, Any]]:
  model = create_model(
    name, num_classes=num_classes, quantization=quantization, residual_alpha=residual_alpha
  )
  images = jax.ShapeDtypeStruct((1, *shape), np.float32)
  abstract = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  rng = np.random.default_rng(0)
  return model, unflatten_dict(
    {path: _draw(rng, path[-1], leaf.shape) for path, leaf in flatten_dict(abstract).items()}
  )


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Values that keep the size of activations through the network, float32."""
  if name == "kernel":
    values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
  elif name in ("scale", "var"):
    values = np.ones(shape)
  elif name == "alpha":  # all different, as those of a trained network are
    values = rng.uniform(0.2, 0.6, shape)
  else:
    values = 0.1 * rng.normal(size=shape)
  return np.asarray(values, np.float32)


def _make_ours(name: str, shape: tuple[int, int, int], num_classes: int, variant: Variant) -> bytes:
  weight = _QUANTIZERS[variant.weight_bits]
  quantization = Quantization(
    weight=weight, first=weight, last=_QUANTIZERS[variant.last_bits], activation_bits=4
  )
  model, variables = _make_network(name, shape, num_classes, quantization, variant.residual_alpha)
  program = make_program(
    model,
    variables,
    image_shape=shape,
    mean=_MEAN,
    std=_STD,
    quantizers=model_quantizers(model, shape),
    facts={"model": name},
  )
  return make_onnx(program).SerializeToString()


class _RandomImages(ort_quantization.CalibrationDataReader):
  """Batches of normalised images for ONNX Runtime's calibration."""

  def __init__(self, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    rng = np.random.default_rng(0)
    self._batches = iter(
      rng.normal(size=(_CALIBRATION_BATCHES, 1, channels, height, width)).astype(np.float32)
    )

  def get_next(self) -> dict[str, np.ndarray] | None:
    batch = next(self._batches, None)
    return None if batch is None else {"image": batch}


def _write_int8(source: Path, target: Path, shape: tuple[int, int, int]) -> None:
  """ONNX Runtime's own static quantization: QDQ, 8-bit activations, weights 8-bit per channel."""
  with tempfile.TemporaryDirectory() as scratch:
    prepared = Path(scratch) / "prepared.onnx"
    ort_quantization.shape_inference.quant_pre_process(
      str(source), str(prepared), skip_symbolic_shape=True
    )
    ort_quantization.quantize_static(
      str(prepared),
      str(target),
      _RandomImages(shape),
      quant_format=ort_quantization.QuantFormat.QDQ,
      per_channel=True,
      activation_type=ort_quantization.QuantType.QUInt8,
      weight_type=ort_quantization.QuantType.QInt8,
    )
