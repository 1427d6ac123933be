"""ImageNet's archives become records, in one go or in several; nothing else is taken for them."""

import dataclasses
import hashlib
import io
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from encoded_helpers import folder_options, write_archives
from PIL import Image

from bcgd_jax.benchmarks.jpeg_folder import write_image_folder
from bcgd_jax.data import DataOptions, imagenet, load_dataset, shards, train_batches
from bcgd_jax.data.decoding import decode_rgb
from bcgd_jax.errors import UsageError

ROOT = Path(__file__).parent.parent.parent


def ignore(done, total):
  del done, total


def prepare(archives, root, expected, **changes):
  options = {"short_side": None, "quality": 95, "jobs": 1, "report": ignore, **changes}
  return imagenet.prepare_imagenet(archives, root, expected=expected, **options)


def digests(folder):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())
  }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images") / "folder"
  write_image_folder(folder, num_train=24, num_val=9, num_classes=3, size=(120, 90))
  names = ("n01440764", "n01443537", "n01484850")
  for split, old in itertools.product(("train", "val"), range(3)):
    (folder / split / f"class{old:04d}").rename(folder / split / names[old])
  odd = sorted((folder / "train" / names[0]).iterdir())
  Image.open(odd[0]).convert("CMYK").save(odd[0], format="JPEG")
  Image.open(odd[1]).convert("RGB").save(odd[1], format="PNG")
  return folder


@pytest.fixture(scope="module")
def archives(folder, tmp_path_factory):
  target = tmp_path_factory.mktemp("archives") / "tars"
  return target, write_archives(folder, target)


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory):
  root = tmp_path_factory.mktemp("prepared")
  return root, prepare(archives[0], root, archives[1])


def options(root, **changes):
  return folder_options("", dataset="imagenet2012", manual_dir="", data_dir=str(root), **changes)


def test_records_hold_the_files_with_odd_ones_as_rgb_jpeg(folder, prepared):
  dataset = load_dataset(options(prepared[0]))
  assert (len(dataset.train), len(dataset.test)) == (24, 9)
  assert dataset.info.num_classes == 1000
  classes = sorted(path.name for path in (folder / "train").iterdir())
  assert list(dataset.info.class_names[:3]) == classes
  assert dataset.info.full_name == "imagenet2012/full/1.0.0"
  files = sorted((folder / "train").glob("*/*"))
  for index, path in enumerate(files):
    data, label = dataset.train.records.read(index)
    assert label == index // 8
    assert path.name in dataset.train.records.name(index)
    if index < 2:
      assert Image.open(io.BytesIO(data)).format == "JPEG"
      assert Image.open(io.BytesIO(data)).mode == "RGB"
      difference = decode_rgb(data).astype(float) - decode_rgb(path.read_bytes())
      assert np.abs(difference).mean() < 2
    else:
      assert data == path.read_bytes()
  labels = [dataset.test.records.read(i)[1] for i in range(9)]
  by_name = sorted((folder / "val").glob("*/*"), key=lambda path: path.name)
  assert labels == [sorted({p.parent.name for p in by_name}).index(p.parent.name) for p in by_name]


def test_tfds_reads_it(prepared):
  builder = tfds.builder_from_directory(prepared[1])
  assert builder.info.splits["train"].num_examples == 24
  assert builder.info.features["label"].int2str(2) == "n01484850"
  example = builder.as_data_source("validation")[0]
  assert example["image"].shape[-1] == 3


