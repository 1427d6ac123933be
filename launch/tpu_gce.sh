# Sourced by tpu.sh: TPUs as Compute Engine machines (v5p, v6e and newer): an instance, or a managed
# group for several hosts. The functions are those of tpu_api.sh.
# shellcheck disable=SC2034,SC2154 # flag, place, peers, ... are tpu.sh's

machine_defaults() {
  if [ "${flag[hosts]:-1}" = 1 ]; then
    default_flag machine_type ct6e-standard-8t
  else
    default_flag machine_type ct6e-standard-4t
    required topology
  fi
  default_flag hosts 1
  case ${flag[machine_type]} in
    tpu7x-*) default_flag image_family ubuntu-accel-2404-amd64-tpu-tpu7x ;;
    *)
      default_flag image_family ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
      # a name ends in the chips of one machine: -8t
      if [[ ${flag[machine_type]} =~ -([0-9]+)t$ ]]; then
        default_flag devices $((BASH_REMATCH[1] * flag[hosts]))
      fi
      ;;
  esac
  required devices
  if [ "${flag[provisioning]}" = flex-start ] && [ "${flag[hosts]}" != 1 ]; then
    usage_error "--provisioning=flex-start is for one host"
  fi
}

is_group() {
  [ "${flag[hosts]}" != 1 ]
}

# name and status of the group's machines, one a line
group_members() {
  ask gcloud compute instance-groups managed list-instances "${flag[name]}" "${place[@]}" \
    --format='value(name,status)'
}

# Prints none, waiting, ready, gone or failed; fails where that cannot be found out.
machine_state() {
  local listed states
  if is_group; then
    listed=$(ask gcloud compute instance-groups managed list --project="${flag[project]}" \
      --filter="zone:${flag[zone]}" --format='value(name)') || return 1
    if ! grep -qxF -- "${flag[name]}" <<<"$listed"; then
      echo none
      return
    fi
    states=$(group_members | awk '{ print $2 }') || return 1
  else
    listed=$(ask gcloud compute instances list --project="${flag[project]}" \
      --zones="${flag[zone]}" --format='value(name,status)') || return 1
    states=$(awk -v name="${flag[name]}" '$1 == name { print $2 }' <<<"$listed")
    if [ -z "$states" ]; then
      echo none
      return
    fi
  fi
  case $states in
    *STOPP* | *SUSPEND* | *TERMINATED*) echo gone ;;
    *)
      if [ "$(grep -cx RUNNING <<<"$states")" = "${flag[hosts]}" ]; then
        echo ready
      else
        echo waiting
      fi
      ;;
  esac
}

# instance_flags STOP_ACTION: what an instance and a template have in common.
instance_flags() {
  local model=${flag[provisioning]^^}
  model=${model//-/_}
  options=(
    --machine-type="${flag[machine_type]}" --image-project="${flag[image_project]}"
    --image-family="${flag[image_family]}" --boot-disk-size="${flag[boot_disk_size]}"
    --maintenance-policy=TERMINATE --scopes=cloud-platform --provisioning-model="$model"
  )
  if [ "$model" != STANDARD ]; then
    options+=(--instance-termination-action="$1")
  fi
  if [ "$model" = FLEX_START ]; then
    options+=(--max-run-duration="${flag[max_run]}" --request-valid-for-duration=2h)
  fi
}

create_machine() {
  local options
  if ! is_group; then
    instance_flags DELETE
    run gcloud compute instances create "${flag[name]}" "${place[@]}" "${options[@]}" \
      "${create_flags[@]}"
    return
  fi
  local region=${flag[zone]%-*} policy=${flag[name]}-policy template=${flag[name]}-template
  instance_flags STOP
  exists resource-policies "$policy" ||
    run gcloud compute resource-policies create workload-policy "$policy" \
      --project="${flag[project]}" --region="$region" --type=HIGH_THROUGHPUT \
      --accelerator-topology="${flag[topology]}" || return 1
  exists instance-templates "$template" ||
    run gcloud compute instance-templates create "$template" --project="${flag[project]}" \
      "${options[@]}" "${create_flags[@]}" || return 1
  # bulk: all hosts or none, and bound to the policy by its full path, which makes them one slice
  run gcloud compute instance-groups managed create "${flag[name]}" "${place[@]}" \
    --template="$template" --size=0 --target-size-policy-mode=bulk \
    --default-action-on-vm-failure=do-nothing \
    --workload-policy="projects/${flag[project]}/regions/$region/resourcePolicies/$policy" ||
    return 1
  run gcloud compute instance-groups managed resize "${flag[name]}" "${place[@]}" \
    --size="${flag[hosts]}"
}

# exists KIND NAME: whether a policy or template of an earlier start is there. A list that fails
# ends the script: it must not pass for "no".
exists() {
  local listed
  listed=$(ask gcloud compute "$1" list --project="${flag[project]}" --format='value(name)') ||
    exit 1
  grep -qxF -- "$2" <<<"$listed"
}

delete_machine() {
  if is_group; then
    run gcloud compute instance-groups managed delete "${flag[name]}" "${place[@]}" --quiet
  else
    run gcloud compute instances delete "${flag[name]}" "${place[@]}" --quiet
  fi
}

# What a group leaves behind once it is not wanted any more.
delete_leftovers() {
  if is_group; then
    run gcloud compute instance-templates delete "${flag[name]}-template" \
      --project="${flag[project]}" --quiet
    run gcloud compute resource-policies delete "${flag[name]}-policy" \
      --project="${flag[project]}" --region="${flag[zone]%-*}" --quiet
  fi
}

# Sets host_names, sorted so that they keep their order.
find_hosts() {
  host_names=("${flag[name]}")
  if is_group; then
    local listed
    listed=$(group_members | awk '{ print $1 }' | sort)
    if [ -n "${flag[dry_run]}" ]; then
      listed=$(seq -f "${flag[name]}-%g" 0 $((flag[hosts] - 1)))
    fi
    mapfile -t host_names <<<"$listed"
  fi
}

# A group's machines are told who they are: that JAX finds it in their metadata is not confirmed.
find_coordinator() {
  coordinator=$(ask gcloud compute instances describe "${host_names[0]}" "${place[@]}" \
    --format='value(networkInterfaces[0].networkIP)')
  coordinator=${coordinator:-ADDRESS_OF_HOST_0}:8476
}

peer_flags() {
  peers=(--coordinator_address="$coordinator" --num_processes="${flag[hosts]}" --process_id="$1")
}

host_shell() {
  run gcloud compute ssh "${host_names[$1]}" "${place[@]}" "${tunnel[@]}" --command="$2"
}

copy_to_host() {
  run gcloud compute scp "$2" "${host_names[$1]}:$3" "${place[@]}" "${tunnel[@]}"
}
