"""Packaging of bcgd_jax.

The base install is the method alone (quantizers, layers, optimizer); the training program and its
report need the `train` extra.
"""

from pathlib import Path

from setuptools import find_packages, setup

JAX = ">=0.10.2"
TRAIN = [
  "absl-py>=2.1",
  "grain>=0.2.18",
  "importlib_resources>=6.0",  # imported by tensorflow-datasets 4.9.10, which does not declare it
  "matplotlib>=3.9",
  "ml_collections>=1.1.0",
  "orbax-checkpoint>=0.12.8",
  "opencv-python-headless>=4.10",
  "pillow>=11.0",
  "rich>=13.0",
  "safetensors>=0.5",
  "scikit-learn>=1.5",  # ships the digits images
  "simplejpeg>=1.8",
  "tensorboardX>=2.6.2",
  "tensorflow-datasets>=4.9.10",
]
# What bcgd_jax.benchmarks measures with, the photographs it makes its images of, and what ONNX
# Runtime's own quantization imports.
MEASURE = ["psutil>=6.0", "scikit-image>=0.24", "sympy>=1.12"]
# What bcgd_jax.export writes, and what its checks run it with.
EXPORT = ["onnx>=1.17", "onnxruntime>=1.20"]
TEST = [
  "chex>=0.1.92",
  "mypy>=1.18",
  "pytest>=8.0",
  "pytest-xdist>=3.8",
  "ruff>=0.14",
  "torch>=2.6",  # the reference for imported weights
]

setup(
  name="bcgd_jax",
  version="0.1.0",
  description="Blended Coarse Gradient Descent: 1- to 4-bit neural networks in JAX",
  long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["bcgd_jax", "bcgd_jax.*"]),
  package_data={"bcgd_jax": ["py.typed"]},
  install_requires=[f"jax{JAX}", "flax>=0.12.8", "optax>=0.2.8", "numpy>=2.0"],
  extras_require={
    "train": TRAIN,
    "export": TRAIN + EXPORT,
    "measure": TRAIN + EXPORT + MEASURE,
    "test": TRAIN + MEASURE + EXPORT + TEST,
    # JAX for an accelerator; CUDA 13 wants a driver of 580 or newer, CUDA 12 one of 525.
    "tpu": [f"jax[tpu]{JAX}"],
    "cuda12": [f"jax[cuda12]{JAX}"],
    "cuda13": [f"jax[cuda13]{JAX}"],
    # Only for datasets whose preparation by TFDS itself runs TensorFlow (CIFAR-10, MNIST...).
    "tfds": ["tensorflow>=2.18"],
    # With what bcgd_jax.benchmarks compares.
    "bench": [*TRAIN, *EXPORT, *MEASURE, "brevitas>=0.12", "tensorflow>=2.18", "torch>=2.6"],
  },
)
