"""torchvision's weights here and in PyTorch's own operators: the same logits, and nothing lost."""

import hashlib
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F

from bcgd_jax.data import Dataset, DatasetInfo
from bcgd_jax.errors import UsageError
from bcgd_jax.import_weights import import_weights, read_safetensors, read_state_dict
from bcgd_jax.models import Quantization, create_model
from bcgd_jax.models.torchvision import convert_weights
from bcgd_jax.training.checkpoint import CheckpointStore
from bcgd_jax.training.parallel import Parallel
from bcgd_jax.training.recipe import enter_phase, make_phases
from bcgd_jax.training.run import Hooks, Run, load_phase, make_data_options
from bcgd_jax.training.settings import config_hash, parse_settings
from bcgd_jax.training.state import eval_variables
from configs import imagenet_resnet18_1w4a

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)


def make_state_dict(model: str, *, num_classes: int = 5) -> dict[str, np.ndarray]:
  """Random tensors of torchvision's names and shapes, scaled so that logits are of order 1."""
  rng = np.random.default_rng(0)
  tensors = {}

  def add(name, *shape, low=None, high=None, scale=None):
    x = rng.uniform(low, high, shape) if scale is None else rng.normal(0, scale, shape)
    tensors[name] = x.astype(np.float32)

  def add_conv(conv, norm, features, inputs, size):
    add(f"{conv}.weight", features, inputs, size, size, scale=(2 / (inputs * size**2)) ** 0.5)
    add(f"{norm}.weight", features, low=0.4, high=0.8)
    add(f"{norm}.bias", features, scale=0.1)
    add(f"{norm}.running_mean", features, scale=0.1)
    add(f"{norm}.running_var", features, low=0.5, high=1.5)
    tensors[f"{norm}.num_batches_tracked"] = np.asarray(1000, np.int64)

  add_conv("conv1", "bn1", 64, 3, 7)
  inputs = 64
  for stage, (width, count) in enumerate(zip(WIDTHS, BLOCKS[model], strict=True), start=1):
    for index in range(count):
      block = f"layer{stage}.{index}"
      add_conv(f"{block}.conv1", f"{block}.bn1", width, inputs, 3)
      add_conv(f"{block}.conv2", f"{block}.bn2", width, width, 3)
      if inputs != width:
        add_conv(f"{block}.downsample.0", f"{block}.downsample.1", width, inputs, 1)
      inputs = width
  add("fc.weight", num_classes, 512, scale=512**-0.5)
  add("fc.bias", num_classes, scale=0.1)
  return tensors


def torch_logits(tensors: dict[str, np.ndarray], images: np.ndarray, *, model: str) -> np.ndarray:
  """torchvision's network in evaluation mode, on images [batch, height, width, 3]."""
  p = {name: torch.from_numpy(x) for name, x in tensors.items()}

  def conv_norm(x, conv, norm, *, stride=1, padding=0):
    x = F.conv2d(x, p[f"{conv}.weight"], stride=stride, padding=padding)
    statistics = (p[f"{norm}.running_mean"], p[f"{norm}.running_var"])
    return F.batch_norm(x, *statistics, p[f"{norm}.weight"], p[f"{norm}.bias"], eps=1e-5)

  x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  x = torch.relu(conv_norm(x, "conv1", "bn1", stride=2, padding=3))
  x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
  for stage, count in enumerate(BLOCKS[model], start=1):
    for index in range(count):
      block, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
      y = conv_norm(x, f"{block}.conv1", f"{block}.bn1", stride=stride, padding=1)
      y = conv_norm(torch.relu(y), f"{block}.conv2", f"{block}.bn2", padding=1)
      if f"{block}.downsample.0.weight" in p:
        x = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", stride=stride)
      x = torch.relu(x + y)
  return F.linear(x.mean((2, 3)), p["fc.weight"], p["fc.bias"]).numpy()


@pytest.fixture(scope="module")
def tensors():
  return make_state_dict("resnet18")


