"""`bcgd` on a small quantized network against a NumPy network of its own, in float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bcgd_jax import numerics
from bcgd_jax.optim import bcgd

NUM_STEPS = 20
NUM_BITS = {"relu1": 2, "relu2": 4}
QUANTIZERS = {
  "dense1/kernel": numerics.Binary(),
  "dense2/kernel": numerics.Ternary("twn"),
}
# Far from the defaults, so that in 20 steps each rule moves the result by much more than 1e-9.
RHO, RATE, MOMENTUM, DECAY = 0.1, 0.2, 0.9, 0.05
ALPHA_RATE, ALPHA_CLIP, ALPHA_RANGE = 0.5, 0.04, (0.3, 0.6)


class Rules(NamedTuple):
  """Which rules the NumPy side follows; all of them in the true order."""

  blend: bool = True
  momentum: bool = True
  decay: bool = True
  decay_on_blended: bool = True
  decay_alpha: bool = True
  alpha_rate: bool = True
  alpha_clip: bool = True
  clamp: bool = True


class Trace(NamedTuple):
  """What the NumPy run went through, to show that it is the run the test needs."""

  margins: list[float]  # distances of values to the threshold next to them
  clips: list[bool]  # was an alpha gradient clipped
  clamps: list[bool]  # was an alpha out of its range, after step 0


def make_problem():
  rng = np.random.default_rng(7)
  shapes = {"dense1": (6, 8), "dense2": (8, 7), "dense3": (7, 3)}
  params = {
    name: {"kernel": 0.5 * rng.normal(size=shape), "bias": 0.1 * rng.normal(size=shape[1:])}
    for name, shape in shapes.items()
  }
  params |= {"relu1": {"alpha": np.array(0.7)}, "relu2": {"alpha": np.array(0.35)}}
  inputs = rng.normal(size=(NUM_STEPS, 16, 6))
  labels = np.eye(3)[rng.integers(0, 3, size=(NUM_STEPS, 16))]
  return params, inputs, labels


def run_jax(params, inputs, labels):
  projection = numerics.make_projection(QUANTIZERS)
  quantize = numerics.make_projection(QUANTIZERS, straight_through=True)
  clamp = numerics.straight_through(lambda a: jnp.clip(a, *ALPHA_RANGE))

  def loss_fn(params, x, y):
    p = quantize(params)
    for i in (1, 2):
      x = x @ p[f"dense{i}"]["kernel"] + p[f"dense{i}"]["bias"][None, :]
      alpha = clamp(p[f"relu{i}"]["alpha"])
      x = numerics.quantized_relu(x, alpha, num_bits=NUM_BITS[f"relu{i}"])
    logits = x @ p["dense3"]["kernel"] + p["dense3"]["bias"][None, :]
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits), axis=-1))

  optimizer = bcgd(
    RATE,
    projection,
    rho=RHO,
    momentum=MOMENTUM,
    weight_decay=DECAY,
    alpha_rate=ALPHA_RATE,
    alpha_clip=ALPHA_CLIP,
    alpha_range=ALPHA_RANGE,
  )

  @jax.jit
  def step(params, state, x, y):
    updates, state = optimizer.update(jax.grad(loss_fn)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.asarray, params)
  state = optimizer.init(params)
  history = []
  for x, y in zip(inputs, labels, strict=True):
    params, state = step(params, state, jnp.asarray(x), jnp.asarray(y))
    history.append(flatten(params))
  return history


def flatten(params):
  return {f"{a}/{b}": np.asarray(leaf) for a, node in params.items() for b, leaf in node.items()}


def quantize_np(name, w, margins):
  size = np.abs(w)
  if name == "dense1/kernel":
    margins.append(size.min())
    return size.mean() * np.sign(w)
  threshold = 0.7 * size.mean()
  margins.append(np.abs(size - threshold).min())
  return np.where(size > threshold, size[size > threshold].mean() * np.sign(w), 0.0)


def staircase_np(x, alpha, num_bits, margins):
  top = 2**num_bits - 1
  thresholds = alpha * np.arange(top + 1)
  margins.append(np.abs(x[..., None] - thresholds).min())
  # The level is the number of thresholds 0, alpha, ..., (top - 1) alpha below x.
  return alpha * np.sum(x[..., None] > thresholds[:-1], axis=-1)


def gradient_np(w, x, y, margins):
  """Coarse gradient at the quantized weights: own forward pass, own backward pass."""
  q = {k: quantize_np(k, v, margins) if k in QUANTIZERS else v for k, v in w.items()}
  outputs, before = [x], {}
  for i in (1, 2):
    before[i] = outputs[-1] @ q[f"dense{i}/kernel"] + q[f"dense{i}/bias"]
    alpha = np.clip(q[f"relu{i}/alpha"], *ALPHA_RANGE)
    outputs.append(staircase_np(before[i], alpha, NUM_BITS[f"relu{i}"], margins))
  logits = outputs[2] @ q["dense3/kernel"] + q["dense3/bias"]
  odds = np.exp(logits)
  upstream = (odds / odds.sum(axis=1, keepdims=True) - y) / len(x)
  grads = {}
  for i in (3, 2, 1):
    if i < 3:
      alpha, top = np.clip(q[f"relu{i}/alpha"], *ALPHA_RANGE), 2 ** NUM_BITS[f"relu{i}"] - 1
      inside = (before[i] > 0) & (before[i] <= top * alpha)
      proxy = np.where(inside, (top + 1) / 2, np.where(before[i] > 0, top, 0))
      grads[f"relu{i}/alpha"] = np.sum(upstream * proxy)
      upstream = upstream * inside
    grads[f"dense{i}/kernel"] = outputs[i - 1].T @ upstream
    grads[f"dense{i}/bias"] = upstream.sum(axis=0)
    upstream = upstream @ q[f"dense{i}/kernel"].T
  return grads


def update_np(name, w, g, m, *, rules, trace):
  start, is_alpha = w, name.endswith("alpha")
  if name in QUANTIZERS and rules.blend:
    start = (1 - RHO) * w + RHO * quantize_np(name, w, trace.margins)
  if is_alpha:
    g = ALPHA_RATE * g if rules.alpha_rate else g
    trace.clips.append(abs(g) > ALPHA_CLIP)
    g = np.clip(g, -ALPHA_CLIP, ALPHA_CLIP) if rules.alpha_clip else g
    trace.clamps.append(not ALPHA_RANGE[0] <= w <= ALPHA_RANGE[1])
    start = np.clip(w, *ALPHA_RANGE) if rules.clamp else w
  if rules.decay and (rules.decay_alpha or not is_alpha):
    g = g + DECAY * (start if rules.decay_on_blended else w)
  m = MOMENTUM * m + g if rules.momentum else g
  return start - RATE * m, m


def run_numpy(params, inputs, labels, *, rules):
  w = flatten(params)
  m = {name: np.zeros_like(leaf) for name, leaf in w.items()}
  trace, history = Trace([], [], []), []
  for x, y in zip(inputs, labels, strict=True):
    grads = gradient_np(w, x, y, trace.margins)
    new = {k: update_np(k, w[k], grads[k], m[k], rules=rules, trace=trace) for k in w}
    w, m = {k: v[0] for k, v in new.items()}, {k: v[1] for k, v in new.items()}
    history.append(w)
  return history, trace


@functools.cache
def run_jax_once():
  with jax.enable_x64(True):
    return run_jax(*make_problem())


def measure_difference(a, b):
  return max(np.abs(x[k] - y[k]).max() for x, y in zip(a, b, strict=True) for k in x)


class OrderTest(parameterized.TestCase):
  def test_matches_numpy(self):
    params, inputs, labels = make_problem()
    history, trace = run_numpy(params, inputs, labels, rules=Rules())
    # Closer to a threshold than the tolerance, two right answers could part.
    self.assertGreater(min(trace.margins), 1e-9)
    self.assertLess(measure_difference(run_jax_once(), history), 1e-9)

  def test_run_exercises_every_rule(self):
    params, inputs, labels = make_problem()
    history, trace = run_numpy(params, inputs, labels, rules=Rules())
    self.assertIn(True, trace.clips)
    self.assertIn(False, trace.clips)
    later = trace.clamps[2:]  # two alphas a step; the first is out of range from the start
    self.assertIn(True, later)
    self.assertIn(False, later)
    for name in QUANTIZERS:
      first, last = (np.sign(quantize_np(name, w[name], [])) for w in (history[0], history[-1]))
      self.assertGreater(np.sum(first != last), 0, name)

  @parameterized.named_parameters((name, name) for name in Rules._fields)
  def test_leaving_out_a_rule_is_noticed(self, name):
    params, inputs, labels = make_problem()
    history, _ = run_numpy(params, inputs, labels, rules=Rules(**{name: False}))
    # A thousand times the tolerance of the comparison that holds.
    self.assertGreater(measure_difference(run_jax_once(), history), 1e-6)
