"""What the figures show: phases, choice of layers, and pixels that follow the data."""

import io
import math
import subprocess
import sys

import fake_run
import matplotlib
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from bcgd_jax.report import figures, histograms, lines, plotting

_KIND_FREE = {"kind": "note"}


def _pixels(picture: plotting.Picture) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)


def _num_pixels_of(picture: plotting.Picture, color: str) -> int:
  rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
  return int((np.abs(_pixels(picture) - rgb).max(axis=-1) <= 2).sum())


class PhaseSpansTest(parameterized.TestCase):
  def test_phases_follow_each_other_and_empty_ones_take_no_colour(self):
    records = [
      {"step": 0, "phase": "float", **_KIND_FREE},
      {"step": 30, "phase": "float", **_KIND_FREE},
      {"step": 30, "phase": "calibration", **_KIND_FREE},
      {"step": 70, "phase": "quantized", **_KIND_FREE},
      {"step": 50, "phase": "quantized", **_KIND_FREE},
    ]
    first, second = plotting.COLORS[:2]
    self.assertEqual(
      plotting.phase_spans(records),
      [
        plotting.Span("float", 0, 30, first),
        plotting.Span("calibration", 30, 30, second),
        plotting.Span("quantized", 30, 70, second),
      ],
    )

  def test_no_records(self):
    self.assertEqual(plotting.phase_spans([]), [])


class PathsTest(parameterized.TestCase):
  def test_order_is_the_layers(self):
    layers = ["stem", "stage1/conv1", "stage1/conv10", "head"]
    found = ["unknown", "head/kernel", "stage1/conv10/kernel", "stage1/conv1/kernel", "stem"]
    self.assertEqual(
      plotting.order_paths(found, layers),
      ["stem", "stage1/conv1/kernel", "stage1/conv10/kernel", "head/kernel", "unknown"],
    )

  @parameterized.parameters(
    ("a/b/kernel", "a/b"), ("a/relu/alpha", "a/relu"), ("a/bias", "a/bias"), ("alpha", "alpha")
  )
  def test_short_path(self, path: str, expected: str):
    self.assertEqual(plotting.short_path(path), expected)


class CurvesTest(parameterized.TestCase):
  def test_size_and_words(self):
    picture = figures.curves_picture(fake_run.make_records())
    self.assertEqual(picture.file_name, "curves.png")
    self.assertEqual(_pixels(picture).shape, (1080, 1600, 3))
    self.assertEqual(
      picture.alt,
      "Two line charts over 80 optimizer steps. Phase float: training loss from 0.67 to 0.0183,"
      " validation accuracy ending at 95.00 %, test accuracy 97.50 %. Phase quantized: training"
      " loss from 0.77 to 0.118, validation accuracy ending at 94.00 %, test accuracy 95.00 %.",
    )

  def test_each_phase_has_its_colour(self):
    both = figures.curves_picture(fake_run.make_records())
    one = figures.curves_picture(fake_run.make_records(quantized=False))
    first, second = plotting.COLORS[:2]
    for picture, color, drawn in (
      (both, first, 1),
      (both, second, 1),
      (one, first, 1),
      (one, second, 0),
    ):
      self.assertEqual(_num_pixels_of(picture, color) > 500, bool(drawn))

  def test_same_data_same_bytes(self):
    records = fake_run.make_records()
    self.assertEqual(figures.curves_picture(records).png, figures.curves_picture(records).png)

  def test_without_validation_the_training_accuracy_is_named(self):
    records = [r for r in fake_run.make_records() if r["kind"] != "validation"]
    picture = figures.curves_picture(records)
    self.assertIn("training accuracy ending at 90.00 %", picture.alt)
    self.assertNotIn("validation", picture.alt + picture.caption)

  def test_nothing_recorded(self):
    self.assertIsNone(figures.curves_picture([]))
    self.assertIsNone(figures.curves_picture([{"step": 3, "phase": "a", "kind": "phase_end"}]))

  @parameterized.named_parameters(
    ("nan", math.nan), ("infinite", math.inf), ("zero", 0.0), ("negative", -1.0)
  )
  def test_odd_losses_are_drawn_without_a_warning(self, loss: float):
    records = fake_run.make_records()
    odd = [
      {**r, "loss": loss} if r["kind"] == "train" and r["step"] % 8 == 0 else r for r in records
    ]
    self.assertIsNotNone(figures.curves_picture(odd))
    self.assertIsNotNone(
      figures.curves_picture([{**r, "loss": loss} for r in records if r["kind"] == "train"])
    )

  def test_long_run_gets_a_running_mean(self):
    records = fake_run.make_records(steps=400)
    self.assertIn("running mean", figures.curves_picture(records).caption)
    steps, values = np.arange(100.0), np.arange(100.0) ** 2
    middle, mean = lines.running_mean(steps, values, 5)
    np.testing.assert_allclose(middle, np.arange(2.0, 98.0), rtol=1e-12)
    np.testing.assert_allclose(mean, [np.mean(values[i : i + 5]) for i in range(96)], rtol=1e-12)

  def test_run_of_no_step(self):
    record = {"step": 0, "phase": "float", "kind": "test", "loss": 2.3, "accuracy": 0.1}
    self.assertIn("test accuracy 10.00 %", figures.curves_picture([record]).alt)


