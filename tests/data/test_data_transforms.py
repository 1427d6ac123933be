import numpy as np
from absl.testing import absltest, parameterized

from bcgd_jax.data import transforms


class FixedDraws:
  """Stands for a generator whose `random` returns given values."""

  def __init__(self, *values):
    self._values = list(values)

  def random(self):
    return self._values.pop(0)


def _image(height=5, width=4, channels=2):
  size = height * width * channels
  return (np.arange(size) + 1).astype(np.uint8).reshape(height, width, channels)


class PadCropTest(parameterized.TestCase):
  @parameterized.product(top=tuple(range(5)), left=tuple(range(5)))
  def test_equals_crop_of_padded_image(self, top, left):
    image = _image()
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    rng = FixedDraws((top + 0.5) / 5, (left + 0.5) / 5)  # the middle of that shift's interval
    out = transforms.pad_crop(image, rng, pad=2)
    np.testing.assert_array_equal(out, padded[top : top + 5, left : left + 4])
    self.assertEqual(out.dtype, np.uint8)

  def test_extreme_draws_stay_inside(self):
    image = _image()
    last = np.nextafter(1.0, 0.0)
    out = transforms.pad_crop(image, FixedDraws(0.0, last), pad=1)
    np.testing.assert_array_equal(out, np.pad(image, ((1, 1), (1, 1), (0, 0)))[0:5, 2:6])

  @parameterized.parameters(0.0, 0.999)
  def test_pad_beyond_the_image_gives_zeros(self, draw):
    out = transforms.pad_crop(_image(), FixedDraws(draw, 0.5), pad=7)
    np.testing.assert_array_equal(out, np.zeros_like(_image()))

  def test_every_shift_is_equally_likely(self):
    image = np.zeros((3, 3, 1), np.uint8)
    image[1, 1] = 1
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 3), np.int64)
    for _ in range(9000):
      counts += transforms.pad_crop(image, rng, pad=1)[..., 0]
    # 1000 expected a cell, standard deviation 30; 5 of them.
    np.testing.assert_array_less(np.abs(counts - 1000), 150)

  def test_pad_zero_copies(self):
    image = _image()
    out = transforms.pad_crop(image, np.random.default_rng(0), pad=0)
    np.testing.assert_array_equal(out, image)
    self.assertFalse(np.shares_memory(out, image))

  def test_negative_pad(self):
    with self.assertRaisesRegex(ValueError, "pad must be at least 0, got -1"):
      transforms.pad_crop(_image(), np.random.default_rng(0), pad=-1)


class FlipTest(parameterized.TestCase):
  @parameterized.parameters((0.0, True), (0.499, True), (0.5, False), (0.999, False))
  def test_mirrors_below_one_half(self, draw, flipped):
    image = _image()
    out = transforms.flip_left_right(image, FixedDraws(draw))
    np.testing.assert_array_equal(out, image[:, ::-1, :] if flipped else image)


class AugmentTest(absltest.TestCase):
  def test_crops_then_flips_and_keeps_the_rest(self):
    image = _image()
    image.flags.writeable = False  # as sources hand it out: augmentation must not write
    augment = transforms.Augment(pad=1, flip=True)
    out = augment({"image": image, "label": 3}, FixedDraws(0.0, 0.5, 0.0))
    expected = np.pad(image, ((1, 1), (1, 1), (0, 0)))[0:5, 1:5][:, ::-1]
    np.testing.assert_array_equal(out["image"], expected)
    self.assertEqual(out["label"], 3)

  def test_off_draws_nothing(self):
    image = _image()
    out = transforms.Augment(pad=0, flip=False)({"image": image, "label": 3}, FixedDraws())
    self.assertIs(out["image"], image)


if __name__ == "__main__":
  absltest.main()
