"""Coarse gradient descent on the two-layer network, by closed forms or by samples."""

import dataclasses
import functools
import numbers

import jax
import jax.numpy as jnp

from bcgd_jax.theory import monte_carlo, two_layer

TRUE_GRADIENT = "true"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
  """The iterates and what they are worth: entry t is after t steps, entry 0 the start."""

  v: jax.Array  # [T + 1, m]
  w: jax.Array  # [T + 1, n]
  loss: jax.Array  # [T + 1], population loss, also along sampled descent
  theta: jax.Array  # [T + 1], angle between w and w_star in radians
  norm_w: jax.Array  # [T + 1], |w|
  distance_v: jax.Array  # [T + 1], |v - v_star|


def coarse_gradient_descent(
  v: jax.Array,
  w: jax.Array,
  v_star: jax.Array,
  w_star: jax.Array,
  *,
  ste: str,
  learning_rate: jax.typing.ArrayLike,
  num_steps: int,
  train_v: bool,
  normalize_w: bool = False,
  key: jax.Array | None = None,
  batch_size: int | None = None,
) -> Trajectory:
  """Descends with a coarse gradient in w and, if asked to, the true gradient in v.

    w <- w - learning_rate * g_w(v, w)        then  w <- w / |w|  with normalize_w
    v <- v - learning_rate * grad_v(v, w)     with train_v; both gradients at the same (v, w)

  Without key, g_w and grad_v are expectations (`two_layer.coarse_grad`, `population_grad`). With
  key and batch_size they are means over batch_size fresh inputs a step, from `jax.grad` through the
  quantizer (`monte_carlo.sample_loss`). Works under jit and vmap over anything but the static
  arguments.

  Args:
    v, v_star: [m], float32 or float64.
    w, w_star: [n], v's dtype; w_star not zero.
    ste: "identity", "relu", "clipped", or "true" for the gradient of the population loss in w
      (not with key: a sampled loss has gradient 0 almost everywhere).
    learning_rate: [], > 0.
    num_steps: static int >= 1.
    train_v: whether v moves.
    normalize_w: whether w is brought to length 1 after each step; the start is taken as given.
    key: [], a typed PRNG key, or None.
    batch_size: static int >= 1 with key, else None.
  Returns:
    num_steps + 1 entries in v's dtype.
  Raises:
    ValueError: if an argument is out of range, shapes do not fit, "true" comes with a key, or only
      one of key and batch_size is given.
    TypeError: if dtypes do not fit, or num_steps or batch_size is not an int.
  Source: Yin et al. 2019 (arXiv 1903.05662), trainable v without normalisation; fixed v
    is, from memory and not confirmed, the setting of BCGD (arXiv 1808.05240). Normalisation: our
    choice.
  """
  v, w, v_star, w_star = two_layer.check_arguments(v, w, v_star, w_star)
  two_layer.check_choice("ste", ste, (*two_layer.ESTIMATORS, TRUE_GRADIENT))
  monte_carlo.check_count("num_steps", num_steps, minimum=1)
  if isinstance(learning_rate, numbers.Real) and not 0 < learning_rate < float("inf"):
    raise ValueError(f"learning_rate must be > 0 and finite, got {learning_rate}")
  if (key is None) != (batch_size is None):
    raise ValueError(
      f"key and batch_size must be given both or neither, got {key} and {batch_size}"
    )
  if batch_size is not None:
    monte_carlo.check_count("batch_size", batch_size, minimum=1)
    if ste == TRUE_GRADIENT:
      raise ValueError(
        f"ste must be one of {', '.join(two_layer.ESTIMATORS)} with sampled inputs, got {ste!r}"
      )
  return _descend(
    v,
    w,
    v_star,
    w_star,
    jnp.asarray(learning_rate, v.dtype),
    key,
    ste=ste,
    num_steps=num_steps,
    train_v=train_v,
    normalize_w=normalize_w,
    batch_size=batch_size,
  )


@functools.partial(
  jax.jit, static_argnames=("ste", "num_steps", "train_v", "normalize_w", "batch_size")
)
def _descend(
  v: jax.Array,
  w: jax.Array,
  v_star: jax.Array,
  w_star: jax.Array,
  learning_rate: jax.Array,
  key: jax.Array | None,
  *,
  ste: str,
  num_steps: int,
  train_v: bool,
  normalize_w: bool,
  batch_size: int | None,
) -> Trajectory:
  def compute_grads(v: jax.Array, w: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    if key is None or batch_size is None:
      return _compute_expected_grads(v, w, v_star, w_star, ste=ste)
    shape = (batch_size, v.size, w.size)
    z = jax.random.normal(jax.random.fold_in(key, index), shape, v.dtype)

    def compute_loss(v: jax.Array, w: jax.Array) -> jax.Array:
      return jnp.mean(monte_carlo.sample_loss(v, w, v_star, w_star, z, ste=ste))

    return jax.grad(compute_loss, argnums=(0, 1))(v, w)

  def step(
    weights: tuple[jax.Array, jax.Array], index: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    v, w = weights
    grad_v, grad_w = compute_grads(v, w, index)
    moved = w - learning_rate * grad_w
    if normalize_w:
      moved, _ = two_layer.split_norm(moved)
    return (v - learning_rate * grad_v if train_v else v, moved), weights

  last, before = jax.lax.scan(step, (v, w), jnp.arange(num_steps))
  all_v, all_w = (
    jnp.concatenate([some, one[None]]) for some, one in zip(before, last, strict=True)
  )

  def assess(v: jax.Array, w: jax.Array) -> Trajectory:
    return Trajectory(
      v=v,
      w=w,
      loss=two_layer.population_loss(v, w, v_star, w_star),
      theta=two_layer.angle(w, w_star),
      norm_w=two_layer.split_norm(w)[1],
      distance_v=two_layer.split_norm(v - v_star)[1],
    )

  return jax.vmap(assess)(all_v, all_w)


def _compute_expected_grads(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array, *, ste: str
) -> tuple[jax.Array, jax.Array]:
  grad_v, grad_w = two_layer.population_grad(v, w, v_star, w_star)
  if ste != TRUE_GRADIENT:
    grad_w = two_layer.coarse_grad(v, w, v_star, w_star, ste=ste)
  return grad_v, grad_w
