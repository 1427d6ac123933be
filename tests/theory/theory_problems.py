"""Random instances of the two-layer network, and all its closed forms at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bcgd_jax.theory import two_layer

FUNCTIONS = {
  "loss": two_layer.population_loss,
  "grad_v": lambda *args: two_layer.population_grad(*args)[0],
  "grad_w": lambda *args: two_layer.population_grad(*args)[1],
} | {ste: functools.partial(two_layer.coarse_grad, ste=ste) for ste in two_layer.ESTIMATORS}


@jax.jit
def evaluate(v, w, v_star, w_star):
  """Returns all values by name; one compilation for a shape and dtype."""
  values = {name: function(v, w, v_star, w_star) for name, function in FUNCTIONS.items()}
  return values | {"angle": two_layer.angle(w, w_star)}


def in_float64(function, *args):
  """Runs a function, or gives the value of that name."""
  with jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(arg, np.float64)) for arg in args]
    result = evaluate(*wide)[function] if isinstance(function, str) else function(*wide)
    return jax.tree.map(np.asarray, result)


def make_problem(seed, *, num_hidden=4, size=5, norm=1.0, dtype=np.float32):
  """Returns v [m], w [n] of the given length, v_star [m] and a unit w_star [n]."""
  rng = np.random.default_rng(seed)
  v, v_star = rng.normal(size=(2, num_hidden))
  w, w_star = rng.normal(size=(2, size))
  w *= norm / np.linalg.norm(w)
  w_star /= np.linalg.norm(w_star)
  return tuple(x.astype(dtype) for x in (v, w, v_star, w_star))


def make_problem_at(theta, seed=0, **kwargs):
  """The same with a chosen angle between w and w_star, |w| = norm."""
  v, w, v_star, w_star = make_problem(seed, **kwargs)
  norm = np.linalg.norm(w)
  across = w - (w @ w_star) * w_star
  across /= np.linalg.norm(across)
  w = norm * (np.cos(theta) * w_star + np.sin(theta) * across)
  return v, w.astype(w_star.dtype), v_star, w_star
