"""Subspace data, the hinge network's coarse gradient against loops, and training to zero loss."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bcgd_jax.theory import multiclass

MONOTONE = {
  "vanilla": multiclass.vanilla_relu,
  "log_tailed": multiclass.log_tailed,
  "reverse_exponential": multiclass.reverse_exponential,
}
# One set of sizes for almost all runs: they share their compilations.
SIZES = {
  "num_steps": 300,
  "num_train": 120,
  "num_test": 200,
  "learning_rate": 4.0,
  "num_bits": 2,
}


def scalar_estimator(name, x, top):
  """g(x) of the staircase of unit step, in plain Python."""
  if x <= 0:
    return 0.0
  if name == "log_tailed":
    return 1.0 if x <= top else 1 / (1 + x - top)
  return math.exp(-x / top) if name == "reverse_exponential" else 1.0


def make_data(seed=0, **changes):
  sizes = {"num_classes": 3, "subspace_dim": 2, "dim": 9} | changes
  return multiclass.make_subspace_data(jax.random.key(seed), **sizes)


def train(data, *, key=0, **changes):
  v = multiclass.make_output_layer(data.bases.shape[0], 12)
  options = SIZES | {"estimator": multiclass.vanilla_relu} | changes
  return multiclass.train(jax.random.key(key), data, v, **options)


class SubspaceDataTest(parameterized.TestCase):
  def test_directions_are_of_length_1_and_not_orthogonal(self):
    bases = np.asarray(make_data().bases)
    np.testing.assert_allclose(np.linalg.norm(bases, axis=1), np.ones((3, 2)), rtol=1e-6)
    stacked = np.hstack(list(bases))
    self.assertEqual(np.linalg.matrix_rank(stacked), 6)
    self.assertGreater(np.abs(stacked.T @ stacked - np.eye(6)).max(), 0.2)

  def test_points_lie_in_their_class_and_in_its_ring(self):
    data = multiclass.SubspaceData(bases=make_data().bases, inner_radius=0.7, outer_radius=1.5)
    x, labels = multiclass.sample(jax.random.key(1), data, 3000)
    self.assertEqual((x.shape, x.dtype, labels.dtype), ((3000, 9), jnp.float32, jnp.int32))
    for label, basis in enumerate(np.asarray(data.bases, np.float64)):
      own = np.asarray(x)[np.asarray(labels) == label].astype(np.float64)
      self.assertLen(own, 1000)
      coefficients = own @ np.linalg.pinv(basis).T
      np.testing.assert_allclose(coefficients @ basis.T, own, atol=1e-6)
      lengths = np.linalg.norm(coefficients, axis=1)
      self.assertBetween(lengths.min(), 0.7 - 1e-6, 0.72)
      self.assertBetween(lengths.max(), 1.48, 1.5 + 1e-6)
      # x and -x belong to one class: no half-space holds it
      np.testing.assert_allclose(coefficients.mean(axis=0), np.zeros(2), atol=0.12)

  @parameterized.parameters(
    ({"inner_radius": 0.0}, "inner_radius <= outer_radius, got"),
    ({"inner_radius": 2.0}, r"got \(2.0, 1.0\)"),
    ({"inner_radius": math.nan}, "nan"),
    ({"bases": np.zeros((3, 9))}, r"\[classes, dim, subspace_dim\], got shape \(3, 9\)"),
    ({"bases": np.ones((2, 5, 1))}, "2 linearly independent columns in all, got rank 1"),
  )
  def test_bad_data(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      multiclass.SubspaceData(**({"bases": make_data().bases} | changes))

  def test_too_few_dimensions(self):
    with self.assertRaisesRegex(ValueError, "dim must be at least .* = 6, got 5"):
      make_data(dim=5)


class EstimatorsTest(parameterized.TestCase):
  @parameterized.product(name=sorted(MONOTONE), num_levels=(1, 3, 15))
  def test_values(self, name, num_levels):
    x = np.array([-5, -1e-6, 0, 1e-6, 0.5, 1, 2.9, 3, 3.5, 15, 15.5, 40], np.float32)
    alpha = jnp.float32(1.0)
    found = jax.jit(MONOTONE[name], static_argnums=2)(jnp.asarray(x), alpha, num_levels)
    expected = [scalar_estimator(name, float(value), num_levels) for value in x]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    self.assertEqual(found.dtype, jnp.float32)

  @parameterized.parameters(*sorted(MONOTONE))
  def test_step_of_the_staircase_is_the_unit(self, name):
    x = jnp.linspace(-3.0, 30.0, 50)
    scaled = MONOTONE[name](x / 4, jnp.float32(0.25), 3)
    np.testing.assert_allclose(scaled, MONOTONE[name](x, jnp.float32(1.0), 3), rtol=1e-6)


class CoarseGradientTest(parameterized.TestCase):
  @parameterized.product(name=sorted(MONOTONE), num_bits=(1, 2, 4))
  def test_against_loops(self, name, num_bits):
    rng = np.random.default_rng(0)
    v = np.array([[1, 0.5, 0, 0, -0.3], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], np.float32)
    # large pre-activations reach the staircase's top; its whole numbers make ties
    w = (3 * rng.normal(size=(5, 4))).astype(np.float32)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    labels = rng.integers(0, 3, 40)
    run = jax.jit(multiclass.loss_and_coarse_gradient, static_argnames=("num_bits", "estimator"))
    loss, gradient = run(w, v, x, labels, num_bits=num_bits, estimator=MONOTONE[name])
    top, total, expected = 2**num_bits - 1, 0.0, np.zeros_like(w)
    ties = 0
    for point, label in zip(x, labels, strict=True):
      pre = w @ point
      output = v @ np.clip(np.ceil(pre), 0, top)
      others = [i for i in range(3) if i != label]
      rival = max(others, key=lambda i: (output[i], -i))
      ties += output[others[0]] == output[others[1]] > 0  # at 0 both neurons are idle
      shortfall = 1 - output[label] + output[rival]
      if shortfall > 0:
        total += shortfall / 40
        for j in range(5):
          slope = scalar_estimator(name, float(pre[j]), top)
          expected[j] -= (v[label, j] - v[rival, j]) * slope * point / 40
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    self.assertGreater(np.abs(expected).max(), 0.01)
    self.assertGreater(ties, 0)

  def test_margin_of_1_costs_nothing_and_moves_nothing(self):
    outputs = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    labels = jnp.array([0, 2])
    loss, gradient = jax.value_and_grad(multiclass.hinge_loss)(outputs, labels)
    self.assertEqual(float(loss), 0)
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))

  def test_margins(self):
    outputs = jnp.array([[2.0, 1.0, 1.5], [0.0, 0.0, 0.0], [-1.0, -4.0, -2.0]])
    np.testing.assert_array_equal(multiclass.margins(outputs, jnp.array([0, 1, 1])), [0.5, 0, -3])

  def test_output_layer(self):
    expected = [[1, 1, 0, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(multiclass.make_output_layer(2, 2), expected)


class TrainTest(parameterized.TestCase):
  def test_steps_by_hand(self):
    data, key = make_data(), jax.random.key(7)
    history = train(data, key=7, num_steps=3, init_scale=0.2)
    data_key, start_key, test_key = jax.random.split(key, 3)
    x, labels = multiclass.sample(data_key, data, SIZES["num_train"])
    w = 0.2 * jax.random.normal(start_key, (36, 9))
    v = multiclass.make_output_layer(3, 12)
    rule = {"num_bits": 2, "estimator": multiclass.vanilla_relu}
    run = jax.jit(functools.partial(multiclass.network, **rule))
    differentiate = jax.jit(functools.partial(multiclass.loss_and_coarse_gradient, **rule))
    for step in range(4):
      fresh, fresh_labels = multiclass.sample(jax.random.fold_in(test_key, step), data, 200)
      for prefix, points, classes in (("train", x, labels), ("test", fresh, fresh_labels)):
        outputs = np.asarray(run(w, v, points))
        margin = np.asarray(jax.jit(multiclass.margins)(outputs, classes))
        loss = np.mean(np.maximum(1 - margin, 0))
        np.testing.assert_allclose(getattr(history, f"{prefix}_loss")[step], loss, rtol=1e-5)
        accuracy = getattr(history, f"{prefix}_accuracy")[step]
        np.testing.assert_allclose(accuracy, np.mean(margin > 0), atol=1e-6)
      _, gradient = differentiate(w, v, x, labels)
      np.testing.assert_allclose(history.gradient_norm[step], np.linalg.norm(gradient), rtol=1e-5)
      last, w = w, w - SIZES["learning_rate"] * gradient
    np.testing.assert_allclose(history.weights, last, rtol=1e-4, atol=1e-6)
    self.assertEqual(history.train_loss.shape, (4,))

  def test_no_step_measures_the_start(self):
    history = train(make_data(), num_steps=0)
    self.assertEqual(history.test_accuracy.shape, (1,))
    self.assertGreater(float(history.train_loss[0]), 1)

  @parameterized.parameters(*sorted(MONOTONE))
  def test_reaches_zero_loss(self, name):
    history = train(make_data(), estimator=MONOTONE[name])
    self.assertGreater(float(history.train_loss[0]), 1)
    self.assertEqual(float(history.train_loss[-1]), 0)
    self.assertEqual(float(history.train_accuracy[-1]), 1)
    self.assertEqual(float(history.gradient_norm[-1]), 0)
    self.assertGreater(float(np.mean(history.test_accuracy[-20:])), 0.85)

  def test_identity_is_outside_the_class_and_does_not(self):
    history = train(make_data(), estimator="identity")
    self.assertGreater(float(np.min(history.train_loss)), 0.5)

  def test_estimator_of_the_user(self):
    seen = []

    def estimator(x, alpha, num_levels):
      seen.append((x.shape, alpha.shape, num_levels))
      return jnp.where(x > 0, jnp.float32(0.5), jnp.float32(0.0))

    halved, whole = (train(make_data(), estimator=g) for g in (estimator, multiclass.vanilla_relu))
    self.assertEqual(set(seen), {((120, 36), (), 3)})
    np.testing.assert_allclose(halved.gradient_norm[0], whole.gradient_norm[0] / 2, rtol=1e-5)

  def test_held_out_points_are_new_at_every_step(self):
    history = train(make_data(), learning_rate=1e-30)
    self.assertLen(set(np.asarray(history.train_loss).tolist()), 1)
    self.assertGreater(len(set(np.asarray(history.test_loss).tolist())), 20)

  def test_same_key_same_run(self):
    first, again, other = (train(make_data(), key=key).train_loss for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertGreater(np.abs(np.asarray(first) - np.asarray(other)).max(), 0)

  @parameterized.parameters(
    ({"num_steps": -1}, r"num_steps must be in \[0, 2\^31\), got -1"),
    ({"num_train": 0}, r"num_train must be in \[1, 2\^31\), got 0"),
    ({"num_test": 0}, r"num_test must be in \[1, 2\^31\), got 0"),
    ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, got 0.0"),
    ({"init_scale": math.nan}, "init_scale must be above 0 and finite, got nan"),
    ({"num_bits": 9}, "num_bits must be in .1, 8., got 9"),
  )
  def test_bad_arguments(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      train(make_data(), **changes)

  @parameterized.parameters(
    ([[1.0, 0.0], [0.0, 1.0]], "for 3 >= 2 classes"),
    ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], "positive weight in every row"),
    ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]], "0 for the other classes"),
    ([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 1.0]], "0 for the other classes"),
  )
  def test_bad_output_layer(self, v, message):
    options = SIZES | {"estimator": "relu"}
    with self.assertRaisesRegex(ValueError, message):
      multiclass.train(jax.random.key(0), make_data(), jnp.array(v), **options)
