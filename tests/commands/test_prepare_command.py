"""`python -m bcgd_jax.data.prepare` on bad input: one line says what to do, nothing is written."""

import pytest
from command_helpers import run_command


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--manual_dir=archives"], ["ILSVRC2012_img_train.tar", "image-net.org", "is missing"]),
    ([], ["--manual_dir must name a folder"]),
    (["--dataset=image_folder", "--manual_dir=archives"], ["--dataset", "read as they are"]),
    (["--short_side=8", "--manual_dir=archives"], ["short_side", "8"]),
  ],
  ids=["no_archives", "no_folder", "other_dataset", "short_side"],
)
def test_bad_input(tmp_path, flags, words):
  done = run_command("data.prepare", *flags, f"--data_dir={tmp_path}", data_dir=tmp_path)
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  assert done.stderr.startswith("error: ")
  for word in words:
    assert word in done.stderr
  assert list(tmp_path.iterdir()) == []
