"""What a run shows of its end: test images with the predictions before and after quantization."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgd_jax.report.gallery import Gallery, write_gallery
from bcgd_jax.training.recipe import Phase
from bcgd_jax.training.run import Run, load_phase, split_batches
from bcgd_jax.training.steps import predict_step

PyTree = Any
MAX_EXAMPLES = 2000  # of the test split are looked at, so that a large one costs seconds
NUM_SHOWN = 10  # of a sample, and at most as many more on which the two networks disagree


class Predictions(NamedTuple):
  """Of the first n images of the test split, in order.

  Attributes:
    labels: int32 [n].
    float_: int32 [n]; classes by the network before quantization.
    quantized: int32 [n]; by the network that the run ends with.
    mask: bool [n]; False where the image could not be read.
  """

  labels: np.ndarray
  float_: np.ndarray
  quantized: np.ndarray
  mask: np.ndarray


def compared_phases(phases: Sequence[Phase]) -> tuple[Phase, Phase] | None:
  """The last phase and the last float one before it; None unless there is one and it quantizes."""
  floats = [phase for phase in phases[:-1] if not phase.is_quantized]
  return (floats[-1], phases[-1]) if floats and phases[-1].is_quantized else None


def write_run_gallery(run: Run, variables: PyTree) -> None:
  """Writes the workdir's gallery.npz, where the run has a float phase to compare its end with.

  Every call writes the same bytes, so a run killed meanwhile may do it again. A run of several
  processes writes none: each of them reads its own part of every batch, and to gather images and
  predictions is not worth what it takes.

  Args:
    run: all of its phases have been finished.
    variables: what the last phase ended with.
  """
  compared = compared_phases(run.phases)
  if compared is None or jax.process_count() > 1:
    return
  before, after = compared
  found = predict_test(run, (before, load_phase(run, before)), (after, variables))
  sample, different = choose_positions(found)
  chosen = np.concatenate([sample, different])
  gallery = Gallery(
    # the examples that evaluation reads, crops included, from the same source
    images=np.stack([run.dataset.test[position]["image"] for position in chosen]),
    labels=found.labels[chosen],
    float_predictions=found.float_[chosen],
    quantized_predictions=found.quantized[chosen],
    num_sample=len(sample),
    counts=count_outcomes(found),
    num_different=int(np.sum(_is_different(found))),
    num_seen=len(found.labels),
    split_size=len(run.dataset.test),
    phases=(before.name, after.name),
    class_names=run.dataset.info.class_names,
  )
  write_gallery(run.workdir, gallery)


def predict_test(
  run: Run, before: tuple[Phase, PyTree], after: tuple[Phase, PyTree]
) -> Predictions:
  """Predictions of two phases' networks on the first MAX_EXAMPLES test images.

  Args:
    run: of one process.
    before, after: a phase and the variables to score it with, on the host.
  """
  parallel = run.parallel
  networks = [
    (
      parallel.map_step(
        functools.partial(predict_step, options=phase.options), num_replicated=1, donate=False
      ),
      parallel.replicate(variables),
    )
    for phase, variables in (before, after)
  ]
  num_seen = min(MAX_EXAMPLES, len(run.dataset.test))
  num_batches = -(-num_seen // run.settings.data.eval_batch_size)
  columns: list[tuple[Any, ...]] = []
  with contextlib.closing(split_batches(run, "test", num_batches=num_batches)) as batches:
    for batch in batches:
      placed = parallel.place_batch(batch)
      predicted = [step(variables, placed) for step, variables in networks]
      columns.append((batch["label"], *predicted, batch["mask"]))
  joined = [np.concatenate(column) for column in zip(*jax.device_get(columns), strict=True)]
  return Predictions(*(column[:num_seen] for column in joined))


def choose_positions(found: Predictions) -> tuple[np.ndarray, np.ndarray]:
  """The images to show: a sample that no prediction influences, and others that differ.

  Both are spaced evenly, since image folders are sorted by class: the first ones would be all of
  one. Images that could not be read are passed over.

  Returns:
    Positions in the test split, rising, int64: NUM_SHOWN where there are as many, and at most as
    many others, on which the two networks disagree.
  """
  sample = _spread(np.flatnonzero(found.mask))
  different = np.setdiff1d(np.flatnonzero(_is_different(found)), sample)
  return sample, _spread(different)


def _spread(positions: np.ndarray) -> np.ndarray:
  """At most NUM_SHOWN of them, evenly spaced from the first to the last."""
  picks = np.linspace(0, len(positions) - 1, min(len(positions), NUM_SHOWN)).round()
  return positions[picks.astype(int)]


def count_outcomes(found: Predictions) -> np.ndarray:
  """Images on which both are right, only the float network, only the quantized, none: int64 [4]."""
  float_right = found.float_ == found.labels
  quantized_right = found.quantized == found.labels
  outcome = 2 * ~float_right + 1 * ~quantized_right
  return np.bincount(outcome[found.mask], minlength=4)


def _is_different(found: Predictions) -> np.ndarray:
  return found.mask & (found.float_ != found.quantized)
