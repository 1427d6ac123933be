"""The two-layer models of the convergence theorems: closed forms, samples and descent."""

from bcgd_jax.theory.descent import Trajectory as Trajectory
from bcgd_jax.theory.descent import coarse_gradient_descent as coarse_gradient_descent
from bcgd_jax.theory.monte_carlo import Estimate as Estimate
from bcgd_jax.theory.monte_carlo import Estimates as Estimates
from bcgd_jax.theory.monte_carlo import estimate as estimate
from bcgd_jax.theory.monte_carlo import sample_loss as sample_loss
from bcgd_jax.theory.two_layer import ESTIMATORS as ESTIMATORS
from bcgd_jax.theory.two_layer import CriticalPoint as CriticalPoint
from bcgd_jax.theory.two_layer import CriticalPoints as CriticalPoints
from bcgd_jax.theory.two_layer import angle as angle
from bcgd_jax.theory.two_layer import coarse_grad as coarse_grad
from bcgd_jax.theory.two_layer import critical_points as critical_points
from bcgd_jax.theory.two_layer import population_grad as population_grad
from bcgd_jax.theory.two_layer import population_loss as population_loss
