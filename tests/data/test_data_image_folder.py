"""Image folders: what is read, in which order, and what is said of those that are wrong."""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from encoded_helpers import folder_options

from bcgd_jax.benchmarks.jpeg_folder import write_image_folder
from bcgd_jax.data import dataset_info, eval_batches, load_dataset, pipeline, train_batches
from bcgd_jax.data.crops import center_crop
from bcgd_jax.data.decoding import decode_rgb
from bcgd_jax.data.encoded import RandomCrop
from bcgd_jax.errors import TrainingError, UsageError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photographs")
  write_image_folder(folder, num_train=60, num_val=21, num_classes=3, size=(80, 60))
  return folder


@pytest.fixture
def folder(photographs, tmp_path):
  """A copy to damage."""
  return Path(shutil.copytree(photographs, tmp_path / "folder"))


def read(options, count, *, start_step=0, **places):
  with train_batches(load_dataset(options), options, start_step=start_step, **places) as batches:
    return list(itertools.islice(batches, count))


def score(options, split="test", **places):
  source = getattr(load_dataset(options), split)
  with eval_batches(source, batch_size=options.eval_batch_size, **places) as batches:
    return list(batches)


def assert_equal(found, expected):
  assert len(found) == len(expected)
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.keys() == theirs.keys()
    for key in theirs:
      np.testing.assert_array_equal(ours[key], theirs[key])


def test_labels_are_the_places_of_the_sorted_classes(photographs):
  dataset = load_dataset(folder_options(photographs))
  folders = sorted(path.name for path in (photographs / "train").iterdir())
  assert dataset.info.class_names == tuple(folders)
  assert dataset.info.image_shape == (32, 32, 3)
  assert (len(dataset.train), len(dataset.test)) == (60, 21)
  names = [dataset.test.records.name(i) for i in range(21)]
  assert names == sorted(names)
  assert [dataset.test[i]["label"] for i in range(21)] == [0] * 7 + [1] * 7 + [2] * 7
  assert dataset_info(folder_options(photographs)) == dataset.info


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_name_tells_folders_apart(folder, split):
  before = dataset_info(folder_options(folder))
  assert dataset_info(folder_options(shutil.copytree(folder, folder.parent / "copy"))) == before
  path = min((folder / split).glob("*/*"))
  path.write_bytes(path.read_bytes() + b"more")
  longer = dataset_info(folder_options(folder)).full_name
  path.rename(path.with_name("renamed.JPEG"))
  assert len({before.full_name, longer, dataset_info(folder_options(folder)).full_name}) == 3


def test_only_files_named_as_images_are_read(folder):
  place = folder / "train" / "class0001"
  (place / "folder.jpeg").mkdir()
  (place / "notes.txt").write_text("text")
  min(place.glob("*.JPEG")).rename(place / "a.Png")
  records = load_dataset(folder_options(folder)).train.records
  assert len(records) == 60
  assert records.name(20).endswith("a.Png")


def test_validation_is_cut_from_the_training_images(photographs):
  options = folder_options(photographs, validation_examples=12, train_examples=30)
  dataset = load_dataset(options)
  assert (len(dataset.train), len(dataset.validation)) == (30, 12)
  used = [
    {source.record(i) for i in range(len(source))} for source in (dataset.train, dataset.validation)
  ]
  assert not used[0] & used[1]


def test_evaluation_shows_every_image_once_as_torchvision_would(photographs):
  batches = score(folder_options(photographs))
  assert [b["image"].shape for b in batches] == [(8, 32, 32, 3)] * 3
  assert sum(b["mask"].sum() for b in batches) == 21
  files = sorted((photographs / "val").glob("*/*"))
  images = np.concatenate([b["image"][b["mask"]] for b in batches])
  for path, image in zip(files, images, strict=True):
    expected = center_crop(decode_rgb(path.read_bytes()), resize=round(32 * 256 / 224), size=32)
    np.testing.assert_array_equal(image, expected)


def test_training_images_are_crops_and_differ_from_epoch_to_epoch(photographs):
  options = folder_options(photographs, batch_size=60)
  first, second = read(options, 2)
  assert sorted(first["label"]) == sorted(second["label"]) == [0] * 20 + [1] * 20 + [2] * 20
  assert first["image"].dtype == np.uint8
  assert set(first) == {"image", "label"}
  assert not np.array_equal(first["image"], second["image"])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(photographs, num_workers):
  options = folder_options(photographs)
  expected = read(options, 4, start_step=6)
  assert_equal(
    read(folder_options(photographs, num_workers=num_workers), 4, start_step=6), expected
  )
  assert_equal(score(options, num_workers=num_workers), score(options))


