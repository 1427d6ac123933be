"""ONNX Runtime on the CPU."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime


def make_runtime(model: onnx.ModelProto) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
  """A function of uint8 images that runs a model and returns its outputs by name."""
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # warnings are of its own optimizations
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )
  names = [output.name for output in session.get_outputs()]
  return lambda images: dict(zip(names, session.run(None, {"image": images}), strict=True))