@pytest.mark.parametrize(
  ("model", "size"), [("resnet18", (96, 64)), ("resnet34", (64, 32))], ids=BLOCKS
)
def test_logits_are_pytorchs(model, size):
  tensors = make_state_dict(model)
  images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
  network = create_model(f"imagenet_{model}", num_classes=5, quantization=Quantization.none())
  variables = convert_weights(tensors, model=model)
  logits = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
  expected = torch_logits(tensors, images, model=model)
  assert 0.3 < np.std(expected) < 3
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def write_file(path: Path, tensors: dict[str, np.ndarray]) -> Path:
  if path.suffix == ".safetensors":
    safetensors.numpy.save_file(tensors, path)
  else:
    torch.save({name: torch.from_numpy(x.copy()) for name, x in tensors.items()}, path)
  return path


def test_both_formats_hold_the_same(tensors, tmp_path):
  for read, name in ((read_safetensors, "w.safetensors"), (read_state_dict, "w.pth")):
    found = read(write_file(tmp_path / name, tensors))
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
      np.testing.assert_array_equal(found[key], value)


def open_small_run(workdir: Path, *, start_from: Path) -> Run:
  """The ImageNet run of 1-bit weights, on 32 x 32 pixels and 5 classes, without any image."""
  config = imagenet_resnet18_1w4a.get_config().to_dict()
  config["float"]["start_from"] = str(start_from)
  config["quantization"]["alpha_init"] = "table"  # needs no images
  settings, image_shape = parse_settings(config), (32, 32, 3)
  info = DatasetInfo(
    name="none", full_name="none", image_shape=image_shape, class_names=("a", "b", "c", "d", "e")
  )
  return Run(
    settings=settings,
    workdir=workdir,
    hash=config_hash(config),
    dataset=Dataset(info=info, train=[], validation=[], test=[]),
    data_options=make_data_options(settings),
    parallel=Parallel("pmap", tuple(jax.devices()[:1])),
    phases=make_phases(settings, num_classes=5, image_shape=image_shape, num_examples=512),
    hooks=Hooks(),
    store=CheckpointStore(workdir, config_hash="none"),
  )


def leaves_by_path(tree) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves
  }