class AlphaTest(parameterized.TestCase):
  def test_words(self):
    picture = figures.alpha_picture(fake_run.make_records(), ["stem/conv", "stem/relu"])
    self.assertEqual(picture.file_name, "alpha.png")
    # the last value is 0.3 + exp(-4) + 0.1
    self.assertEqual(
      picture.alt,
      "Line chart of alpha for 1 activations, from stem/relu to stem/relu; the last values lie"
      " between 0.418 and 0.418.",
    )

  def test_none_without_alpha(self):
    self.assertIsNone(figures.alpha_picture(fake_run.make_records(quantized=False), []))
    empty = {"step": 1, "phase": "a", "kind": "alpha", "alpha": {}}
    self.assertIsNone(figures.alpha_picture([empty], []))

  @parameterized.parameters(1, 10, 11, 55)
  def test_any_number_of_layers(self, count: int):
    layers = [f"block{i}/relu" for i in range(count)]
    records = [
      {
        "step": step,
        "phase": "quantized",
        "kind": "alpha",
        "alpha": {f"{layer}/alpha": 0.1 * step + i for i, layer in enumerate(reversed(layers))},
      }
      for step in (1, 2)
    ]
    picture = figures.alpha_picture(records, layers)
    self.assertEqual(_pixels(picture).shape, (760, 1600, 3))
    self.assertIn(f"from block0/relu to block{count - 1}/relu", picture.alt)

  def test_names_are_not_formulas(self):
    record = {"step": 1, "phase": "$\\bad$", "kind": "alpha", "alpha": {"$\\bad$/alpha": 0.3}}
    self.assertIsNotNone(figures.alpha_picture([record], []))


