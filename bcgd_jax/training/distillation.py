"""Training toward the outputs of a network trained before, the teacher."""

from typing import cast

import jax
import optax
from flax import linen as nn

from bcgd_jax.training.steps import AuxFn, Batch, LossFn, PyTree, cross_entropy


def distillation(*, weight: float, temperature: float, label_smoothing: float = 0.0) -> LossFn:
  """(1 - l) CE(label, student) + l T^2 KL(softmax(teacher / T) || softmax(student / T)).

  The divergence, unlike a cross-entropy with the teacher's outputs, is zero where the student
  equals the teacher: the teacher's entropy, a constant, is not in it. With it, T^2 keeps the size
  of the gradient roughly independent of T.

  Args:
    weight: l, in [0, 1].
    temperature: T > 0.
    label_smoothing: of the labels in CE; the teacher's outputs are not smoothed.
  Returns:
    The loss of each example; its `aux` is the teacher's logits, [b, classes] like the student's.

  Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network"
  (arXiv:1503.02531), for T and T^2; the weights 1 - l and l are our choice.
  """
  label_loss = cross_entropy(label_smoothing)

  def loss_fn(logits: jax.Array, batch: Batch, aux: PyTree) -> jax.Array:
    divergence: jax.Array = optax.losses.kl_divergence_with_log_targets(
      jax.nn.log_softmax(logits / temperature), jax.nn.log_softmax(aux / temperature)
    )
    return (1 - weight) * label_loss(logits, batch, None) + weight * temperature**2 * divergence

  return loss_fn


def teacher_logits(model: nn.Module) -> AuxFn:
  """The `aux_fn` of `distillation`: (the teacher's variables, images) -> logits [b, classes].

  Args:
    model: the teacher as it is scored; it runs on its running statistics and changes nothing.
  """

  def aux_fn(variables: PyTree, images: jax.Array) -> jax.Array:
    return cast(jax.Array, model.apply(variables, images, train=False))

  return aux_fn
