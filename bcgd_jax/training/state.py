"""What a training step reads and writes."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

PyTree = Any


@flax.struct.dataclass
class TrainState:
  """The state of one phase.

  Attributes:
    step: int32 []; optimizer steps taken over the whole run. It is the position in the data, and
      random keys are folded from it.
    params: float32 tree; the float weights w_f (BinaryRelax: the relaxed ones).
    batch_stats: float32 tree of batch norm's running statistics; {} without batch norm.
    opt_state: the optimizer's state; fresh in each phase.
    ema: None, or {"params", "batch_stats"}: exponential averages of both.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: optax.OptState
  ema: PyTree | None


def create_state(
  variables: PyTree, tx: optax.GradientTransformation, *, step: int = 0, with_ema: bool = False
) -> TrainState:
  """Wraps a model's variables for training; the optimizer's state is fresh."""
  params = variables["params"]
  batch_stats = variables.get("batch_stats", {})
  ema = {"params": params, "batch_stats": batch_stats} if with_ema else None
  return TrainState(
    step=jnp.asarray(step, jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=tx.init(params),
    ema=jax.tree.map(jnp.copy, ema),
  )


def eval_variables(state: TrainState, float_params: Callable[[TrainState], PyTree]) -> PyTree:
  """The variables to score and to hand on: the averages where they are kept, else the current.

  Args:
    state: of the phase.
    float_params: state -> its float weights (BinaryRelax keeps them in the optimizer's state).
  """
  if state.ema is not None:
    return state.ema
  return {"params": float_params(state), "batch_stats": state.batch_stats}


def init_variables(model: nn.Module, image_shape: tuple[int, ...], key: jax.Array) -> PyTree:
  """Initial variables of a model called as `model(x, train)`.

  Args:
    model: a module whose call takes x, float32 [batch, *image_shape], and `train`.
    image_shape: shape of one example.
    key: typed PRNG key.
  """
  x = jnp.zeros((1, *image_shape), jnp.float32)
  return jax.jit(lambda key: model.init(key, x, train=False))(key)
