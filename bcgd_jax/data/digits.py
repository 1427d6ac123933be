"""scikit-learn's digits as a TFDS dataset: small enough to come with the package it depends on."""

from pathlib import Path

import numpy as np

from bcgd_jax.data import builders

IMAGE_SHAPE = (8, 8, 1)
NUM_CLASSES = 10
_TEST_EXAMPLES_PER_CLASS = 36  # of 174 to 183 a class: 360 of 1,797 in all, a fifth


class Digits(builders.ArrayBuilder, skip_registration=True):  # type: ignore[call-arg]
  """1,797 images [8, 8, 1] of handwritten digits, 1,437 to train and 360 to test."""


def digits_dir(root: Path) -> Path:
  """Where the dataset is or will be prepared under `root`."""
  return root / Digits.name / str(Digits.VERSION)


def prepare_digits(root: Path) -> Path:
  """Prepares the dataset under `root` where it is not, and returns its directory."""
  builders.prepare(Digits, digits_dir(root), data_fn=load_digits)
  return digits_dir(root)


def load_digits() -> builders.ArrayData:
  """The images as uint8, in a fixed stratified split.

  Pixel: round(v * 255 / 16), half to even, of the original v in {0, ..., 16}.
  Split (our choice, the set has none): 36 images of each class are the test split, drawn by a
  fixed permutation of the class; the others, in the original order, the training split. The 13
  writers occur on both sides, so the test accuracy says nothing about new writers.

  Returns:
    "train": images [1437, 8, 8, 1]; "test": [360, 8, 8, 1]; uint8; labels 0..9.
  Source: scikit-learn's load_digits, the test part of UCI's "Optical recognition of handwritten
    digits".
  """
  from sklearn import datasets  # takes a second to import, and only preparation needs it

  bunch = datasets.load_digits()
  images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
  labels = bunch.target.astype(np.int32)
  is_test = np.zeros(len(labels), np.bool_)
  # RandomState: the one NumPy generator whose streams are frozen across versions.
  rng = np.random.RandomState(0)
  for label in range(NUM_CLASSES):
    is_test[rng.permutation(np.flatnonzero(labels == label))[:_TEST_EXAMPLES_PER_CLASS]] = True
  splits = {
    "train": builders.LabeledImages(images[~is_test], labels[~is_test]),
    "test": builders.LabeledImages(images[is_test], labels[is_test]),
  }
  return builders.ArrayData(splits, num_classes=NUM_CLASSES)
