# Sourced by tpu.sh: TPUs by the Cloud TPU API's queued resources (v4, v5e; v5p and v6e are still
# accepted). The functions are those of tpu_gce.sh.
# shellcheck disable=SC2034,SC2154 # flag, place, peers, ... are tpu.sh's

machine_defaults() {
  local type=${flag[accelerator_type]} number
  number=${type##*-}
  case $type in
    v5litepod-* | v6e-*) default_flag devices "$number" ;;
    v4-* | v5p-*) default_flag devices $((number / 2)) ;; # counted in cores, two a chip
  esac
  case $type in
    v4-*) default_flag runtime_version tpu-ubuntu2204-base ;;
    v5litepod-*) default_flag runtime_version v2-alpha-tpuv5-lite ;;
    v5p-*) default_flag runtime_version v2-alpha-tpuv5 ;;
    v6e-*) default_flag runtime_version v2-alpha-tpuv6e ;;
  esac
  # one machine holds up to 8 chips of v5e and v6e, and 4 of every larger slice
  case $type in
    v5litepod-[148] | v6e-[148]) default_flag hosts 1 ;;
    *) default_flag hosts $((${flag[devices]:-4} / 4)) ;;
  esac
  required accelerator_type runtime_version devices
  if [ "${flag[provisioning]}" = flex-start ]; then
    usage_error "--provisioning must be standard or spot with --backend=tpu-api"
  fi
}

# Prints none, waiting, ready, gone or failed; fails where that cannot be found out.
machine_state() {
  local listed
  listed=$(ask gcloud compute tpus queued-resources list "${place[@]}" \
    --format='value(name.basename(),state.state)') || return 1
  case $(awk -v name="${flag[name]}" '$1 == name { print $2 }' <<<"$listed") in
    "") echo none ;;
    ACTIVE) echo ready ;;
    SUSPENDING | SUSPENDED | DELETING) echo gone ;;
    FAILED) echo failed ;;
    *) echo waiting ;;
  esac
}

create_machine() {
  local options=()
  if [ "${flag[provisioning]}" = spot ]; then
    options+=(--spot)
  fi
  run gcloud compute tpus queued-resources create "${flag[name]}" --node-id="${flag[name]}" \
    "${place[@]}" --accelerator-type="${flag[accelerator_type]}" \
    --runtime-version="${flag[runtime_version]}" --valid-until-duration="${flag[valid_for]}" \
    "${options[@]}" "${create_flags[@]}"
}

# --force: without it a request whose machine lives cannot be deleted.
delete_machine() {
  run gcloud compute tpus queued-resources delete "${flag[name]}" "${place[@]}" --force --quiet
}

delete_leftovers() { :; }

find_hosts() { :; }

find_coordinator() { :; }

# The hosts find each other through the TPU's metadata.
peer_flags() {
  peers=(--distributed=auto)
}

# GA gcloud knows --tunnel-through-iap for TPUs in its alpha commands alone.
tpu_vm() {
  local verb=$1
  shift
  if [ -n "${flag[iap]}" ]; then
    run gcloud alpha compute tpus tpu-vm "$verb" "$@" "${place[@]}" --tunnel-through-iap
  else
    run gcloud compute tpus tpu-vm "$verb" "$@" "${place[@]}"
  fi
}

host_shell() {
  tpu_vm ssh "${flag[name]}" --worker="$1" --command="$2"
}

copy_to_host() {
  tpu_vm scp "$2" "${flag[name]}:$3" --worker="$1"
}
