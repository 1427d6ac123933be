"""Experiment suites: lists of runs that are trained, tabulated and drawn by one command."""

from bcgd_jax.suites.spec import Row as Row
from bcgd_jax.suites.spec import Suite as Suite
from bcgd_jax.suites.spec import load_suite as load_suite
