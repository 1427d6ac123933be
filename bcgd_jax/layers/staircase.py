"""The least-squares step of the quantized ReLU for given samples; NumPy on the host."""

import numpy as np

from bcgd_jax import numerics

# Points of the first grid, over the whole range (ratio 1.0084), and of each finer one, over the
# neighbours of the best point. Twice finer resolves float32 (3e-8).
_GRID_POINTS = 1024
_REFINE_ROUNDS = 2


def _log_grid(low: float, high: float) -> np.ndarray:
  # Rounding to float32 must not leave the range that the layer clamps to.
  bounds = np.asarray(numerics.ALPHA_RANGE, np.float32)
  return np.clip(np.geomspace(low, high, _GRID_POINTS).astype(np.float32), *bounds)


def _compute_errors(
  ordered: np.ndarray, tail_sums: np.ndarray, alphas: np.ndarray, num_levels: int
) -> np.ndarray:
  """Squared error of each alpha, less the sum of squares that all of them share.

  With x > fl(k alpha) counted for k = 0..L-1, code = sum_k [x > k alpha] and
  code^2 = sum_k (2k + 1) [x > k alpha], so tail counts and tail sums at the thresholds suffice.

  Args:
    ordered: [n], float32, increasing, > 0.
    tail_sums: [n + 1], float64; entry i is the sum of ordered[i:].
    alphas: [m], float32.
    num_levels: L.
  Returns:
    [m], float64.
  """
  # float32 products, as the layer computes its thresholds: a value on one must fall below it.
  thresholds = alphas[:, None] * np.arange(num_levels, dtype=np.float32)[None, :]  # [m, L]
  first = np.searchsorted(ordered, thresholds, side="right")
  weights = 2.0 * np.arange(num_levels) + 1.0
  sum_products = tail_sums[first].sum(axis=1)
  sum_squares = ((ordered.size - first) * weights[None, :]).sum(axis=1)
  step = alphas.astype(np.float64)
  return step * (step * sum_squares - 2.0 * sum_products)


def fit_alpha(x: np.ndarray, *, num_bits: int) -> float | None:
  """Finds the step that minimises the squared error of the ceil staircase on samples.

  Formula: argmin over alpha in ALPHA_RANGE of sum (max(x, 0) - sigma(x, alpha))^2, sigma =
  `numerics.quantized_relu`. Values x <= 0 contribute nothing. The error is piecewise quadratic in
  alpha, with many shallow minima beside each other: the search takes the best of a fixed grid
  (the smallest of equals) and refines twice around it.

  Args:
    x: any shape, finite.
    num_bits: 1 to 8.
  Returns:
    alpha, or None if no value is positive: every alpha is then as good.
  Source: our choice (the authors' constants fit the nearest rounding, not this ceil staircase).
  """
  x = np.asarray(x, np.float32).ravel()
  ordered = np.sort(x[x > 0])
  if not ordered.size:
    return None
  tail_sums = np.append(np.cumsum(ordered[::-1], dtype=np.float64)[::-1], 0.0)
  grid = _log_grid(*numerics.ALPHA_RANGE)
  for _ in range(_REFINE_ROUNDS):
    best = int(np.argmin(_compute_errors(ordered, tail_sums, grid, 2**num_bits - 1)))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    grid = _log_grid(float(low), float(high))
  return float(grid[np.argmin(_compute_errors(ordered, tail_sums, grid, 2**num_bits - 1))])