class WeightsTest(parameterized.TestCase):
  def test_words(self):
    weights = fake_run.make_weights()
    picture = histograms.weights_picture(
      weights, order=["float", "quantized"], layers=list(fake_run.PATHS)
    )
    self.assertEqual(picture.file_name, "weights.png")
    self.assertStartsWith(
      picture.alt,
      "Histograms of the weights of 4 of 4 quantized layers: stem/conv, block1/conv1, block1/conv2,"
      " head/dense.",
    )
    codes = weights["quantized"]["head/dense/kernel"]["codes"]
    self.assertEqual(sum(codes.values()), 640)
    shares = [round(100 * codes[code] / 640) for code in ("-1", "1")]
    self.assertEndsWith(
      picture.alt, f" head/dense: {shares[0]} % at code -1, {shares[1]} % at code 1."
    )
    self.assertGreater(_num_pixels_of(picture, plotting.COLORS[1]), 500)

  def test_float_run_has_no_after(self):
    picture = histograms.weights_picture(
      fake_run.make_weights(quantized=False), order=["float"], layers=list(fake_run.PATHS)
    )
    self.assertEqual(picture.title, "Weights")
    self.assertStartsWith(picture.alt, "Histograms of the weights of 4 of 4 layers:")
    self.assertEqual(_num_pixels_of(picture, plotting.COLORS[1]), 0)

  def test_phases_compared(self):
    float_, coded = {"a": {"codes": None}}, {"a": {"codes": {"1": 3}}}
    weights = {"q2": coded, "q1": coded, "warm": float_, "late": float_, "float": float_}
    order = ["float", "warm", "q1", "q2", "late"]
    chosen = histograms.choose_phases(weights, order)
    self.assertEqual((chosen.before_phase, chosen.after_phase), ("warm", "q2"))
    only_after = histograms.choose_phases({"q1": coded}, order)
    self.assertEqual((only_after.before_phase, only_after.after_phase), (None, "q1"))
    self.assertEqual(only_after.before, {})

  def test_six_layers_from_first_to_last(self):
    paths = [f"block{i}/conv/kernel" for i in range(20)]
    entry = fake_run.make_histogram(np.linspace(-1, 1, 50))
    picture = histograms.weights_picture(
      {"float": dict.fromkeys(reversed(paths), entry)}, order=["float"], layers=paths
    )
    # evenly spread over 0..19: 0, 3.8, 7.6, 11.4, 15.2, 19
    names = ", ".join(f"block{i}/conv" for i in (0, 4, 8, 11, 15, 19))
    self.assertEqual(picture.alt, f"Histograms of the weights of 6 of 20 layers: {names}.")

  @parameterized.named_parameters(
    ("binary", 1), ("ternary", 2), ("four_bits", 4), ("eight_bits", 8)
  )
  def test_levels_and_channel_scales(self, bits: int):
    weights = np.random.default_rng(0).normal(size=1000)
    largest = 2 ** (bits - 1) - 1 if bits > 1 else 1
    codes = np.clip(np.round(weights * largest), -largest, largest).astype(int)
    entry = fake_run.make_histogram(weights, codes)
    picture = histograms.weights_picture({"q": {"a": entry}}, order=["q"], layers=["a"])
    self.assertNotIn("channel", picture.caption)
    spread = {**entry, "scale": [0.1, 0.2, 0.3]}
    picture = histograms.weights_picture({"q": {"a": spread}}, order=["q"], layers=["a"])
    self.assertIn("Scales differ by channel", picture.caption)

  @parameterized.named_parameters(
    ("nan_scale", "scale", [math.nan]),
    ("nan_edges", "edges", [math.nan] * 21),
    ("no_weights", "counts", [0] * 20),
    ("no_width", "edges", [0.0] * 21),
  )
  def test_layers_that_cannot_be_drawn_are_left_out(self, key: str, value: list[float]):
    weights = fake_run.make_weights()
    weights["quantized"]["block1/conv1/kernel"][key] = value
    picture = histograms.weights_picture(weights, order=["float", "quantized"], layers=[])
    self.assertIn("3 of 4 quantized layers", picture.alt)
    self.assertNotIn("block1/conv1", picture.alt)

  def test_nothing_recorded(self):
    self.assertIsNone(histograms.weights_picture({}, order=[], layers=[]))


class StateTest(absltest.TestCase):
  def test_settings_of_matplotlib_are_as_before(self):
    before = dict(matplotlib.rcParams)
    figures.curves_picture(fake_run.make_records())
    self.assertEqual(dict(matplotlib.rcParams), before)

  def test_pyplot_is_not_imported(self):
    code = "import sys, bcgd_jax.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    self.assertEqual(subprocess.run([sys.executable, "-c", code], check=False).returncode, 0)


if __name__ == "__main__":
  absltest.main()
