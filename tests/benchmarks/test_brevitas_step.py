"""The PyTorch opponent has our networks' layers; runs where the extra `bench` is installed."""

import jax
import jax.numpy as jnp
import pytest

from bcgd_jax.errors import UsageError
from bcgd_jax.models import Quantization, create_model

pytest.importorskip("torch")
pytest.importorskip("brevitas")

from bcgd_jax.benchmarks import brevitas_step


@pytest.mark.parametrize("model", ["resnet8", "imagenet_resnet18"])
def test_float_network_has_our_parameters(model):
  ours = create_model(model, num_classes=10, quantization=Quantization.none())
  variables = jax.eval_shape(
    lambda key: ours.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0)
  )
  theirs = brevitas_step.build_network(model, num_classes=10, quantized=False)
  sizes = sorted(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  assert sizes == sorted(p.numel() for p in theirs.parameters())


def test_networks_without_residuals_are_refused():
  with pytest.raises(UsageError, match="residual network"):
    brevitas_step.check_model("vgg11")
