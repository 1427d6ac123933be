"""A two-layer quantized network on subspace data, trained by coarse gradients on the hinge loss.

Of the paper (Long, Yin, Xin 2021, arXiv 2011.11256) only the abstract could be read: a class of
monotone estimators lets coarse gradient descent reach zero loss, hence perfect classification. All
that is more precise here (data, network, loss, the class of estimators, its three members) is our
reading of it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.numerics import InputEstimator, quantized_relu
from bcgd_jax.theory import monte_carlo


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SubspaceData:
  """Classes in linear subspaces that are linearly independent, orthogonal or not.

  A point of class i is bases[i] @ c, c with a direction uniform on the sphere and a length uniform
  in [inner_radius, outer_radius]: bounded support, away from the origin that all subspaces share.

  Attributes:
    bases: [classes, dim, subspace_dim], float32 or float64; columns span the class's subspace.
    inner_radius, outer_radius: 0 < inner_radius <= outer_radius, in units of the bases' columns.
  Raises:
    ValueError: if the radii break their rule, or the subspaces are linearly dependent.
  Source: our reading of arXiv 2011.11256; the distance from the origin is our choice.
  """

  bases: jax.Array
  inner_radius: float = 0.5
  outer_radius: float = 1.0

  def __post_init__(self) -> None:
    if self.bases.ndim != 3:
      raise ValueError(f"bases must be [classes, dim, subspace_dim], got shape {self.bases.shape}")
    radii = (self.inner_radius, self.outer_radius)
    if not 0 < self.inner_radius <= self.outer_radius:
      raise ValueError(f"radii must satisfy 0 < inner_radius <= outer_radius, got {radii}")
    stacked = np.hstack(list(np.asarray(self.bases, np.float64)))
    rank = np.linalg.matrix_rank(stacked)
    if rank < stacked.shape[1]:
      raise ValueError(
        f"bases must have {stacked.shape[1]} linearly independent columns in all, got rank {rank}"
      )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingHistory:
  """What `train` saw before each step and after the last: T + 1 entries an array.

  Attributes:
    train_loss, test_loss: [T+1]; mean hinge loss.
    train_accuracy, test_accuracy: [T+1]; share of points whose class wins strictly.
    gradient_norm: [T+1]; Euclidean norm of the coarse gradient.
    weights: [neurons, dim]; first layer after the last step.
  """

  train_loss: jax.Array
  train_accuracy: jax.Array
  test_loss: jax.Array
  test_accuracy: jax.Array
  gradient_norm: jax.Array
  weights: jax.Array


def vanilla_relu(x: jax.Array, alpha: jax.Array, num_levels: int) -> jax.Array:
  """g(x) = 1{x > 0}, the derivative of the ReLU; see `train` for the class it belongs to."""
  del alpha, num_levels
  return (x > 0).astype(x.dtype)


def log_tailed(x: jax.Array, alpha: jax.Array, num_levels: int) -> jax.Array:
  """g(x) = 1 for 0 < x <= L alpha, 1 / (1 + x/alpha - L) beyond, 0 for x <= 0.

  The derivative of a ReLU that goes on as a logarithm above the staircase's top L alpha. Bounded
  away from 0 on bounded x only. Source: the name is known, the formula our reading.
  """
  beyond = jnp.maximum(x / alpha - num_levels, 0)
  return jnp.where(x > 0, 1 / (1 + beyond), jnp.zeros_like(x))


def reverse_exponential(x: jax.Array, alpha: jax.Array, num_levels: int) -> jax.Array:
  """g(x) = exp(-x / (L alpha)) for x > 0, else 0.

  The derivative of L alpha (1 - exp(-x / (L alpha))), which rises to the top level. Bounded away
  from 0 on bounded x only. Source: the name is known, the formula our reading.
  """
  decayed = jnp.exp(-jnp.maximum(x, 0) / (num_levels * alpha))
  return jnp.where(x > 0, decayed, jnp.zeros_like(x))


def make_subspace_data(
  key: jax.Array, *, num_classes: int, subspace_dim: int, dim: int
) -> SubspaceData:
  """Draws subspaces at random angles: unit Gaussian directions, not orthogonal to each other.

  Args:
    key: of jax.random.
    num_classes, subspace_dim: at least 1 each.
    dim: of the space; at least num_classes * subspace_dim. The closer to it, the smaller the
      angles between the subspaces.
  Raises:
    ValueError: if dim is too small.
  """
  if dim < num_classes * subspace_dim:
    raise ValueError(
      f"dim must be at least num_classes * subspace_dim = {num_classes * subspace_dim}, got {dim}"
    )
  directions = jax.random.normal(key, (num_classes, dim, subspace_dim))
  norms = jnp.linalg.norm(directions, axis=1, keepdims=True)
  return SubspaceData(bases=directions / norms)


def sample(key: jax.Array, data: SubspaceData, num_samples: int) -> tuple[jax.Array, jax.Array]:
  """Draws points of all classes in turn.

  Returns:
    x: [num_samples, dim], of the bases' dtype; labels: [num_samples], int32, 0, 1, ..., 0, 1, ...
  """
  return _sample(key, data.bases, radii=(data.inner_radius, data.outer_radius), size=num_samples)


@functools.partial(jax.jit, static_argnames=("radii", "size"))
def _sample(
  key: jax.Array, bases: jax.Array, *, radii: tuple[float, float], size: int
) -> tuple[jax.Array, jax.Array]:
  direction_key, radius_key = jax.random.split(key)
  num_classes, _, subspace_dim = bases.shape
  labels = jnp.arange(size, dtype=jnp.int32) % num_classes
  directions = jax.random.normal(direction_key, (size, subspace_dim), bases.dtype)
  directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
  low, high = radii
  lengths = jax.random.uniform(radius_key, (size, 1), bases.dtype, minval=low, maxval=high)
  x = jnp.einsum("ndk,nk->nd", bases[labels], lengths * directions, precision="highest")
  return x, labels


def make_output_layer(num_classes: int, neurons_per_class: int) -> jax.Array:
  """The plainest output layer: [classes, neurons], 1 where a neuron is its class's, else 0."""
  return jnp.repeat(jnp.eye(num_classes, dtype=jnp.float32), neurons_per_class, axis=1)


