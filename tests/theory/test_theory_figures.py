"""The five pictures: words that follow the data, and pixels of every estimator's colour."""

import dataclasses
import functools
import io

import matplotlib
import numpy as np
from absl.testing import parameterized
from PIL import Image
from theory_evidence import NUM_STEPS, make_evidence, make_history, make_runs

from bcgd_jax.report.plotting import COLORS
from bcgd_jax.theory import experiments, figures, two_layer_figures

NAMES = ("correlation", "descent", "instability", "multiclass", "blending")


@functools.cache
def draw():
  before = dict(matplotlib.rcParams)
  pictures = figures.draw_pictures(make_evidence())
  assert dict(matplotlib.rcParams) == before
  return dict(zip(NAMES, pictures, strict=True))


def num_pixels_of(picture, color):
  pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)
  rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
  return int((np.abs(pixels - rgb).max(axis=-1) <= 2).sum())


class PicturesTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_files_and_words(self, name):
    picture = draw()[name]
    self.assertEqual(picture.file_name, f"{name}.png")
    width, height = Image.open(io.BytesIO(picture.png)).size
    self.assertEqual((width, height), (1600 if name == "multiclass" else 2100, 740))
    for words in (picture.title, picture.caption, picture.alt):
      self.assertNotIn("nan", words)
      self.assertNotIn("  ", words)
    self.assertEndsWith(picture.caption, ".")
    self.assertEndsWith(picture.alt, ".")

  @parameterized.parameters(*NAMES)
  def test_every_line_is_drawn(self, name):
    for color in COLORS[:3]:
      self.assertGreater(num_pixels_of(draw()[name], color), 100)

  def test_same_evidence_same_bytes(self):
    evidence = make_evidence()
    self.assertEqual(figures.multiclass_picture(evidence), figures.multiclass_picture(evidence))


class WordsTest(parameterized.TestCase):
  def test_descent_counts_the_starts_that_succeed(self):
    evidence = make_evidence()
    relu = evidence.trainable_v["relu"]
    trapped = np.stack([np.full(NUM_STEPS + 1, 0.289), relu.loss[1]])
    trajectory = dataclasses.replace(relu, loss=trapped)
    changed = make_evidence(trainable_v={**evidence.trainable_v, "relu": trajectory})
    caption = two_layer_figures.descent_picture(changed).caption
    self.assertIn("the global minimum: identity 2, ReLU 1, clipped ReLU 2;", caption)
    self.assertIn("the spurious one: identity 0, ReLU 1, clipped ReLU 0.", caption)
    self.assertIn("the loss ends at 1e-05 or below", caption)
    caption = two_layer_figures.descent_picture(
      make_evidence(trainable_v=dict.fromkeys(evidence.trainable_v, trajectory))
    ).caption
    self.assertIn("the loss ends at 1e-05 or below", caption)

  def test_multiclass_says_when_the_loss_reaches_zero(self):
    names = tuple(experiments.MULTICLASS_ESTIMATORS)
    histories = [make_history(), make_history(last_loss=0.01), make_history(test_accuracy=0.9)]
    evidence = make_evidence(classifiers=dict(zip(names, histories, strict=True)))
    self.assertEqual(
      figures.multiclass_picture(evidence).alt,
      "Two line charts over 200 steps. The training loss first reaches 0: vanilla ReLU after 150"
      " steps, log-tailed ReLU not, reverse exponential after 150 steps. The share of wrong points"
      " falls alongside; held-out accuracy ends at 90.0 % or above.",
    )

  def test_blending_tells_the_share_of_rises(self):
    steady = make_runs(0.0, loss=np.stack([np.geomspace(1, 0.1, NUM_STEPS + 1)] * 3))
    evidence = make_evidence(unblended={"binary": make_runs(0.0), "ternary": steady})
    alt = figures.blending_picture(evidence).alt
    self.assertIn("50 % (binary) and 0 % (ternary)", alt)
    self.assertIn("without blending, 0 from rho of 1 times learning rate times L on.", alt)

  def test_blending_tells_of_steps_that_break_it(self):
    sound = figures.blending_picture(make_evidence())
    self.assertIn("the loss rises at 0 steps of all problems", sound.alt)
    self.assertIn("with 0 steps below the diagonal", sound.alt)
    falling = np.geomspace(1, 0.1, NUM_STEPS + 1)
    rising = np.where(np.arange(NUM_STEPS + 1) == 9, 1.1, falling)
    broken = make_runs(0.1, excess=1e-9, loss=np.stack([rising] * 3))
    shares = {name: np.ones(len(experiments.SWEEP_SHARES)) for name in experiments.QUANTIZERS}
    picture = figures.blending_picture(
      make_evidence(blended={"binary": make_runs(0.1), "ternary": broken}, rising_shares=shares)
    )
    self.assertIn("the loss rises at 3 steps of all problems", picture.alt)
    self.assertIn("with 150 steps below the diagonal", picture.alt)
    self.assertIn("without blending, never 0.", picture.alt)

  def test_instability_tells_the_peak(self):
    picture = two_layer_figures.instability_picture(make_evidence().spurious)
    # the jumping loss is 0.3 and 1.3 by turns
    self.assertIn("the loss jumps up to 1.30, then falls to 0.3,", picture.alt)


class StretchesTest(parameterized.TestCase):
  def test_means_of_all_values(self):
    middles, means = figures._average_stretches(np.arange(5.0))
    self.assertEqual(means, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(middles, [1, 2, 3, 4, 5])
    middles, means = figures._average_stretches(np.ones(5000))
    self.assertBetween(len(means), 30, 60)
    np.testing.assert_allclose(means, np.ones(len(means)))
    self.assertEqual(sorted(middles), middles)
