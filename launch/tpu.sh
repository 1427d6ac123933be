#!/usr/bin/env bash
# Trains on TPUs from an own computer: creates or reuses them, copies this checkout, installs,
# starts, follows, starts again after a preemption, brings the workdir back, deletes. Started again,
# it follows the run that is there. See docs/running.md.
#   bash launch/tpu.sh --backend=tpu-api|gce --name=NAME --project=P --zone=Z [--bucket=gs://B/PATH]
#     [options] -- --config=configs/X.py [flags of bcgd_jax.main]
# Every option and its default: the table below. --dry_run prints each command and runs none.
set -euo pipefail
if [ "${BASH_VERSINFO[0]}" -lt 5 ]; then
  echo "error: bash 5 or newer is needed, got $BASH_VERSION." >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/launch/restart.sh"
. "$root/launch/tpu_bucket.sh"
. "$root/launch/tpu_machine.sh"
. "$root/launch/tpu_run.sh"

declare -A flag=(
  [backend]=""   # tpu-api: v4, v5e | gce: v5p, v6e and newer
  [name]=""      # of the machine, and of the group, template and policy
  [project]=""   #
  [zone]=""      # one that has the chip
  [bucket]=""    # gs://BUCKET/PATH for the workdir; needed for spot machines and several hosts
  [output]=""    # local folder that the workdir is brought back to; default runs/NAME
  [hosts]=""     # machines; default by the type, or 1
  [devices]=""   # chips of all hosts together; default by the type
  [provisioning]=standard # standard | spot | flex-start (gce, one host)
  [accelerator_type]=v5litepod-8 # tpu-api
  [runtime_version]=""    # tpu-api: the image; default by the type
  [valid_for]=6h          # tpu-api: how long the request may wait
  [machine_type]=""       # gce: default ct6e-standard-8t, for several hosts ct6e-standard-4t
  [topology]=""           # gce, several hosts: 4x4 is 16 chips
  [image_project]=ubuntu-os-accelerator-images # gce
  [image_family]=""       # gce: default by the type
  [boot_disk_size]=200GB  # gce
  [max_run]=24h           # gce, flex-start
  [iap]=""                # 1: ssh through Identity-Aware Proxy, for machines without an address
  [python]=3.12           # the images' own 3.10 is too old
  [jax]=0.12.0.1          # installed as jax[tpu]==VERSION
  [data_from]=""          # gs://BUCKET/PATH of prepared data, copied to each host
  [data_to]=bcgd_data     # where to, in the host's home or absolute (/dev/shm/...)
  [setup]=""              # command run on each host before the start, such as mounting a disk
  [price]=""              # $ for a chip and hour, to print what an hour costs
  [restarts]=20           # starts again at most
  [stalled_restarts]=3    # starts in a row without a new checkpoint
  [wait_minutes]=360      # for the machine
  [poll_seconds]=30       # between looks at the run
  [unanswered]=20         # looks in a row without an answer, after which the machine is replaced
  [keep]=""               # 1: leave the machine when the run is over
  [allow_dirty]=""        # 1: start although changes that are not committed are not copied
  [delete]=""             # 1: delete the machine and do nothing else
  [dry_run]=""            # 1: print the commands
)
create_flags=() # --create_flag=FLAG, any number: added to gcloud's command that creates
train_flags=()  # what follows --

usage_error() {
  echo "error: $1." >&2
  exit 2
}

required() {
  local key
  for key in "$@"; do
    [ -n "${flag[$key]}" ] || usage_error "--$key is missing"
  done
}

default_flag() {
  flag[$1]=${flag[$1]:-$2}
}

parse_flags() {
  local key value
  while [ $# -gt 0 ]; do
    case $1 in
      --)
        shift
        train_flags=("$@")
        break
        ;;
      --create_flag=*) create_flags+=("${1#*=}") ;;
      --*)
        key=${1#--} value=1
        if [[ $key == *=* ]]; then
          value=${key#*=} key=${key%%=*}
        fi
        [ -n "${flag[$key]+known}" ] ||
          usage_error "there is no flag --$key; those of bcgd_jax.main come after --"
        flag[$key]=$value
        ;;
      *) usage_error "flags begin with --, got $1" ;;
    esac
    shift
  done
}

check_flags() {
  required backend name project zone
  case ${flag[backend]} in
    tpu-api) . "$root/launch/tpu_api.sh" ;;
    gce) . "$root/launch/tpu_gce.sh" ;;
    *) usage_error "--backend must be tpu-api or gce, got ${flag[backend]}" ;;
  esac
  case ${flag[provisioning]} in
    standard | spot | flex-start) ;;
    *) usage_error "--provisioning must be standard, spot or flex-start" ;;
  esac
  machine_defaults
  if [ -z "${flag[bucket]}" ] && [ "${flag[provisioning]}" != standard ]; then
    usage_error "--bucket is missing: a spot or flex-start machine takes its disk with it"
  fi
  if [ -z "${flag[bucket]}" ] && [ "${flag[hosts]}" != 1 ]; then
    usage_error "--bucket is missing: several hosts need one workdir that all see"
  fi
  if [ -n "${flag[bucket]}" ] && ! [[ ${flag[bucket]} =~ ^gs://[^/]+/.*[^/]$ ]]; then
    usage_error "--bucket must be gs://BUCKET/PATH, got ${flag[bucket]}"
  fi
  if [ -z "${flag[delete]}" ]; then
    check_train_flags
  fi
}

check_train_flags() {
  local argument config=""
  for argument in "${train_flags[@]}"; do
    case $argument in
      --config=?*) config=$argument ;;
      --workdir | --workdir=*)
        usage_error "--workdir is set by tpu.sh; --bucket and --output say where"
        ;;
    esac
  done
  [ -n "$config" ] || usage_error "-- --config=configs/X.py is missing"
  if [ -z "${flag[allow_dirty]}${flag[dry_run]}" ] &&
    [ -n "$(git -C "$root" status --porcelain)" ]; then
    usage_error "changes that are not committed would not be copied: commit them, or --allow_dirty"
  fi
}

main() {
  exec 3>&1 # for commands that a dry run prints from inside $(...)
  parse_flags "$@"
  check_flags
  default_flag output "runs/${flag[name]}"
  max_restarts=${flag[restarts]} max_stalled=${flag[stalled_restarts]}
  place=(--project="${flag[project]}" --zone="${flag[zone]}")
  tunnel=()
  [ -z "${flag[iap]}" ] || tunnel=(--tunnel-through-iap)
  if [ -n "${flag[delete]}" ]; then
    delete_machine
    delete_leftovers
    exit 0
  fi
  export CLOUDSDK_CORE_DISABLE_PROMPTS=1 # nobody watches: a question would wait for ever
  scratch=$(mktemp -d)
  trap say_what_is_left EXIT
  say_price
  train_on_machine
}

main "$@"
