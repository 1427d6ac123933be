#!/usr/bin/env bash
# From nothing to a 1-bit network: makes .venv, installs, trains configs/digits_resnet8_1w4a.py on
# embedded data and prints the table and the report's path. Started again, it says it is finished.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

python=$(default_python)
echo "Installing into .venv ..."
make_environment .venv "$python" train
exec .venv/bin/python -m bcgd_jax.main \
  --config=configs/digits_resnet8_1w4a.py --workdir="${WORKDIR:-runs/quickstart}" "$@"
