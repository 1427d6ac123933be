"""The path to ImageNet in miniature: JPEG files, ResNet-18, two processes, a kill, a report."""

import signal

import pytest
from program_helpers import ROOT, Program

from bcgd_jax.benchmarks.jpeg_folder import write_image_folder
from bcgd_jax.report.files import read_json
from bcgd_jax.report.records import read_metrics

FLAGS = [
  "--config.model.dtype=float32",  # bfloat16 is emulated on CPUs
  "--config.data.batch_size=8",
  "--config.data.eval_batch_size=16",
  "--config.quantization.calibration_batches=1",
  "--config.log_every_steps=2",
  "--config.checkpoint_every_steps=4",
]
for phase in ("float", "quantized"):
  FLAGS += [
    f"--config.{phase}.epochs=0.5",
    f"--config.{phase}.decay_epochs=(0.4,)",
    f"--config.{phase}.warmup_epochs=0.2",
    f"--config.{phase}.accumulate_steps=2",
  ]


@pytest.mark.long
def test_trains_is_killed_goes_on_and_reports(tmp_path):
  images = tmp_path / "images"
  write_image_folder(images, num_train=96, num_val=37, num_classes=4, size=(96, 72))
  config = ROOT / "configs" / "imagenet_mock_resnet18_1w4a.py"
  flags = [*FLAGS, f"--config.data.manual_dir={images}"]
  workdir = tmp_path / "run"

  first = Program(tmp_path, workdir, *flags, config=config, count=2)
  first.wait_for_step(10, seconds=400)
  first.processes[0].send_signal(signal.SIGKILL)
  statuses = first.wait(seconds=90)
  assert statuses[0] == 137
  assert statuses[1] in (134, 1), first.text()
  assert not (workdir / "run.json").exists()

  second = Program(tmp_path, workdir, *flags, config=config, count=2)
  assert second.wait(seconds=400) == [0, 0], second.text()
  records = read_metrics(workdir)
  steps = [r["step"] for r in records if r["kind"] == "train"]
  assert steps == [2, 4, 6, 8, 10, 12]
  tests = [r for r in records if r["kind"] == "test"]
  assert [(r["phase"], r["num_examples"]) for r in tests] == [("float", 37), ("quantized", 37)]
  run = read_json(workdir / "run.json")
  assert (run["weight_bits"], run["activation_bits"]) == (1, 4)
  assert run["float_bytes"] > 25 * run["quantized_bytes"]
  assert (workdir / "report" / "report.html").stat().st_size > 10_000

  again = Program(tmp_path, workdir, *flags, config=config)
  assert again.wait() == [0]
  assert "is finished" in again.text()
