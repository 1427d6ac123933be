"""Sample means of what `two_layer` has in closed form, by the quantizer and estimators that train.

The network here is run, not analysed: forward through `numerics.quantized_relu` at one bit and step
length 1, which is step(x) = 1{x > 0}, backward through its coarse derivative by `jax.grad`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bcgd_jax import numerics
from bcgd_jax.theory import two_layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
  """A sample mean and its standard error, each of the quantity's shape."""

  mean: jax.Array
  standard_error: jax.Array

  def compute_deviations(self, expected: jax.Array) -> jax.Array:
    """(mean - expected) / standard_error; 0 where a constant is met, inf where it is missed."""
    difference = self.mean - expected
    is_constant = self.standard_error == 0
    missed = jnp.where(difference == 0, 0.0, jnp.sign(difference) * jnp.inf)
    return jnp.where(
      is_constant, missed, difference / jnp.where(is_constant, 1.0, self.standard_error)
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
  """What `estimate` returns."""

  loss: Estimate  # []
  grad_v: Estimate  # [m]
  coarse_grad: dict[str, Estimate]  # by estimator, each [n]


class Moments(NamedTuple):
  """Number, mean and summed squared deviations of the rows seen so far."""

  num_rows: jax.Array  # [], int32
  mean: jax.Array  # [k]
  squares: jax.Array  # [k], sum over rows of (row - mean)^2

  @classmethod
  def measure(cls, rows: jax.Array) -> "Moments":
    """The moments of rows [count, k], in two passes."""
    mean = jnp.mean(rows, axis=0)
    squares = jnp.sum((rows - mean[None]) ** 2, axis=0)
    return cls(num_rows=jnp.asarray(rows.shape[0], jnp.int32), mean=mean, squares=squares)

  def merge(self, other: "Moments") -> "Moments":
    """The moments of both sets of rows together (Chan et al. 1979); other has a row or more."""
    count = self.num_rows + other.num_rows
    share = other.num_rows.astype(self.mean.dtype) / count.astype(self.mean.dtype)
    delta = other.mean - self.mean
    squares = self.squares + other.squares
    squares = squares + delta**2 * (self.num_rows.astype(self.mean.dtype) * share)
    return Moments(num_rows=count, mean=self.mean + delta * share, squares=squares)

  def compute_standard_error(self) -> jax.Array:
    """Standard error [k] of the mean; needs two rows."""
    count = self.num_rows.astype(self.mean.dtype)
    return jnp.sqrt(self.squares / (count - 1) / count)


def sample_loss(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array, z: jax.Array, *, ste: str
) -> jax.Array:
  """Loss of given inputs; `jax.grad` in w gives the sampled coarse gradient.

    (v^T step(z w) - v_star^T step(z w_star))^2 / 2,  with step' := the estimator backward

  Args:
    v, v_star: [m], float32 or float64.
    w, w_star: [n], v's dtype.
    z: [..., m, n], v's dtype; inputs.
    ste: "identity", "relu" or "clipped" (see `numerics.quantized_relu`).
  Returns:
    [...], v's dtype.
  Source: Yin et al. 2019 (arXiv 1903.05662).
  """

  def run(second: jax.Array, first: jax.Array) -> jax.Array:
    # A GPU's default precision would flip the steps next to 0 and round the gradients.
    hidden = jnp.matmul(z, first, precision=jax.lax.Precision.HIGHEST)
    steps = numerics.quantized_relu(hidden, jnp.ones([], z.dtype), num_bits=1, ste=ste)
    return jnp.matmul(steps, second, precision=jax.lax.Precision.HIGHEST)

  return (run(v, w) - run(v_star, w_star)) ** 2 / 2


def estimate(
  key: jax.Array,
  v: jax.Array,
  w: jax.Array,
  v_star: jax.Array,
  w_star: jax.Array,
  *,
  num_samples: int,
  batch_size: int = 2**15,
) -> Estimates:
  """Monte Carlo estimates of the loss, its gradient in v and the three coarse gradients in w.

  Each sample is an input Z [m, n] of independent standard normal entries; all five quantities share
  the samples. Batches follow one another inside one compiled loop, so memory grows with batch_size
  alone (about 8 * batch_size * m * n numbers). Batches are merged by their means, not summed up, so
  that float32 keeps five digits for any number of samples in batches of a thousand or more. The
  result depends on key, num_samples and batch_size, and on the device only by rounding.

  Args:
    key: [], a typed PRNG key.
    v, v_star: [m], float32 or float64.
    w, w_star: [n], v's dtype.
    num_samples: int in [2, 2^31).
    batch_size: int in [1, 2^31); need not divide num_samples.
  Returns:
    Means and standard errors in v's dtype.
  Raises:
    ValueError: if num_samples or batch_size is out of range, or shapes do not fit.
    TypeError: if dtypes do not fit, or num_samples or batch_size is not an int.
  Source: the quantities, Yin et al. 2019 (arXiv 1903.05662); the sampling, our choice.
  """
  v, w, v_star, w_star = two_layer.check_arguments(v, w, v_star, w_star)
  check_count("num_samples", num_samples, minimum=2)
  check_count("batch_size", batch_size, minimum=1)
  return _estimate(key, v, w, v_star, w_star, num_samples=num_samples, batch_size=batch_size)


def check_count(name: str, value: object, *, minimum: int) -> None:
  """Raises unless value is an int in [minimum, 2^31)."""
  if not isinstance(value, int) or isinstance(value, bool):
    raise TypeError(f"{name} must be a Python int, got {value!r}")
  if not minimum <= value < 2**31:
    raise ValueError(f"{name} must be in [{minimum}, 2^31), got {value}")


@functools.partial(jax.jit, static_argnames=("num_samples", "batch_size"))
def _estimate(
  key: jax.Array,
  v: jax.Array,
  w: jax.Array,
  v_star: jax.Array,
  w_star: jax.Array,
  *,
  num_samples: int,
  batch_size: int,
) -> Estimates:
  shape = (v.size, w.size)

  def measure_one(z: jax.Array) -> dict[str, jax.Array]:
    quantities: dict[str, jax.Array] = {}
    for ste in two_layer.ESTIMATORS:
      loss, (grad_v, grad_w) = jax.value_and_grad(sample_loss, argnums=(0, 1))(
        v, w, v_star, w_star, z, ste=ste
      )
      # The forward pass and the gradient in v are the same for every estimator.
      quantities |= {"loss": loss, "grad_v": grad_v, ste: grad_w}
    return quantities

  zeros, unravel = ravel_pytree(measure_one(jnp.zeros(shape, v.dtype)))

  def measure_batch(index: jax.Array, size: int) -> Moments:
    z = jax.random.normal(jax.random.fold_in(key, index), (size, *shape), v.dtype)
    return Moments.measure(jax.vmap(lambda one: ravel_pytree(measure_one(one))[0])(z))

  def step(moments: Moments, index: jax.Array) -> tuple[Moments, None]:
    return moments.merge(measure_batch(index, batch_size)), None

  num_batches, num_left = divmod(num_samples, batch_size)
  nothing = Moments(num_rows=jnp.zeros([], jnp.int32), mean=0 * zeros, squares=0 * zeros)
  moments, _ = jax.lax.scan(step, nothing, jnp.arange(num_batches))
  if num_left:
    moments = moments.merge(measure_batch(jnp.asarray(num_batches), num_left))
  means, errors = unravel(moments.mean), unravel(moments.compute_standard_error())
  estimates = {name: Estimate(mean=means[name], standard_error=errors[name]) for name in means}
  return Estimates(
    loss=estimates["loss"],
    grad_v=estimates["grad_v"],
    coarse_grad={ste: estimates[ste] for ste in two_layer.ESTIMATORS},
  )
