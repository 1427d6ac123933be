"""Makes a folder of JPEG images: python -m bcgd_jax.benchmarks.photographs --output=DIR.

Writes train/CLASS/*.JPEG and val/CLASS/*.JPEG with the sizes, qualities and kinds of ImageNet's
files, from photographs that scikit-image and scikit-learn ship.
"""

from absl import flags

from bcgd_jax.benchmarks.jpeg_folder import write_image_folder
from bcgd_jax.command import make_folder, run_command

_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; new or empty.")
_NUM_TRAIN = flags.DEFINE_integer("num_train", 2000, "Training images.")
_NUM_VAL = flags.DEFINE_integer("num_val", 200, "Validation images.")
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 10, "Classes.")
_WIDTH = flags.DEFINE_integer("width", 500, "Mean width in pixels.")
_HEIGHT = flags.DEFINE_integer("height", 375, "Mean height in pixels.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")


def main() -> None:
  output = make_folder(_OUTPUT.value, flag="--output")
  write_image_folder(
    output,
    num_train=_NUM_TRAIN.value,
    num_val=_NUM_VAL.value,
    num_classes=_NUM_CLASSES.value,
    seed=_SEED.value,
    size=(_WIDTH.value, _HEIGHT.value),
  )
  print(f"{_NUM_TRAIN.value} + {_NUM_VAL.value} images in {output}")


if __name__ == "__main__":
  run_command(main, interrupted="remove the folder and begin again")