def network(
  w: jax.Array, v: jax.Array, x: jax.Array, *, num_bits: int, estimator: str | InputEstimator
) -> jax.Array:
  """o = V sigma(W x), sigma the ceil staircase of unit step and 2^num_bits - 1 levels above 0.

  Args:
    w: [neurons, dim], float32 or float64; v: [classes, neurons] and x: [points, dim], of its dtype.
    num_bits: in [1, 8].
    estimator: sigma's derivative in the backward pass, the `ste` of `numerics.quantized_relu`.
  Returns:
    [points, classes].
  """
  pre = jnp.matmul(x, w.T, precision="highest")
  hidden = quantized_relu(pre, jnp.ones([], pre.dtype), num_bits=num_bits, ste=estimator)
  return jnp.matmul(hidden, v.T, precision="highest")


def margins(outputs: jax.Array, labels: jax.Array) -> jax.Array:
  """o_y - max over the other classes; the first of equal ones is the class that takes the gradient.

  Args:
    outputs: [points, classes], at least two classes; labels: [points], integers.
  Returns:
    [points].
  """
  own = jnp.arange(outputs.shape[1])[None, :] == labels[:, None]
  rival = jnp.argmax(jnp.where(own, -jnp.inf, outputs), axis=1)
  take = functools.partial(jnp.take_along_axis, outputs, axis=1)
  return (take(labels[:, None]) - take(rival[:, None]))[:, 0]


