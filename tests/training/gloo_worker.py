"""One of several processes that take training steps together, on batches from the data pipeline.

Usage: gloo_worker.py PORT INDEX COUNT DEVICES MODE DTYPE NUM_STEPS OUTPUT. COUNT 1 runs without a
coordinator. Each process holds DEVICES virtual devices; process 0 writes OUTPUT, an npz.
"""

import functools
import sys

import jax

port, index, count, devices, mode, dtype_name, num_steps, output = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_enable_x64", dtype_name == "float64")
if int(count) > 1:
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"localhost:{port}", int(count), int(index))

import numpy as np  # noqa: E402
import training_helpers as helpers  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from bcgd_jax.data import DataOptions, load_dataset, train_batches  # noqa: E402
from bcgd_jax.training.parallel import AXIS_NAME, Parallel  # noqa: E402
from bcgd_jax.training.steps import train_step  # noqa: E402


def main() -> None:
  dtype = np.dtype(dtype_name)
  data = DataOptions(dataset="digits", batch_size=helpers.BATCH, eval_batch_size=8, pad=1)
  batches = train_batches(
    load_dataset(data), data, start_step=0, process_index=int(index), process_count=int(count)
  )
  options = helpers.make_options(dtype, axis_name=AXIS_NAME)
  parallel = Parallel(mode, tuple(jax.devices()))
  state = parallel.replicate(helpers.initial_state(options, dtype))
  step = functools.partial(train_step, options=options)
  mapped = parallel.map_step(step, num_replicated=2, donate=True)
  distance, margin = helpers.make_distance(options), np.inf
  for number in range(int(num_steps)):
    batch = next(batches)
    # the step takes floats as normalised; this way float64 reaches it whole
    batch = {**batch, "image": batch["image"].astype(dtype) / dtype.type(128) - dtype.type(1)}
    if int(count) == 1:
      margin = min(margin, float(distance(state, batch["image"])))
    state, _ = mapped(state, None, parallel.place_batch(batch))
    if number == 0 and int(count) > 1:
      jax.block_until_ready(state)
      multihost_utils.sync_global_devices("compiled")  # a slow compiler beside a fast one times out
  batches.close()
  if jax.process_index() == 0:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    np.savez(output, margin=margin, **arrays)
  if int(count) > 1:
    jax.distributed.shutdown()


if __name__ == "__main__":
  main()
