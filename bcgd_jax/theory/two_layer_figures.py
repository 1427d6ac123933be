"""Pictures of the two-layer network: correlation, descent and instability."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator

from bcgd_jax.report.plotting import COLORS, Picture, render
from bcgd_jax.theory import checks, descent, experiments, sampling, two_layer
from bcgd_jax.theory.drawing import GREY, add_legend, label_steps, make_figure

_STYLES: Mapping[str, tuple[str, str, str]] = {  # colour, dashes, marker; lines may coincide
  "identity": (COLORS[1], "-", "o"),
  "relu": (COLORS[0], "--", "s"),
  "clipped": (COLORS[2], "-", "^"),
}
_SHOWN_ERRORS = 4  # an error bar reaches so many standard errors to either side
_NEAR = 1e-3  # a loss this close to a minimum's has reached it


def correlation_picture(
  correlations: tuple[sampling.Correlation, sampling.Correlation],
) -> Picture:
  """Inner product and cosine of coarse and true gradient against the angle."""
  fixed, trainable = correlations
  figure = make_figure()
  left, middle, right = figure.subplots(1, 3)
  _draw_correlation(left, fixed, fixed.inner, fixed.inner_error, sampling.inner_product)
  _draw_correlation(middle, fixed, fixed.cosine, fixed.cosine_error, _cosine)
  _draw_correlation(right, trainable, trainable.cosine, trainable.cosine_error, _cosine)
  left.set_title("Inner product, v = v*")
  left.set_ylabel("coarse gradient · true gradient")
  middle.set_title("Cosine, v = v*")
  right.set_title("Cosine, v not yet v*")
  for axes in (middle, right):
    axes.set_ylabel("cosine of the angle between them")
    axes.set_ylim(0, 1.04)
  left.set_ylim(bottom=0)
  add_legend(figure, left)
  lowest = min(float(c.inner[ste].min()) for c in correlations for ste in c.inner)
  return Picture(
    file_name="correlation.png",
    png=render(figure),
    title="The coarse gradient points where the loss falls",
    caption=(
      "Expected coarse gradient in w against the true gradient of the population loss, at |w| = 1,"
      " by estimator and by the angle between w and w*. Lines are closed forms, points are sample"
      f" means with bars of {_SHOWN_ERRORS} standard errors, most of them inside the markers. The"
      " inner product is never negative. At v = v* the identity's gradient is twice the ReLU's, so"
      " that their cosines coincide."
    ),
    alt=(
      "Three line charts against the angle from 0 to pi, three estimators each. The inner product"
      " is an arch, zero at both ends and positive between, highest for the identity; the lowest"
      f" sampled one is {lowest:.2g}. The cosines are positive everywhere; at v = v* they fall from"
      " 1 to 0, slowest for the clipped ReLU."
    ),
  )


def descent_picture(evidence: experiments.Evidence) -> Picture:
  """Angle at v = v*, then loss and angle with v trainable, along descent."""
  figure = make_figure()
  left, middle, right = figure.subplots(1, 3)
  for ste in two_layer.ESTIMATORS:
    color, _, _ = _STYLES[ste]
    for trajectories, dashes in ((evidence.fixed_v, ":"), (evidence.fixed_v_normalized, "-")):
      theta = np.median(np.asarray(trajectories[ste].theta), axis=0)
      left.plot(theta, color=color, linestyle=dashes)
  trainable = evidence.trainable_v
  start = _start_that_succeeds(trainable)
  for ste in two_layer.ESTIMATORS:
    color, _, _ = _STYLES[ste]
    middle.plot(trainable[ste].loss[start], color=color, label=_name(ste))
    right.plot(trainable[ste].theta[start], color=color)
  left.set_title("Angle, v = v*, median of starts")
  middle.set_title("Loss, v trained too, one start")
  right.set_title("Angle, v trained too, one start")
  for axes, label, limits in (
    (left, "angle (rad)", (1e-5, 4)),
    (middle, "population loss", (1e-7, 10)),
  ):
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.set_ylabel(label)
  right.set_ylabel("angle (rad)")
  right.set_ylim(bottom=0)
  left.set_xlim(0, 1200)
  for axes in (middle, right):
    axes.set_xlim(0, 2000)
  label_steps(left, middle, right)
  add_legend(figure, middle, {"|w| = 1 after each step": "-", "w not normalised": ":"})
  counts, settled = _count_ends(trainable)
  fixed = max(
    float(np.median(np.asarray(t.theta)[:, -1]))
    for group in (evidence.fixed_v, evidence.fixed_v_normalized)
    for t in group.values()
  )
  ends = [float(np.asarray(t.loss)[start, -1]) for t in trainable.values()]
  return Picture(
    file_name="descent.png",
    png=render(figure),
    title="Coarse gradients descend",
    caption=(
      f"Descent with expected coarse gradients, learning rate {experiments.LEARNING_RATE}. Left:"
      f" angle between w and w* with v = v* fixed, median of {experiments.NUM_STARTS} starts."
      f" Middle and right: v trained by its true gradient, from one start, where the loss ends at"
      f" {max(ends):.1g} or below. Of {experiments.NUM_STARTS} starts as many reach the global"
      f" minimum: {counts}; as many end in the spurious one: {settled}."
    ),
    alt=(
      "Three line charts over descent steps, three estimators each. With v fixed the median angle"
      f" ends at {fixed:.1g} or below, normalised or not. With v trained, the loss of the start"
      f" shown ends at {max(ends):.1g} or below."
    ),
  )


def instability_picture(trajectories: Mapping[str, descent.Trajectory]) -> Picture:
  """Loss, distance to the spurious minimum and |w| from a start next to it."""
  minimum, minimal_loss = experiments.spurious_minimum()
  figure = make_figure()
  left, middle, right = figure.subplots(1, 3)
  for ste in two_layer.ESTIMATORS:
    trajectory = trajectories[ste]
    color, dashes, _ = _STYLES[ste]
    middle.plot(checks.distance_to(minimum, trajectory), color=color, linestyle=dashes)
    right.plot(trajectory.norm_w, color=color, linestyle=dashes, label=_name(ste))
    if ste == "identity":
      # It jumps from step to step: a line would paint the whole area between its two branches.
      left.plot(trajectory.loss, color=color, linestyle="none", marker=".", markersize=1)
    else:
      left.plot(trajectory.loss, color=color, linestyle=dashes)
  left.axhline(minimal_loss, color=GREY, linewidth=0.8, linestyle=":")
  left.set_title("Loss")
  left.set_ylabel("population loss")
  left.set_ylim(bottom=0)
  middle.set_title("Distance in v to the minimum")
  middle.set_ylabel("|v - v of the minimum|")
  middle.set_yscale("log")
  right.set_title("Length of w")
  right.set_ylabel("|w|")
  right.set_ylim(bottom=0)
  label_steps(left, middle, right)
  add_legend(figure, right)
  identity, relu = trajectories["identity"], trajectories["relu"]
  peak, last = float(np.max(identity.loss)), float(identity.loss[-1])
  distances = {ste: checks.distance_to(minimum, trajectories[ste]) for ste in trajectories}
  return Picture(
    file_name="instability.png",
    png=render(figure),
    title="The identity estimator is unstable near the spurious minimum",
    caption=(
      f"Descent from {experiments.START_DISTANCE} beside the spurious minimum (w opposite to w*),"
      f" learning rate {experiments.SPURIOUS_LEARNING_RATE}, v trained too, w not normalised. The"
      " ReLU and the clipped ReLU settle in it (dotted: its loss). The identity's coarse gradient"
      " does not vanish there: it shrinks w until w passes 0, and from then on w turns round and"
      " the loss (a dot a step) jumps up and down, step after step. It happens to end in the global"
      " minimum here, but not by descent."
    ),
    alt=(
      f"Three line charts over {len(identity.loss) - 1:,} steps. For the ReLU and the clipped ReLU"
      f" the loss falls smoothly from {float(relu.loss[0]):.3f} to {float(relu.loss[-1]):.3f} and"
      f" the distance to the minimum to {distances['relu'][-1]:.1g}. For the identity |w| falls to"
      f" 0, the loss jumps up to {peak:.2f}, then falls to {last:.1g}, far from the spurious"
      " minimum."
    ),
  )


def _name(ste: str) -> str:
  return sampling.ESTIMATOR_NAMES[ste]


_Curve = Callable[..., jax.Array]  # of v, w, v_star, w_star; ste


def _cosine(
  v: jax.Array, w: jax.Array, v_star: jax.Array, w_star: jax.Array, *, ste: str
) -> jax.Array:
  problem = (v, w, v_star, w_star)
  coarse = two_layer.coarse_grad(*problem, ste=ste)
  true = two_layer.population_grad(*problem)[1]
  sizes = jnp.linalg.norm(coarse) * jnp.linalg.norm(true)
  return sampling.inner_product(*problem, ste=ste) / sizes


def _draw_correlation(
  axes: Axes,
  correlation: sampling.Correlation,
  values: Mapping[str, np.ndarray],
  errors: Mapping[str, np.ndarray],
  curve: _Curve,
) -> None:
  # The ends, where both gradients vanish, have no cosine.
  fine = np.linspace(0.01, math.pi - 0.01, 120)
  problems = [sampling.make_problem_at(theta, correlation.v) for theta in fine]
  stacked = [jnp.stack(vectors) for vectors in zip(*problems, strict=True)]
  for ste in two_layer.ESTIMATORS:
    color, dashes, marker = _STYLES[ste]
    expected = jax.jit(jax.vmap(functools.partial(curve, ste=ste)))(*stacked)
    axes.plot(fine, np.asarray(expected), color=color, linestyle=dashes)
    axes.errorbar(
      correlation.theta,
      values[ste],
      yerr=_SHOWN_ERRORS * errors[ste],
      color=color,
      linestyle="none",
      marker=marker,
      markersize=6 if ste == "identity" else 3.5,
      markerfacecolor="white" if ste == "identity" else color,
      capsize=2,
      label=_name(ste),
      zorder=3,
    )
  axes.set_xlim(0, math.pi)
  axes.xaxis.set_major_locator(MultipleLocator(math.pi / 4))
  axes.xaxis.set_major_formatter(FuncFormatter(_format_angle))
  axes.set_xlabel("angle between w and w* (rad)")
  axes.grid(axis="y")


def _format_angle(value: float, _: int) -> str:
  names = {0: "0", 1: "π/4", 2: "π/2", 3: "3π/4", 4: "π"}
  return names.get(round(value / (math.pi / 4)), "")


def _count_ends(trajectories: Mapping[str, descent.Trajectory]) -> tuple[str, str]:
  """How many starts end in the global and in the spurious minimum, by estimator, as text."""
  _, spurious_loss = experiments.spurious_minimum()

  def count(target: float) -> str:
    near = {
      ste: int(np.sum(np.abs(np.asarray(t.loss)[:, -1] - target) < _NEAR))
      for ste, t in trajectories.items()
    }
    return ", ".join(f"{_name(ste)} {number}" for ste, number in near.items())

  return count(0.0), count(spurious_loss)


def _start_that_succeeds(trajectories: Mapping[str, descent.Trajectory]) -> int:
  """The first start whose loss ends near 0 for all estimators; 0 if there is none."""
  last = np.stack([np.asarray(trajectory.loss[:, -1]) for trajectory in trajectories.values()])
  return int(np.argmax((last < _NEAR).all(axis=0)))
