#!/usr/bin/env bash
# Trains on the NVIDIA GPUs of this machine, in one process; starts again when the run was killed or
# preempted, never when it failed. TERM or Ctrl-C saves and stops.
#   bash launch/gpu.sh [--cuda=12|13] [--gpus=0,1] [--restarts=20] [--stalled_restarts=3]
#     [--install_only] [--dry_run] --config=configs/X.py --workdir=DIR [flags of bcgd_jax.main]
# Makes .venv-cuda13 or .venv-cuda12, by default as the driver asks: CUDA 13 from 580 on (and
# compute capability 7.5), CUDA 12 from 525 on. CUDA itself comes with the wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
. launch/restart.sh

cuda="" gpus="" max_restarts=20 max_stalled=3 install_only="" dry_run="" workdir=""
arguments=()

parse_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      --cuda=12 | --cuda=13) cuda=${argument#*=} ;;
      --cuda | --cuda=*) usage_error "--cuda must be 12 or 13, got $argument" ;;
      --gpus=*) gpus=${argument#*=} ;;
      --restarts=*) max_restarts=${argument#*=} ;;
      --stalled_restarts=*) max_stalled=${argument#*=} ;;
      --install_only) install_only=1 ;;
      --dry_run) dry_run=1 ;;
      --workdir=*)
        workdir=${argument#*=}
        arguments+=("$argument")
        ;;
      *) arguments+=("$argument") ;;
    esac
  done
  if [ -z "$workdir" ] && [ -z "$install_only" ]; then
    usage_error "--workdir=DIR is missing"
  fi
}

usage_error() {
  echo "error: $1." >&2
  exit 2
}

# Prints 13 or 12: the newest CUDA that driver and card take.
cuda_of_driver() {
  local driver capability
  if ! command -v nvidia-smi >/dev/null; then
    usage_error "nvidia-smi, and so an NVIDIA driver, was not found; --cuda=12|13 chooses without"
  fi
  IFS=', ' read -r driver capability \
    <<<"$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader)"
  local major=${driver%%.*} tenfold=${capability/./}
  if [ "$major" -ge 580 ] && [ "$tenfold" -ge 75 ]; then
    echo 13
  elif [ "$major" -ge 525 ]; then
    echo 12
  else
    usage_error "the NVIDIA driver must be 525 or newer, got $driver"
  fi
}

count_gpus() {
  if [ -n "$gpus" ]; then
    tr ',' '\n' <<<"$gpus" | wc -l
  else
    nvidia-smi --query-gpu=index --format=csv,noheader | wc -l
  fi
}

train() {
  local status step
  last_step=$(step_of_workdir "$workdir")
  while :; do
    run_child "$@"
    status=$child_status
    if [ -n "$stop_signal" ] || ! is_restartable "$status"; then
      exit "$status"
    fi
    step=$(step_of_workdir "$workdir")
    count_restart "$step" || exit "$status"
    echo "The run ended with status $status at step $step or later: starting it again."
    sleep "${RESTART_SECONDS:-5}"
  done
}

parse_arguments "$@"
cuda=${cuda:-$(cuda_of_driver)}
environment=.venv-cuda$cuda
python=$(default_python)
if [ -n "$dry_run" ]; then
  echo "# makes $environment by $python with .[train,cuda$cuda], unless it is there"
else
  make_environment "$environment" "$python" "train,cuda$cuda"
fi
if [ -n "$install_only" ]; then
  exit 0
fi
# the wheels bring CUDA's libraries; a path to others makes JAX load those
unset LD_LIBRARY_PATH
if [ -n "$gpus" ]; then
  export CUDA_VISIBLE_DEVICES=$gpus
fi
num_gpus=$(count_gpus)
command=("$environment/bin/python" -u -m bcgd_jax.main
  --expected_platform=gpu "--expected_devices=$num_gpus" "${arguments[@]}")
if [ -n "$dry_run" ]; then
  echo "+ $(quoted "${command[@]}")"
else
  train "${command[@]}"
fi
