"""Strict numerics for every test: see ../CONTRIBUTING.md. The files that take longest go first."""

import jax

# So that with several workers none is left alone with them at the end; the longest first.
SLOW_FILES = (
  "test_suite_command.py",
  "test_training_restart.py",
  "test_training_loop.py",
  "test_theory_reproduce.py",
  "test_distillation.py",
  "test_training_distributed.py",
)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
  order = {name: index for index, name in enumerate(SLOW_FILES)}
  items.sort(key=lambda item: order.get(item.path.name, len(SLOW_FILES)))