def test_a_run_starts_its_quantized_phase_with_exactly_these_weights(tensors, tmp_path):
  source = write_file(tmp_path / "w.safetensors", tensors)
  folder = tmp_path / "imported"
  folder.mkdir()  # an empty one is taken
  record = import_weights(source, folder, model="resnet18", phase="float")["imported"]
  assert json.loads((folder / "config.json").read_text())["imported"] == record
  assert record["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
  assert (record["file"], record["format"]) == ("w.safetensors", "safetensors")
  assert (record["model"], record["num_classes"]) == ("imagenet_resnet18", 5)
  assert record["num_parameters"] == 11_689_512 - 995 * 513  # published, with 1000 classes
  assert sorted(path.name for path in tmp_path.iterdir()) == ["imported", "w.safetensors"]

  run = open_small_run(tmp_path / "run", start_from=folder)
  given = load_phase(run, run.phases[0], workdir=folder)
  assert run.phases[0].last_step == 0  # takes its result over and trains nothing
  phase = run.phases[1]
  state = enter_phase(
    phase,
    given,
    settings=run.settings,
    image_shape=run.dataset.info.image_shape,
    calibration_images=lambda n: [],
  )
  begun = leaves_by_path(eval_variables(state, phase.float_params))
  expected = leaves_by_path(convert_weights(tensors, model="resnet18"))
  assert (
    len(expected) == 102
  )  # 20 convolutions, 5 tensors with each batch norm, 2 of the classifier
  new = {path for path in begun if path not in expected}
  assert {path.rsplit("/", 1)[-1] for path in new} == {"alpha"}
  assert len(new) == 17
  for path, value in expected.items():
    np.testing.assert_array_equal(begun[path], value, err_msg=path)


def test_weights_of_another_network_are_refused_by_the_run(tensors, tmp_path):
  source = write_file(tmp_path / "w.safetensors", make_state_dict("resnet18", num_classes=7))
  import_weights(source, tmp_path / "imported", model="resnet18", phase="float")
  run = open_small_run(tmp_path / "run", start_from=tmp_path / "imported")
  with pytest.raises(UsageError, match=r"(?s)weights of this run's network.*params/fc/bias"):
    load_phase(run, run.phases[0], workdir=tmp_path / "imported")


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_a_prefix_of_all_names_is_dropped(tensors, prefix):
  plain = leaves_by_path(convert_weights(tensors, model="resnet18"))
  prefixed = {prefix + name: x for name, x in tensors.items()}
  found = leaves_by_path(convert_weights(prefixed, model="resnet18"))
  assert found.keys() == plain.keys()
  np.testing.assert_array_equal(found["params/fc/bias"], plain["params/fc/bias"])


FAULTS = {
  "missing": ({"bn1.weight": None}, ["missing bn1.weight"]),
  "extra": ({"bn3.weight": np.ones(3, np.float32)}, ["not of this network bn3.weight"]),
  "some_prefixed": (
    {"module.bn1.bias": np.zeros(64, np.float32)},
    ["not of this network module.bn1.bias"],
  ),
  "shape": (
    {"conv1.weight": np.zeros((64, 3, 3, 3), np.float32)},
    [r"conv1.weight must have shape \(64, 3, 7, 7\), got \(64, 3, 3, 3\)"],
  ),
  "integers": (
    {"layer4.1.bn2.running_var": np.ones(512, np.int32)},
    ["layer4.1.bn2.running_var must be floating, got int32"],
  ),
  "not_finite": ({"fc.bias": np.full(5, np.nan, np.float32)}, ["fc.bias must be finite"]),
  "no_classes": (
    {"fc.weight": np.ones((0, 512), np.float32), "bn1.bias": None},
    [r"fc.weight must have shape \(1, 512\), got \(0, 512\)", "missing bn1.bias"],
  ),
}


@pytest.mark.parametrize(("changes", "messages"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_listed(tensors, tmp_path, changes, messages):
  changed = {k: v for k, v in (tensors | changes).items() if v is not None}
  source = write_file(tmp_path / "w.safetensors", changed)
  for message in messages:
    with pytest.raises(UsageError, match=message):
      import_weights(source, tmp_path / "out", model="resnet18", phase="float")
  assert not (tmp_path / "out").exists()


def test_the_wrong_depth_is_refused(tensors):
  message = r"torchvision's resnet34: missing layer1\.2\..*; and 60 more$"
  with pytest.raises(ValueError, match=message):
    convert_weights(tensors, model="resnet34")


def test_bad_files_are_named(tmp_path, monkeypatch):
  def refuse(name, message):
    with pytest.raises(UsageError, match=message):
      import_weights(tmp_path / name, tmp_path / "out", model="resnet18", phase="float")

  refuse("w.onnx", r"--from must end in one of \.safetensors, \.pth, \.pt")
  refuse("w.pth", "--from must be a file")
  for name in ("w.safetensors", "w.pth"):
    (tmp_path / name).write_bytes(b"no weights" * 100)
    refuse(name, f"{name} must be a s")
  torch.save({"model": {"conv1.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "w.pt")
  refuse("w.pt", "must be a state dict of tensors alone")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  refuse("w.pt", "needs PyTorch, which is not installed")
  assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_alone(tensors, tmp_path):
  source = write_file(tmp_path / "w.safetensors", tensors)
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "thesis.tex").write_text("mine")
  with pytest.raises(UsageError, match="--output must be a new or an empty folder"):
    import_weights(source, tmp_path / "out", model="resnet18", phase="float")
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_an_interrupted_import_leaves_no_folder(tensors, tmp_path, monkeypatch):
  source = write_file(tmp_path / "w.safetensors", tensors)

  def stop(*args, **kwargs):
    raise KeyboardInterrupt

  monkeypatch.setattr(CheckpointStore, "save", stop)
  with pytest.raises(KeyboardInterrupt):
    import_weights(source, tmp_path / "out", model="resnet18", phase="float")
  assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
