"""Counts images that could not be decoded, and stops where they are too many."""

import numpy as np
from absl import logging

from bcgd_jax.data.encoded import NOT_BAD, EncodedSource
from bcgd_jax.errors import TrainingError

_MAX_LISTED = 5


class BadImages:
  """The images of a source that turned out bad since it was opened, on this process.

  Args:
    source: what is read.
    max_fraction: of the source's images that may be bad.
  """

  def __init__(self, source: EncodedSource, *, max_fraction: float) -> None:
    self._source, self._max_fraction = source, max_fraction

  def note(self, bad: np.ndarray) -> None:
    """Takes the "bad" entry of a batch; a warning is logged for each image met first.

    Raises:
      TrainingError: if more of the images are bad than may be, naming the first.
    """
    found = self._source.found_bad
    for record in np.unique(bad[bad != NOT_BAD]).tolist():
      if record not in found:
        found[record] = None
        logging.warning("Bad image %d, left out: %s", len(found), self._source.records.name(record))
    if len(found) > self._max_fraction * len(self._source):
      names = [self._source.records.name(record) for record in list(found)[:_MAX_LISTED]]
      raise TrainingError(
        f"at most {self._max_fraction:g} of the {len(self._source)} images may be unreadable "
        f"(config.data.max_bad_fraction), but {len(found)} are already, among them: "
        f"{', '.join(names)}"
      )