def test_threads_change_nothing(photographs, monkeypatch):
  options = folder_options(photographs)
  found = []
  for cores in (1, 5, 100):
    monkeypatch.setattr(pipeline, "count_cores", lambda cores=cores: cores)
    found.append((read(options, 4, start_step=6), score(options)))
  for trained, scored in found[1:]:
    assert_equal(trained, found[0][0])
    assert_equal(scored, found[0][1])


def joined(parts):
  """The batches of two processes as those of one."""
  return [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]


def test_processes_share_the_batches(photographs):
  options = folder_options(photographs)
  places = [{"process_index": index, "process_count": 2} for index in range(2)]
  assert_equal(joined([read(options, 5, **place) for place in places]), read(options, 5))
  assert_equal(joined([score(options, **place) for place in places]), score(options))


def note_reads(source):
  """The records read from a source from now on, as they come."""
  opened = []
  read_record = source.records.read
  source.records.read = lambda record: opened.append(record) or read_record(record)
  return opened


def test_a_process_reads_the_images_of_its_own_slice_alone(photographs, monkeypatch):
  monkeypatch.setattr(pipeline, "count_cores", lambda: 1)  # one thread reads in order
  options = folder_options(photographs)
  streams = {}
  for place in ((0, 1), (0, 2), (1, 2)):
    dataset = load_dataset(options)
    streams[place] = note_reads(dataset.train)
    where = {"process_index": place[0], "process_count": place[1]}
    with train_batches(dataset, options, start_step=0, **where) as batches:
      list(itertools.islice(batches, 5))
    opened = note_reads(dataset.test)
    with eval_batches(dataset.test, batch_size=8, **where) as batches:
      list(batches)
    share = 8 // place[1]
    assert opened == [i for i in range(21) if i % 8 // share == place[0]]
  for index in range(2):
    own = [r for i, r in enumerate(streams[0, 1][:40]) if i % 8 // 4 == index]
    assert streams[index, 2][:20] == own


def test_the_first_batches_alone_are_read(photographs):
  options = folder_options(photographs)
  source = load_dataset(options).test
  opened = note_reads(source)
  with eval_batches(source, batch_size=8, num_batches=2) as batches:
    assert_equal(list(batches), score(options)[:2])
  assert sorted(opened) == list(range(16))


@pytest.mark.long
def test_two_thousand_photographs_come_through_workers_once_an_epoch(tmp_path):
  # of ImageNet's sizes, 500 x 375 on the average
  write_image_folder(tmp_path / "many", num_train=2000, num_val=10, num_classes=10)
  options = folder_options(
    tmp_path / "many", batch_size=250, num_workers=2, image_size=64, max_bad_fraction=0.0
  )
  batches = read(options, 8)
  labels = np.concatenate([b["label"] for b in batches])
  assert np.bincount(labels).tolist() == [200] * 10
  # crops of photographs with noise: two are equal only where an image is read twice
  assert len({image.tobytes() for b in batches for image in b["image"]}) == 2000


def damage(folder, count, split="train"):
  """Cuts files off, empties them or replaces them by text; returns their paths."""
  files = sorted((folder / split).glob("*/*"))[5 : 5 + count]
  for number, path in enumerate(files):
    data = path.read_bytes()
    path.write_bytes([data[: len(data) // 2], b"", b"text"][number % 3])
  return files


def test_bad_training_images_are_replaced_by_the_next_and_named(folder, caplog):
  expected = read(folder_options(folder), 15)
  bad = damage(folder, 3)
  options = folder_options(folder, max_bad_fraction=0.05)
  with caplog.at_level("WARNING"):
    found = read(options, 15)
  messages = [record.getMessage() for record in caplog.records]
  assert len(messages) == 3
  for path in bad:
    assert sum(str(path) in message for message in messages) == 1
  different = sum(
    not np.array_equal(ours, theirs)
    for a, b in zip(found, expected, strict=True)
    for ours, theirs in zip(a["image"], b["image"], strict=True)
  )
  assert different == 2 * 3  # two epochs
  assert_equal(read(folder_options(folder, max_bad_fraction=0.05, num_workers=2), 15), found)


def test_more_bad_training_images_than_allowed_stop_the_run(folder):
  damage(folder, 4)
  options = folder_options(folder, max_bad_fraction=0.05)
  with pytest.raises(TrainingError, match=r"at most 0\.05 of the 60 images .* but 4 are .*class"):
    read(options, 8)


def test_nothing_but_bad_images_stops_the_first_batch(folder):
  for path in (folder / "train").glob("*/*"):
    path.write_bytes(b"")
  for changes in ({}, {"num_workers": 1}, {"max_bad_fraction": 0.99}):
    with pytest.raises(TrainingError, match=r"many in a row are not.*class000\d/train_0"):
      read(folder_options(folder, **changes), 1)


def test_looking_for_a_good_image_ends_in_a_large_folder(tmp_path):
  for split, count in (("train", 1000), ("val", 1)):
    (tmp_path / split / "a").mkdir(parents=True)
    for number in range(count):
      (tmp_path / split / "a" / f"{number}.jpg").write_bytes(b"version 1 of a pointer")
  source = load_dataset(folder_options(tmp_path)).train
  opened = note_reads(source)
  crop = RandomCrop(source, flip=True)
  with pytest.raises(TrainingError, match="many in a row"):
    crop(source.encoded()[0], np.random.default_rng(0))
  assert len(opened) == 101


def test_bad_validation_images_are_masked_and_named(folder, caplog):
  (bad,) = damage(folder, 1, "val")
  source = load_dataset(folder_options(folder)).test
  with caplog.at_level("WARNING"), eval_batches(source, batch_size=8, max_bad_fraction=0.05) as b:
    masks = np.concatenate([batch["mask"] for batch in b])
  assert masks.sum() == 20
  assert not masks[5]
  assert str(bad) in caplog.text
  with eval_batches(source, batch_size=8, max_bad_fraction=0.05) as batches:
    assert sum(batch["mask"].sum() for batch in batches) == 20
  assert len(caplog.records) == 1
  with (
    pytest.raises(TrainingError, match="at most 0 of the 21 images"),
    eval_batches(source, batch_size=8) as batches,
  ):
    list(batches)


def test_one_pixel_is_an_image(folder):
  from PIL import Image

  path = min((folder / "val" / "class0000").iterdir())
  Image.new("RGB", (1, 1), (7, 8, 9)).save(path, format="PNG")
  image = load_dataset(folder_options(folder)).test[0]["image"]
  assert (image == [7, 8, 9]).all()


def test_a_folder_named_validation_will_do(folder):
  (folder / "val").rename(folder / "validation")
  assert len(load_dataset(folder_options(folder)).test) == 21
  (folder / "val").mkdir()
  with pytest.raises(UsageError, match="one of val/ and validation/"):
    load_dataset(folder_options(folder))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda f: shutil.rmtree(f), "must be a folder with train/ and val/"),
    (lambda f: shutil.rmtree(f / "train"), "must hold train/ and one of"),
    (lambda f: shutil.rmtree(f / "val"), "must hold train/ and one of"),
    (lambda f: [shutil.rmtree(p) for p in (f / "train").iterdir()], "one folder a class, got none"),
    (lambda f: shutil.rmtree(f / "val" / "class0001"), "val must have .* but lacks class0001"),
    (lambda f: shutil.rmtree(f / "train" / "class0002"), "train must have .* but lacks class0002"),
    (
      lambda f: [os.remove(p) for p in (f / "train" / "class0000").iterdir()],
      "must hold images .* got none in class0000",
    ),
    (
      lambda f: (f / "train" / "class0000" / "gone.jpeg").symlink_to(f / "nothing"),
      "folder that can be read: .*gone.jpeg",
    ),
  ],
)
def test_what_is_wrong_with_a_folder_is_said(folder, change, message):
  change(folder)
  with pytest.raises(UsageError, match=message):
    load_dataset(folder_options(folder))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"manual_dir": ""}, "manual_dir must name"),
    ({"image_size": None}, "image_size must be given"),
    ({"pad": 4}, "pad must be 0"),
    ({"min_crop_area": 0.0}, r"min_crop_area must be in \(0, 1\], got 0"),
    ({"max_bad_fraction": 1.0}, r"max_bad_fraction must be in \[0, 1\)"),
    ({"dataset": "digits"}, "image_size must be None for dataset='digits'"),
  ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, changes, message):
  with pytest.raises(UsageError, match=message):
    folder_options(tmp_path, **changes)
