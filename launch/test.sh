#!/usr/bin/env bash
# Everything a change must pass: format, lint, types, tests, the wheel; then, where a Python 3.13 is
# found, the core again on it with the newest jax.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

python=$(default_python)
make_environment .venv "$python" test
bin=.venv/bin

if command -v shellcheck >/dev/null; then
  shellcheck launch/*.sh launch/slurm.sbatch .ci/run
else
  echo "shellcheck is not installed: the scripts are not checked."
fi
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"
# in the order of tests/conftest.py: the files with the fewest tests take the longest
"$bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
"$bin/python" -m pytest -m long
"$bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .

second=$(find_python python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python || true)
if [ -z "$second" ] || "$bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
  echo "No second Python (3.13) to test with."
  exit 0
fi
make_environment .venv-newest "$second" test
.venv-newest/bin/python -c 'import jax; print(f"Second Python: 3.13, jax {jax.__version__}")'
.venv-newest/bin/python -m pytest -n 2 --dist loadfile \
  tests/numerics tests/layers tests/optim tests/training/test_training_checkpoint.py \
  tests/commands/test_commands_smoke.py
