import concurrent.futures
import pathlib
import pickle
import tempfile
import threading
import time

import numpy as np
from absl.testing import absltest, parameterized

from bcgd_jax.data import builders, sources


class Colour(builders.ArrayBuilder, skip_registration=True):
  pass


def _split(num_examples, *, channels):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (num_examples, 6, 5, channels), np.uint8)
  return builders.LabeledImages(images, np.arange(num_examples) % 4)


class SourcesTestCase(parameterized.TestCase):
  def _prepare(self, *, channels=3):
    split = _split(20, channels=channels)
    target = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "colour" / "1.0.0"
    arrays = builders.ArrayData({"train": split}, num_classes=4)
    builders.prepare(Colour, target, data_fn=lambda: arrays)
    return sources.TfdsSource(target, "train"), split

  def _assert_holds(self, source, split):
    self.assertLen(source, len(split.labels))
    for i in range(len(source)):
      example = source[i]
      self.assertEqual(set(example), {"image", "label"})
      np.testing.assert_array_equal(example["image"], split.images[i])
      self.assertEqual(example["image"].dtype, np.uint8)
      self.assertIs(type(example["label"]), int)
      self.assertEqual(example["label"], split.labels[i])


class TfdsSourceTest(SourcesTestCase):
  @parameterized.parameters(1, 3)
  def test_reads_back(self, channels):
    source, split = self._prepare(channels=channels)
    self.assertEqual(source.image_shape, (6, 5, channels))
    self._assert_holds(source, split)

  @parameterized.parameters(-1, 20)
  def test_index_out_of_range(self, index):
    source, _ = self._prepare()
    for each in (source, sources.CachedSource(source)):
      with self.assertRaisesRegex(IndexError, rf"index must be in \[0, 19\], got {index}"):
        each[index]


class CachedSourceTest(SourcesTestCase):
  def test_first_and_second_reading(self):
    source, split = self._prepare()
    cached = sources.CachedSource(source)
    self._assert_holds(cached, split)
    self._assert_holds(cached, split)

  def test_decodes_once(self):
    source, _ = self._prepare()
    calls = []
    decode = source.decode
    source.decode = lambda record: calls.append(0) or decode(record)
    cached = sources.CachedSource(source)
    for i in (3, 3, 5, 3):
      cached[i]
    self.assertLen(calls, 2)

  def test_images_cannot_be_written(self):
    cached = sources.CachedSource(self._prepare()[0])
    with self.assertRaisesRegex(ValueError, "read-only"):
      cached[0]["image"][0, 0, 0] = 1

  def test_many_threads(self):
    source, split = self._prepare()
    calls = []
    read_records = source.read_records

    def read_slowly():
      calls.append(0)
      time.sleep(0.1)  # long enough for the other threads to come here, were there no lock
      return read_records()

    source.read_records = read_slowly
    cached = sources.CachedSource(source)
    barrier = threading.Barrier(4)

    def read(order):
      barrier.wait()
      return {i: cached[i] for i in order}

    orders = [np.random.default_rng(seed).permutation(20).tolist() for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      for read_by_one in pool.map(read, orders):
        for i, example in read_by_one.items():
          np.testing.assert_array_equal(example["image"], split.images[i])
    self.assertLen(calls, 1)

  def test_pickling_leaves_the_memory_behind(self):
    source, split = self._prepare()
    cached = sources.CachedSource(source)
    cached[0]
    pickled = pickle.dumps(cached)
    self.assertNotIn(split.images[0].tobytes(), pickled)
    self._assert_holds(pickle.loads(pickled), split)


class SubsetSourceTest(SourcesTestCase):
  def test_order_of_positions(self):
    source, split = self._prepare()
    positions = [7, 0, 19]
    subset = sources.SubsetSource(source, positions)
    self._assert_holds(
      subset, builders.LabeledImages(split.images[positions], split.labels[positions])
    )

  def test_empty(self):
    subset = sources.SubsetSource(self._prepare()[0], [])
    self.assertEmpty(subset)
    with self.assertRaises(IndexError):
      subset[0]


class DecodeTest(parameterized.TestCase):
  @parameterized.parameters(1, 3)
  def test_png_is_lossless(self, channels):
    image = _split(1, channels=channels).images[0]
    decoded = builders.decode_image(builders.encode_png(image), num_channels=channels)
    np.testing.assert_array_equal(decoded, image)

  def test_grey_file_of_a_colour_dataset(self):
    image = _split(1, channels=1).images[0]
    decoded = builders.decode_image(builders.encode_png(image), num_channels=3)
    np.testing.assert_array_equal(decoded, np.repeat(image, 3, axis=-1))


if __name__ == "__main__":
  absltest.main()