def hinge_loss(outputs: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean of max(0, 1 - margin); its derivative at a margin of exactly 1 is 0, not a half.

  Outputs are whole numbers with the plainest output layer, so that margins of 1 are common.
  """
  shortfall = 1 - margins(outputs, labels)
  return jnp.mean(jnp.where(shortfall > 0, shortfall, jnp.zeros_like(shortfall)))


def loss_and_coarse_gradient(
  w: jax.Array,
  v: jax.Array,
  x: jax.Array,
  labels: jax.Array,
  *,
  num_bits: int,
  estimator: str | InputEstimator,
) -> tuple[jax.Array, jax.Array]:
  """The hinge loss on points and its coarse gradient in w, by the chain rule with the estimator.

  For neuron j: -mean over points of 1{loss > 0} (v_yj - v_ij) g(w_j x) x, i the strongest rival.

  Returns:
    loss: []; gradient: of w's shape.
  """

  def loss_fn(w: jax.Array) -> jax.Array:
    return hinge_loss(network(w, v, x, num_bits=num_bits, estimator=estimator), labels)

  return jax.value_and_grad(loss_fn)(w)


def train(
  key: jax.Array,
  data: SubspaceData,
  v: jax.Array,
  *,
  num_steps: int,
  num_train: int,
  num_test: int,
  learning_rate: float,
  num_bits: int,
  estimator: str | InputEstimator,
  init_scale: float = 0.1,
) -> TrainingHistory:
  """Coarse gradient descent in the first layer on a fixed training set.

    w <- w - learning_rate * coarse gradient over the whole training set

  from w Gaussian of standard deviation init_scale. Held-out points are drawn anew at every step.

  The estimators g of the paper's class, in our reading: g(x) = 0 for x <= 0 and 0 < low <= g(x) <=
  high for x > 0. `vanilla_relu` is in it; `log_tailed` and `reverse_exponential` are on bounded x.

  Args:
    key: of jax.random; split in three, for the training set, the start and the held-out points.
    data: the classes.
    v: [classes, neurons], of the bases' dtype; not trained. Each class has a neuron with a positive
      weight, and a neuron positive for one class is 0 for the others.
    num_steps: at least 0; num_train, num_test: points, at least 1 each.
    learning_rate, init_scale: > 0, finite.
    num_bits, estimator: as for `network`.
  Raises:
    ValueError: if an argument breaks its rule above.
    TypeError: if num_steps, num_train or num_test is not an int.
  Source: our reading of arXiv 2011.11256; sizes and start are our choice.
  """
  _check_output_layer(np.asarray(v), num_classes=data.bases.shape[0])
  for name, count, least in (
    ("num_steps", num_steps, 0),
    ("num_train", num_train, 1),
    ("num_test", num_test, 1),
  ):
    monte_carlo.check_count(name, count, minimum=least)
  for name, value in (("learning_rate", learning_rate), ("init_scale", init_scale)):
    if not 0 < value < float("inf"):
      raise ValueError(f"{name} must be above 0 and finite, got {value}")
  data_key, start_key, test_key = jax.random.split(key, 3)
  shape = (v.shape[1], data.bases.shape[1])
  measured = _train(
    init_scale * jax.random.normal(start_key, shape, v.dtype),
    v,
    *sample(data_key, data, num_train),
    data.bases,
    test_key,
    jnp.asarray(learning_rate, v.dtype),
    radii=(data.inner_radius, data.outer_radius),
    num_steps=num_steps,
    num_test=num_test,
    num_bits=num_bits,
    estimator=estimator,
  )
  return TrainingHistory(**measured)


@functools.partial(
  jax.jit, static_argnames=("radii", "num_steps", "num_test", "num_bits", "estimator")
)
def _train(
  start: jax.Array,
  v: jax.Array,
  x: jax.Array,
  labels: jax.Array,
  bases: jax.Array,
  test_key: jax.Array,
  learning_rate: jax.Array,
  *,
  radii: tuple[float, float],
  num_steps: int,
  num_test: int,
  num_bits: int,
  estimator: str | InputEstimator,
) -> dict[str, jax.Array]:
  run = functools.partial(network, num_bits=num_bits, estimator=estimator)
  differentiate = functools.partial(
    loss_and_coarse_gradient, num_bits=num_bits, estimator=estimator
  )

  def step(
    before_and_now: tuple[jax.Array, jax.Array], count: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
    _, w = before_and_now
    train_loss, gradient = differentiate(w, v, x, labels)
    own_key = jax.random.fold_in(test_key, count)
    fresh, fresh_labels = _sample(own_key, bases, radii=radii, size=num_test)
    outputs = run(w, v, fresh)
    measured = {
      "train_loss": train_loss,
      "train_accuracy": _accuracy(run(w, v, x), labels),
      "test_loss": hinge_loss(outputs, fresh_labels),
      "test_accuracy": _accuracy(outputs, fresh_labels),
      "gradient_norm": jnp.linalg.norm(gradient),
    }
    return (w, w - learning_rate * gradient), measured

  # One step more than asked for measures the last weights; its own update is thrown away.
  (w, _), measured = jax.lax.scan(step, (start, start), jnp.arange(num_steps + 1))
  return measured | {"weights": w}


def _accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
  # A tie is a mistake; no mistakes give exactly 1, which a mean of ones need not.
  return 1 - jnp.mean((margins(outputs, labels) <= 0).astype(outputs.dtype))


def _check_output_layer(v: np.ndarray, *, num_classes: int) -> None:
  if v.ndim != 2 or v.shape[0] != num_classes or num_classes < 2:
    raise ValueError(f"v must be [classes, neurons] for {num_classes} >= 2 classes, got {v.shape}")
  if not (v > 0).any(axis=1).all():
    raise ValueError(f"v must have a positive weight in every row, got {v.tolist()}")
  positive = (v > 0).any(axis=0)
  if ((v[:, positive] != 0).sum(axis=0) > 1).any():
    raise ValueError(
      f"v must be 0 for the other classes where a neuron is positive for one, got {v.tolist()}"
    )