def test_records_that_tfds_prepared_are_read_alike(folder, prepared, tmp_path):
  """TFDS names its records' folder by version alone; in its own format they are refused."""
  target = tmp_path / "imagenet2012" / "5.1.0"
  shutil.copytree(prepared[1], target)
  shutil.copytree(target, target.with_name("incomplete.AB12CD_5.1.0"))  # TFDS's before its rename
  ours, theirs = load_dataset(options(prepared[0])), load_dataset(options(tmp_path))
  assert theirs.info.full_name == "imagenet2012/5.1.0"
  for index in (0, 23):
    assert theirs.train.records.read(index) == ours.train.records.read(index)
  name = sorted((folder / "train").glob("*/*"))[7].name
  assert theirs.train.records.name(7) == f"record 7 of 5.1.0:train {name}"
  metadata = target / "dataset_info.json"
  metadata.write_text(metadata.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(UsageError, match="file_format='array_record' for random access, got 'tfrec"):
    load_dataset(options(tmp_path))


def test_the_limit_of_open_files_is_raised_or_named(prepared, monkeypatch):
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    load_dataset(options(prepared[0]))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (3 + 9 + 512, hard)
    load_dataset(options(prepared[0]))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (3 + 9 + 512, hard)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  monkeypatch.setattr(resource, "getrlimit", lambda which: (300, 400))
  with pytest.raises(UsageError, match=r"open files must be at least 524 .* 12 files .* got 400"):
    load_dataset(options(prepared[0]))


def test_a_preparation_killed_before_its_last_rename_goes_on(archives, prepared, tmp_path):
  target = tmp_path / "imagenet2012" / "full" / "1.0.0"
  shutil.copytree(prepared[1], target.with_name("1.0.0.incomplete"))
  with pytest.raises(UsageError, match="is not prepared"):
    load_dataset(options(tmp_path))
  assert prepare(archives[0], tmp_path, archives[1]) == target
  assert digests(target) == digests(prepared[1])


def test_a_folder_and_its_records_give_the_same_batches(folder, prepared):
  def read(options):
    with train_batches(load_dataset(options), options, start_step=2) as batches:
      return list(itertools.islice(batches, 3))

  plain = sorted((folder / "train").glob("*/*"))[2:]
  assert len(plain) == 22  # two were converted, so their crops differ a little
  for workers in (0, 2):
    ours = read(options(prepared[0], num_workers=workers))
    theirs = read(folder_options(folder))
    for a, b in zip(ours, theirs, strict=True):
      np.testing.assert_array_equal(a["label"], b["label"])
      difference = np.abs(a["image"].astype(float) - b["image"]).mean(axis=(1, 2, 3))
      assert np.sum(difference > 0) <= 2
      assert difference.max() < 4


def test_shrunken_training_images(archives, tmp_path):
  target = prepare(archives[0], tmp_path, archives[1], short_side=64, quality=90, jobs=2)
  assert target == tmp_path / "imagenet2012" / "short64_quality90" / "1.0.0"
  dataset = load_dataset(options(tmp_path))
  sizes = [Image.open(io.BytesIO(dataset.train.records.read(i)[0])).size for i in range(24)]
  assert all(min(size) <= 64 for size in sizes)
  assert sum(min(size) == 64 for size in sizes) > 18
  scored = [Image.open(io.BytesIO(dataset.test.records.read(i)[0])).size for i in range(9)]
  assert min(min(size) for size in scored) > 50
  assert any(min(size) > 64 for size in scored)
  prepare(archives[0], tmp_path, archives[1])
  with pytest.raises(
    UsageError, match=r"must hold one prepared 'imagenet2012', got .*full.*short64"
  ):
    load_dataset(options(tmp_path))


PREPARE = """
import time
from pathlib import Path
from bcgd_jax.data import imagenet

write_shard = imagenet.write_shard

def write_slowly(shard, **options):
  unreadable = write_shard(shard, **options)
  time.sleep(0.2)
  return unreadable

if __name__ == "__main__":
  imagenet.write_shard = write_slowly
  expected = imagenet.Expected(**{expected!r})
  imagenet.prepare_imagenet(
    Path({archives!r}), Path({root!r}), expected=expected, short_side=None, quality=95, jobs=1,
    report=lambda done, total: print(done, flush=True))
"""


def wait_for_the_end_of_group(number):
  end = time.monotonic() + 60
  while time.monotonic() < end:
    try:
      os.killpg(number, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  pytest.fail("workers are left")


def test_killed_preparation_goes_on_and_ends_alike(archives, prepared, tmp_path):
  expected = dataclasses.asdict(archives[1])
  script, root = tmp_path / "prepare.py", tmp_path / "data"
  script.write_text(PREPARE.format(expected=expected, archives=str(archives[0]), root=str(root)))
  process = subprocess.Popen(
    [sys.executable, str(script)],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  while int(process.stdout.readline()) < 4:
    pass
  with pytest.raises(UsageError, match="is being prepared by another process"):
    prepare(archives[0], root, archives[1])
  process.kill()
  process.wait()
  process.stdout.close()
  wait_for_the_end_of_group(process.pid)  # or a worker would go on beside the next start
  work = root / "imagenet2012" / "full" / "1.0.0.incomplete"
  assert 4 <= len(list(work.iterdir())) < 12
  with pytest.raises(UsageError, match="is not prepared"):
    load_dataset(options(root))
  (work / "imagenet2012-train.array_record-00002-of-00003.1.scratch").write_bytes(b"half")
  seen = []
  target = prepare(archives[0], root, archives[1], report=lambda done, total: seen.append(done))
  assert 4 <= seen[0] < 12
  assert digests(target) == digests(prepared[1])
  assert not work.exists()


def test_missing_archives_are_named(archives, tmp_path):
  shutil.copy(archives[0] / imagenet.TRAIN_ARCHIVE, tmp_path)
  with pytest.raises(UsageError, match=r"ILSVRC2012_img_val\.tar is missing"):
    prepare(tmp_path, tmp_path / "data", archives[1])


def test_archives_that_are_not_the_published_ones_are_refused(archives, tmp_path):
  with pytest.raises(UsageError, match=r"one archive for each of the 1000 classes, but lacks n0"):
    prepare(archives[0], tmp_path, imagenet.published())
  fewer = imagenet.Expected(
    classes=archives[1].classes, validation_labels=archives[1].validation_labels, num_train=25
  )
  with pytest.raises(UsageError, match="train archive must hold 25 images, got 24"):
    prepare(archives[0], tmp_path, fewer)
  with pytest.raises(UsageError, match="is not prepared"):
    load_dataset(options(tmp_path))


@pytest.fixture
def damaged(folder, tmp_path):
  """Cuts off the first images of a class to train on; returns the archives and those files."""

  def damage(count):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    files = sorted((copy / "train" / "n01443537").iterdir())[:count]
    for path in files:
      path.write_bytes(path.read_bytes()[:500])
    return tmp_path / "tars", write_archives(copy, tmp_path / "tars"), files

  return damage


def test_unreadable_images_are_named_and_stored_as_they_are(damaged, tmp_path, caplog):
  tars, expected, files = damaged(2)
  prepare(tars, tmp_path / "data", expected, short_side=64)
  assert all(path.name in caplog.text for path in files)
  records = load_dataset(options(tmp_path / "data")).train.records
  assert records.read(8)[0] == files[0].read_bytes()
  assert records.read(9)[0] == files[1].read_bytes()


def test_more_unreadable_images_are_an_error_at_every_start(damaged, tmp_path):
  tars, expected, files = damaged(3)
  for _ in range(2):
    with pytest.raises(
      UsageError, match=f"train.tar must hold images, but 3 of the 8 .* {files[0].name}, .*checksum"
    ):
      prepare(tars, tmp_path / "data", expected)
  with pytest.raises(UsageError, match="is not prepared"):
    load_dataset(options(tmp_path / "data"))


def test_a_killed_process_is_told_of(archives, tmp_path, monkeypatch):
  monkeypatch.setattr(imagenet, "write_shard", kill_oneself)
  with pytest.raises(UsageError, match="--jobs must leave memory for each, got 2"):
    prepare(archives[0], tmp_path, archives[1], jobs=2)


def kill_oneself(*unused, **unused_too):
  os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_shrunken_images_keep_their_mode(folder, mode):
  image = Image.open(sorted((folder / "val").glob("*/*"))[0]).convert(mode)
  target = io.BytesIO()
  image.save(target, format="JPEG")
  for short_side, expected in ((40, 40), (500, min(image.size))):
    data = shards.convert_image(target.getvalue(), short_side=short_side, quality=90)
    found = Image.open(io.BytesIO(data))
    assert (found.format, found.mode, min(found.size)) == ("JPEG", mode, expected)


def test_a_file_that_is_no_archive_is_named(tmp_path):
  for name in (imagenet.TRAIN_ARCHIVE, imagenet.VALIDATION_ARCHIVE):
    (tmp_path / name).write_bytes(b"text")
  with pytest.raises(UsageError, match=r"train\.tar must be a whole tar archive"):
    prepare(tmp_path, tmp_path / "data", imagenet.published())


@pytest.mark.parametrize("name", [imagenet.TRAIN_ARCHIVE, imagenet.VALIDATION_ARCHIVE])
def test_an_archive_cut_off_on_its_way_is_named(archives, tmp_path, name):
  tars = Path(shutil.copytree(archives[0], tmp_path / "tars"))
  os.truncate(tars / name, 3 * (tars / name).stat().st_size // 4)
  with pytest.raises(UsageError, match=f"{name} must be a whole tar archive"):
    prepare(tars, tmp_path / "data", archives[1])


def test_a_class_cut_off_in_its_archive_is_named(archives, tmp_path):
  archive = archives[0] / imagenet.TRAIN_ARCHIVE
  with tarfile.open(archive) as tar:
    first = tar.next()
  member = shards.Member(first.name, first.offset_data, first.size // 2, 0)
  shard = shards.Shard(tmp_path / "shard", archive, (member,), is_class=True)
  with pytest.raises(UsageError, match=r"train\.tar must be a whole tar archive"):
    shards.write_shard(shard, short_side=None, quality=95)
  assert not shard.path.exists()


def test_a_full_disk_leaves_no_shard(archives, tmp_path):
  archive = archives[0] / imagenet.VALIDATION_ARCHIVE
  with tarfile.open(archive) as tar:
    members = tuple(shards.Member(m.name, m.offset_data, m.size, 0) for m in tar)
  shard = shards.Shard(tmp_path / "shard", archive, members, is_class=False)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
  try:
    with pytest.raises(OSError, match="File too large"):
      shards.write_shard(shard, short_side=None, quality=95)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not shard.path.exists()
  shards.write_shard(shard, short_side=None, quality=95)
  assert shards.count_records(shard.path) == 9


COMMAND = """
from bcgd_jax.command import run_command
from bcgd_jax.data import imagenet, prepare

if __name__ == "__main__":
  imagenet.published = lambda: imagenet.Expected(**{expected!r})
  run_command(prepare.main)
"""


def test_command(archives, tmp_path):
  script = tmp_path / "command.py"
  script.write_text(COMMAND.format(expected=dataclasses.asdict(archives[1])))
  flags = [f"--manual_dir={archives[0]}", f"--data_dir={tmp_path}", "--short_side=64", "--jobs=2"]
  done = subprocess.run(
    [sys.executable, str(script), *flags],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    check=True,
  )
  lines = done.stdout.splitlines()
  assert lines[-2] == "12 of 12 shards"
  assert lines[-1] == f"Prepared: {tmp_path}/imagenet2012/short64_quality95/1.0.0"


def test_published_lists():
  expected = imagenet.published()
  assert len(expected.classes) == len(set(expected.classes)) == 1000
  assert list(expected.classes) == sorted(expected.classes)
  assert len(expected.validation_labels) == 50_000
  assert np.unique(expected.validation_labels, return_counts=True)[1].tolist() == [50] * 1000


def test_options_of_imagenet_need_an_image_size():
  with pytest.raises(UsageError, match="image_size must be given"):
    DataOptions(dataset="imagenet2012", batch_size=8, eval_batch_size=8)
