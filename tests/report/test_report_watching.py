"""What the figures of a run's fortunes say, and when there are none."""

import io
import math

import fake_run
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from bcgd_jax.report import plotting, watching

_LAYERS = [*fake_run.PATHS, "stem/relu"]


def _pixels(picture: plotting.Picture) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)


class WatchingTest(parameterized.TestCase):
  def test_optimizer(self):
    picture = watching.optimizer_picture(fake_run.make_records())
    self.assertEqual(picture.file_name, "optimizer.png")
    # gradients: 2 + exp(-0.4) at first, 2.1 + exp(-4) at last
    self.assertEqual(
      picture.alt,
      "3 line charts over steps. Learning rate: from 0.1 to 0.1; rho, the weight of blending: from"
      " 0 to 1e-05; Norm of the gradient: from 2.67 to 2.12.",
    )
    self.assertEqual(_pixels(picture).shape, (1480, 1600, 3))  # 0.8 + 3 * 2.2 inches at 200 dpi

  def test_rho_is_not_drawn_where_nothing_is_blended(self):
    picture = watching.optimizer_picture(fake_run.make_records(quantized=False))
    self.assertStartsWith(picture.alt, "2 line charts over steps. Learning rate")
    self.assertNotIn("rho", picture.alt)

  def test_speed(self):
    picture = watching.speed_picture(fake_run.make_records())
    self.assertEqual(picture.file_name, "speed.png")
    self.assertEqual(
      picture.alt,
      "2 line charts over steps. Time of a step: from 0.1 s to 0.1 s; Share of it spent waiting for"
      " input: from 25.00 % to 25.00 %.",
    )

  def test_codes(self):
    picture = watching.codes_picture(fake_run.make_records(), _LAYERS)
    self.assertEqual(picture.file_name, "codes.png")
    self.assertEqual(
      picture.alt,
      "Two line charts of the weights whose code changed between reports: from 10.00 % at step 44"
      " to 1.00 % at step 80 of all, and by layer for 4 layers.",
    )

  def test_dead(self):
    picture = watching.dead_picture(fake_run.make_records(), _LAYERS)
    self.assertEqual(picture.file_name, "dead.png")
    self.assertEqual(
      picture.alt,
      "Line chart of the dead channels of 1 activations; at the end stem/relu has most, 12.50 %.",
    )

  def test_records_of_older_runs_give_no_figure(self):
    records = [
      {"step": 4, "phase": "float", "kind": "train", "loss": 1.0, "accuracy": 0.5},
      {"step": 4, "phase": "float", "kind": "test", "accuracy": 0.5},
    ]
    self.assertIsNone(watching.optimizer_picture(records))
    self.assertIsNone(watching.speed_picture(records))
    self.assertIsNone(watching.codes_picture(records, []))
    self.assertIsNone(watching.dead_picture(records, []))

  def test_first_report_after_compilation_has_no_time(self):
    records = fake_run.make_records()
    records[0] = {**records[0], "timing": {}}
    records[1] = {**records[1], "timing": {"step_seconds": 0.5}}
    self.assertIn("from 0.5 s to 0.1 s", watching.speed_picture(records).alt)

  @parameterized.parameters(math.nan, math.inf, 0.0)
  def test_odd_numbers_are_drawn_without_a_warning(self, value: float):
    records = [
      {**r, "grad_norm": value, "learning_rate": value, "timing": {"step_seconds": value}}
      for r in fake_run.make_records()
      if r["kind"] == "train"
    ]
    self.assertIsNotNone(watching.optimizer_picture(records))
    self.assertIsNotNone(watching.speed_picture(records))

  @parameterized.parameters(1, 55)
  def test_any_number_of_layers(self, count: int):
    paths = [f"block{i}/conv/kernel" for i in range(count)]
    records = []
    for step in (2, 4):
      head = {"step": step, "phase": "quantized"}
      train = {"loss": 1.0, "accuracy": 0.5, "codes_changed": 0.0}
      records.append({**head, "kind": "train", **train})
      records.append({**head, "kind": "codes", "changed": dict.fromkeys(paths, 0.0)})
      records.append({**head, "kind": "dead", "dead": dict.fromkeys(paths, 0.0)})
    self.assertIn(f"for {count} layers", watching.codes_picture(records, []).alt)
    self.assertIn(f"of {count} activations", watching.dead_picture(records, []).alt)

  def test_same_data_same_bytes(self):
    records = fake_run.make_records()
    for draw in (watching.optimizer_picture, watching.speed_picture):
      self.assertEqual(draw(records).png, draw(records).png)
    for draw in (watching.codes_picture, watching.dead_picture):
      self.assertEqual(draw(records, _LAYERS).png, draw(records, _LAYERS).png)


if __name__ == "__main__":
  absltest.main()
