"""Closed forms of the two-layer network against derivatives, integrals and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from absl.testing import parameterized
from theory_problems import FUNCTIONS, evaluate, in_float64, make_problem, make_problem_at

from bcgd_jax.theory import two_layer

PROBLEMS = [
  {"seed": seed, "num_hidden": m, "size": n, "norm": norm}
  for seed, (m, n, norm) in enumerate([(1, 2, 1.0), (2, 3, 1e-3), (4, 5, 0.3), (7, 2, 20.0)])
]


def geometry(w, w_star):
  """theta, w / |w| and the unit vector across it towards w_star, the plain way."""
  unit = w / np.linalg.norm(w)
  across = w_star - (w_star @ unit) * unit
  return np.arccos(unit @ w_star), unit, across / np.linalg.norm(across)


def integrate_clipped(v, w, v_star, w_star):
  """The clipped coarse gradient by quadrature in polar coordinates about w."""
  theta, unit, across = geometry(w, w_star)
  reach = 1 / np.linalg.norm(w)

  def gaussian_second_moment(radius):
    upper = min(radius, 40.0)
    return scipy.integrate.quad(lambda r: r**2 * np.exp(-(r**2) / 2), 0, upper, epsabs=1e-12)[0]

  def average(trig):
    def integrand(phi):
      return trig(phi) * gaussian_second_moment(reach / max(np.cos(phi), 1e-12)) / (2 * np.pi)

    return scipy.integrate.quad(integrand, theta - np.pi / 2, np.pi / 2, epsabs=1e-10, limit=200)[0]

  first = scipy.integrate.quad(
    lambda x: x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), 0, min(reach, 40.0), epsabs=1e-12
  )[0]
  head = (v @ v + v.sum() ** 2 - v.sum() * v_star.sum() + v @ v_star) / 2
  return head * first * unit - (v @ v_star) * (average(np.cos) * unit + average(np.sin) * across)


class GradientsTest(parameterized.TestCase):
  @parameterized.parameters(*PROBLEMS)
  def test_true_gradient_is_autodiff_of_the_loss(self, **problem):
    args = make_problem(**problem, dtype=np.float64)
    for ours, autodiff in zip(
      (in_float64("grad_v", *args), in_float64("grad_w", *args)),
      in_float64(jax.jit(jax.grad(two_layer.population_loss, argnums=(0, 1))), *args),
      strict=True,
    ):
      np.testing.assert_allclose(ours, autodiff, rtol=1e-11, atol=1e-12 * np.abs(autodiff).max())

  @parameterized.parameters(*PROBLEMS)
  def test_true_gradient_is_the_difference_quotient(self, **problem):
    args = make_problem(**problem, dtype=np.float64)
    grads = in_float64("grad_v", *args), in_float64("grad_w", *args)
    for position, grad in zip((0, 1), grads, strict=True):
      step = 1e-5 * np.linalg.norm(args[position])
      for index, expected in enumerate(grad):
        moved = [list(args), list(args)]
        for arguments, sign in zip(moved, (1, -1), strict=True):
          arguments[position] = args[position].copy()
          arguments[position][index] += sign * step
        after, before = (in_float64("loss", *arguments) for arguments in moved)
        # Curvature times step^2, and rounding / step.
        self.assertLess(abs((after - before) / (2 * step) - expected), 1e-7 * np.abs(grad).max())

  @parameterized.parameters(*PROBLEMS)
  def test_clipped_is_its_integral(self, **problem):
    args = make_problem(**problem, dtype=np.float64)
    ours = in_float64("clipped", *args)
    np.testing.assert_allclose(ours, integrate_clipped(*args), atol=1e-9)

  @parameterized.product(theta=(0.01, 1.0, 3.1), norm=(0.2, 1.0, 5.0))
  def test_clipped_is_its_integral_at_flat_angles(self, theta, norm):
    args = make_problem_at(theta, norm=norm, dtype=np.float64)
    ours = in_float64("clipped", *args)
    np.testing.assert_allclose(ours, integrate_clipped(*args), atol=1e-9)

  @parameterized.parameters(*PROBLEMS)
  def test_float32_agrees_with_float64(self, **problem):
    args = make_problem(**problem)
    for name, value in evaluate(*args).items():
      wide = in_float64(name, *args)
      self.assertEqual(value.dtype, jnp.float32)
      np.testing.assert_allclose(value, wide, atol=3e-6 * np.abs(wide).max(), err_msg=name)

  def test_the_same_without_jit_and_under_vmap(self):
    problems = [make_problem(seed) for seed in range(3)]
    rows = jax.vmap(evaluate)(*(jnp.stack(column) for column in zip(*problems, strict=True)))
    singles = [evaluate(*problem) for problem in problems]
    for name, row in rows.items():
      tolerance = {"rtol": 1e-5, "atol": 1e-6, "err_msg": name}
      np.testing.assert_allclose(row, np.stack([single[name] for single in singles]), **tolerance)
      if name != "angle":
        eager = FUNCTIONS[name](*problems[0])
        np.testing.assert_allclose(eager, singles[0][name], **tolerance)

  def test_only_the_direction_of_w_star_counts(self):
    v, w, v_star, w_star = make_problem(0)
    expected, scaled = (evaluate(v, w, v_star, scale * w_star) for scale in (1, 4))
    jax.tree.map(np.testing.assert_array_equal, scaled, expected)


class CorrelationTest(parameterized.TestCase):
  """The coarse gradient makes an acute angle with the true one, by known amounts."""

  @parameterized.parameters(*PROBLEMS)
  def test_inner_products(self, **problem):
    v, w, v_star, w_star = args = make_problem(**problem, dtype=np.float64)
    theta, _, _ = geometry(w, w_star)
    norm = np.linalg.norm(w)
    true = in_float64("grad_w", *args)
    relu = np.sin(theta) * (v @ v_star) ** 2 / (2 * (2 * np.pi) ** 1.5 * norm)
    # E[Z.e 1{0 < Z.w < 1, Z.w_star > 0}], e across w, over the strip between the two lines.
    strip = scipy.integrate.quad(
      lambda x: np.exp(-(x**2) / 2) / (2 * np.pi) * np.exp(-((x / np.tan(theta)) ** 2) / 2),
      0,
      min(1 / norm, 40.0),
      epsabs=1e-13,
    )[0]
    clipped = strip * (v @ v_star) ** 2 / (2 * np.pi * norm)
    for ste, expected in (("relu", relu), ("identity", 2 * relu), ("clipped", clipped)):
      product = in_float64(ste, *args) @ true
      self.assertGreater(product, 0)
      np.testing.assert_allclose(product, expected, rtol=1e-7, err_msg=ste)

  @parameterized.parameters(0.01, 1.0, 2.0, 3.1)
  def test_norm_at_fixed_second_layer(self, theta):
    _, w, v, w_star = make_problem_at(theta, norm=0.7, dtype=np.float64)
    relu, identity = (in_float64(s, v, w, v, w_star) for s in ("relu", "identity"))
    squared = (v @ v) ** 2 * np.sin(theta / 2) ** 2 / (2 * np.pi)
    np.testing.assert_allclose(relu @ relu, squared, rtol=1e-10)
    np.testing.assert_allclose(identity, 2 * relu, rtol=1e-12)
    product = relu @ in_float64("grad_w", v, w, v, w_star)
    expected = np.sqrt(2 * np.pi) * 0.7 * np.tan(theta / 2)
    np.testing.assert_allclose(relu @ relu / product, expected, rtol=1e-9)

  def test_norm_is_controlled_for_relu_and_not_for_identity(self):
    _, _, v_star, _ = make_problem(1, dtype=np.float64)
    point = in_float64(two_layer.critical_points, v_star)
    ratios = {}
    for ste in two_layer.ESTIMATORS:
      for gap in (1e-1, 1e-2, 1e-3, 1e-4):
        _, w, _, w_star = make_problem_at(np.pi - gap, dtype=np.float64)
        args = (np.asarray(point.spurious_minimum.v), w, v_star, w_star)
        grad_v, grad_w = in_float64("grad_v", *args), in_float64("grad_w", *args)
        coarse = in_float64(ste, *args)
        ratios[ste, gap] = coarse @ coarse / (grad_v @ grad_v + coarse @ grad_w)
    for ste in ("relu", "clipped"):
      self.assertLess(max(ratios[ste, gap] for gap in (1e-2, 1e-3, 1e-4)), ratios[ste, 0.1] * 1.1)
    self.assertGreater(ratios["identity", 1e-4], 500 * ratios["identity", 1e-1])


class ArgumentsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      "ste",
      {"ste": "swish"},
      ValueError,
      "ste must be one of identity, relu, clipped, got 'swish'",
    ),
    ("matrix", {"v": np.zeros((2, 2))}, ValueError, r"v must be a vector .* got shape \(2, 2\)"),
    ("empty", {"w": np.zeros(0)}, ValueError, r"w must be a vector .* got shape \(0,\)"),
    ("second", {"v": np.zeros(3)}, ValueError, r"v_star must have v's shape \(3,\), got \(4,\)"),
    ("first", {"w": np.zeros(3)}, ValueError, r"w_star must have w's shape \(3,\), got \(5,\)"),
    ("integer", {"v": np.zeros(4, int)}, TypeError, "v must be float32 or float64, got int32"),
    ("half", {"w": jnp.zeros(5, jnp.float16)}, TypeError, "w must be .* got float16"),
  )
  def test_refuses(self, change, error, message):
    v, w, v_star, w_star = make_problem(0)
    good = {"v": v, "w": w, "v_star": v_star, "w_star": w_star, "ste": "relu"}
    with self.assertRaisesRegex(error, message):
      two_layer.coarse_grad(**good | change)

  def test_refuses_mixed_dtypes(self):
    narrow = make_problem(0)
    with jax.enable_x64(True):
      wide = make_problem(0, dtype=np.float64)
      with self.assertRaisesRegex(TypeError, "v_star must have v's dtype float32, got float64"):
        two_layer.population_loss(*narrow[:2], *wide[2:])
      with self.assertRaisesRegex(TypeError, "w must have v's dtype float32, got float64"):
        two_layer.population_grad(narrow[0], wide[1], narrow[2], wide[3])
