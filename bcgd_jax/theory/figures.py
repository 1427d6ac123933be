"""The five pictures of the theory, drawn from what `experiments` measured."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from bcgd_jax.report.plotting import COLORS, Picture, plot_style, render
from bcgd_jax.theory import experiments
from bcgd_jax.theory.drawing import GREY, add_legend, label_steps, make_figure
from bcgd_jax.theory.two_layer_figures import (
  correlation_picture,
  descent_picture,
  instability_picture,
)

# The first two nearly coincide for long: dashes show both.
_CLASSIFIER_STYLES = ((COLORS[0], "-"), (COLORS[1], "--"), (COLORS[2], "-"))
_QUANTIZER_STYLES: Mapping[str, tuple[str, str]] = {
  "binary": (COLORS[0], "o"),
  "ternary": (COLORS[2], "s"),
}
_SHOWN_STEPS = 150


def draw_pictures(evidence: experiments.Evidence) -> tuple[Picture, ...]:
  """Correlation, descent, instability, multi-class training and blending, in this order."""
  with plot_style():
    return (
      correlation_picture(evidence.correlations),
      descent_picture(evidence),
      instability_picture(evidence.spurious),
      multiclass_picture(evidence),
      blending_picture(evidence),
    )


def multiclass_picture(evidence: experiments.Evidence) -> Picture:
  """Training loss, and points classified wrongly, to zero."""
  figure = make_figure(width=8.0)
  left, right = figure.subplots(1, 2)
  least = 1 / experiments.NUM_TRAIN
  zeros = {}
  for (name, history), (color, dashes) in zip(
    evidence.classifiers.items(), _CLASSIFIER_STYLES, strict=True
  ):
    loss = np.asarray(history.train_loss)
    zeros[name] = int(np.argmax(loss == 0)) if (loss == 0).any() else None
    wrong, unseen = (
      1 - np.asarray(accuracy) for accuracy in (history.train_accuracy, history.test_accuracy)
    )
    left.plot(*_average_stretches(loss), color=color, linestyle=dashes, label=name)
    right.plot(*_average_stretches(wrong), color=color, linestyle=dashes)
    right.plot(*_average_stretches(unseen), color=color, linestyle=":")
  for axes in (left, right):
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=least, linscale=0.5)
    axes.set_ylim(bottom=-least / 8)
    axes.set_xlabel("descent step")
    axes.grid(axis="y")
  left.set_title("Training loss")
  left.set_ylabel("hinge loss a point")
  right.set_title("Points classified wrongly")
  right.set_ylabel("share of points")
  right.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
  add_legend(figure, left, {"held-out points": ":"})
  reached = ", ".join(
    f"{name} {'not' if step is None else f'after {step:,} steps'}" for name, step in zeros.items()
  )
  accuracies = [100 * float(np.mean(h.test_accuracy[-100:])) for h in evidence.classifiers.values()]
  return Picture(
    file_name="multiclass.png",
    png=render(figure),
    title="Monotone estimators reach zero loss",
    caption=(
      f"A two-layer network with 2-bit activations on {experiments.NUM_TRAIN:,} points of four"
      f" classes, each in a plane of a {experiments.CLASSIFIER_DIM}-dimensional space; coarse"
      " gradient descent in the first layer with three monotone estimators. Where the training loss"
      " is 0, every training point is classified rightly. Held-out points are drawn anew at every"
      " step. Curves are means over stretches of steps; both axes are logarithmic, with 0 at the"
      " foot."
    ),
    alt=(
      f"Two line charts over {len(loss) - 1:,} steps. The training loss first reaches 0:"
      f" {reached}. The share of wrong points falls alongside; held-out accuracy ends at"
      f" {min(accuracies):.1f} % or above."
    ),
  )


def blending_picture(evidence: experiments.Evidence) -> Picture:
  """Descent with and without blending, the guaranteed drop, and how much blending it takes."""
  figure = make_figure()
  left, middle, right = figure.subplots(1, 3)
  blended, free = evidence.blended["binary"], evidence.unblended["binary"]
  problem = _typical_problem(blended.losses)
  for run, color, label in (
    (free, COLORS[1], "rho = 0"),
    (blended, COLORS[0], f"rho = {blended.rho:g}"),
  ):
    losses = run.losses[problem, : _SHOWN_STEPS + 1]
    left.plot(losses / losses[0], color=color, label=label, linewidth=1.0)
  left.set_title("One problem, binary weights")
  left.set_ylabel("loss over that of the start")
  left.set_yscale("log")
  left.legend(loc="upper right")
  label_steps(left)
  _draw_guarantee(middle, evidence)
  shares = np.array(experiments.SWEEP_SHARES)
  for name, rising in evidence.rising_shares.items():
    color, marker = _QUANTIZER_STYLES[name]
    right.plot(shares, rising, color=color, marker=marker, markersize=4, label=name)
  right.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
  right.annotate(
    "from here on\nthe inequality\nallows none",
    (1.0, rising.max() / 2),
    xytext=(4, 0),
    textcoords="offset points",
    fontsize=8,
  )
  right.set_title("Steps that raise the loss")
  right.set_xlabel("rho / (learning rate · L)")
  right.set_ylabel("share of steps")
  right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
  right.set_ylim(bottom=0)
  right.legend(loc="upper right")
  rises = [100 * run.num_rises() / run.moved.size for run in evidence.unblended.values()]
  below = sum(run.num_violations() for run in evidence.blended.values())
  blended_rises = sum(run.num_rises() for run in evidence.blended.values())
  return Picture(
    file_name="blending.png",
    png=render(figure),
    title="Blending gives sufficient descent",
    caption=(
      f"Blended descent on {len(free.losses)} random quadratics in 12 dimensions, exact binary and"
      f" ternary projections, learning rate {blended.rate_times_lipschitz:g} / L. Left: loss at the"
      " quantized weights of one problem (of median outcome with blending); without blending it"
      " goes up and down, on the whole at lower values: descent is what blending promises, not a"
      f" better minimum. Middle: drop of the loss at a step with rho = {blended.rho:g} against the"
      " drop that the inequality guarantees, both over the loss, for a choice of steps that has"
      f" those closest to breaking it: below the line it is broken, at {below:,} of all steps."
      " Right: share of steps that raise the loss, by how much is blended."
    ),
    alt=(
      "A line chart of the loss over steps, without and with blending. With it, the loss rises at"
      f" {blended_rises:,} steps of all problems. A scatter of actual against guaranteed drop, with"
      f" {below:,} steps below the diagonal. A line chart of the share of rising steps:"
      f" {rises[0]:.0f} % (binary) and {rises[1]:.0f} % (ternary) without blending,"
      f" {_describe_end(evidence.rising_shares)}."
    ),
  )


def _describe_end(rising_shares: Mapping[str, np.ndarray]) -> str:
  """From which rho on no step raises the loss, for all quantizers."""
  highest = np.max(list(rising_shares.values()), axis=0)
  still = np.flatnonzero(highest > 0)
  first = int(still[-1]) + 1 if still.size else 0
  if first == highest.size:
    return "never 0"
  return f"0 from rho of {experiments.SWEEP_SHARES[first]:g} times learning rate times L on"


def _typical_problem(losses: np.ndarray) -> int:
  outcomes = losses[:, -1] / losses[:, 0]
  return int(np.argsort(outcomes, kind="stable")[outcomes.size // 2])


def _average_stretches(values: np.ndarray) -> tuple[list[float], list[float]]:
  """Middles and means of stretches even on a logarithmic axis; the first entry counts as step 1."""
  edges = np.unique(np.round(np.geomspace(1, values.size + 1, 60)).astype(int)).tolist()
  pairs = list(itertools.pairwise(edges))
  return (
    [math.sqrt(a * (b - 1)) for a, b in pairs],
    [float(np.mean(values[a - 1 : b - 1])) for a, b in pairs],
  )


def _draw_guarantee(axes: Axes, evidence: experiments.Evidence) -> None:
  lowest, goes_up = 1e-8, False
  for name, run in evidence.blended.items():
    color, marker = _QUANTIZER_STYLES[name]
    drops = -np.diff(run.losses, axis=1) / run.losses[:, :-1]
    promised = drops + run.excess
    # Evenly over the axis; of the large drops, where codes change and not the scale alone, more.
    order = np.argsort(promised, axis=None)
    levels = np.concatenate([np.geomspace(lowest, 1e-3, 50), np.geomspace(1e-3, 1, 120)])
    ranks = np.searchsorted(promised.flat[order], levels)
    even = order[np.unique(ranks[ranks < order.size])]
    # below the lowest level rounding decides; what breaks the inequality is shown wherever it lies
    ratios = np.where(promised > lowest, drops / np.maximum(promised, lowest), math.inf)
    closest = np.argsort(ratios, axis=None)[:20]
    broken = np.argsort(run.excess, axis=None)[::-1][: min(run.num_violations(), 200)]
    chosen = np.union1d(even, np.union1d(closest, broken))
    goes_up = goes_up or bool((drops.flat[chosen] <= 0).any())
    is_binary = name == "binary"
    axes.plot(
      promised.flat[chosen],
      drops.flat[chosen],
      color=color,
      linestyle="none",
      marker=marker,
      markersize=5 if is_binary else 2.5,
      markerfacecolor="none" if is_binary else color,
      markeredgewidth=0.7,
      label=name,
    )
  axes.set_xscale("log")
  if goes_up:  # a step that raises the loss has a negative drop
    axes.set_yscale("symlog", linthresh=lowest)
  else:
    axes.set_yscale("log")
  axes.plot((lowest, 1), (lowest, 1), color=GREY, linewidth=0.8)
  axes.set_title("Steps with blending")
  axes.set_xlabel("guaranteed drop, over the loss")
  axes.set_ylabel("drop, over the loss")
  axes.legend(loc="lower right")
