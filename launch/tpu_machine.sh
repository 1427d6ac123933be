# Sourced by tpu.sh: commands printed or run, the machine waited for and prepared. What differs
# between the two ways to a TPU is in tpu_api.sh and tpu_gce.sh.
# shellcheck disable=SC2034,SC2154 # flag, place, ... are tpu.sh's

# run COMMAND...: runs it; a dry run prints it.
run() {
  if [ -n "${flag[dry_run]}" ]; then
    echo "+ $(quoted "$@")" >&3
  else
    "$@"
  fi
}

# ask COMMAND...: for commands that only look; a dry run prints them and answers nothing.
ask() {
  run "$@"
}

# state_now ASSUMED: the machine's state; a dry run assumes it.
state_now() {
  local state
  state=$(machine_state) || {
    echo "error: gcloud cannot say what state ${flag[name]} is in." >&2
    return 1
  }
  if [ -n "${flag[dry_run]}" ]; then
    state=$1
  fi
  printf '%s\n' "$state"
}

# ensure_machine first|again: creates it where it is not there or gone, and waits until it is ready.
# What gcloud refuses at first is an error; later it may be that nothing is free at the moment.
ensure_machine() {
  local state begun=$SECONDS
  state=$(state_now none)
  machine_is_ours=1
  case $state in
    gone | failed)
      replace_machine "$state"
      state=none
      ;;
  esac
  if [ "$state" = none ]; then
    echo "Creating ${flag[name]} ..."
    until create_machine; do
      [ "$1" = again ] && [ $((SECONDS - begun)) -lt $((flag[wait_minutes] * 60)) ] || exit 1
      pause
    done
  fi
  while state=$(state_now ready) && [ "$state" != ready ]; do
    if [ "$state" = failed ] || [ "$state" = gone ]; then
      echo "error: ${flag[name]} is $state before it was ready; gcloud's describe says why." >&2
      exit 1
    fi
    if [ $((SECONDS - begun)) -ge $((flag[wait_minutes] * 60)) ]; then
      echo "error: ${flag[name]} was not ready after ${flag[wait_minutes]} minutes." >&2
      exit 1
    fi
    pause
  done
  [ "$state" = ready ] || exit 1
  find_hosts
  find_coordinator
  wait_for_ssh
}

# replace_machine STATE: deletes one that is of no use any more, if there still is one.
replace_machine() {
  [ -n "${flag[bucket]}" ] || [ "$1" = failed ] || keep_only_copy "$1"
  [ "$1" = none ] || delete_machine
}

# keep_only_copy STATE: ends the script where deleting could lose the workdir.
keep_only_copy() {
  if [ "$1" = none ]; then
    echo "error: ${flag[name]} is no more, nor is the workdir: there was no --bucket." >&2
  else
    echo "error: ${flag[name]} is $1, and there is no --bucket: its disk may hold the only copy" \
      "of the workdir. Start it by hand, or begin anew after --delete." >&2
  fi
  exit 1
}

pause() {
  [ -n "${flag[dry_run]}" ] || sleep "${flag[poll_seconds]}"
}

# steady COMMAND...: up to three times, since connections drop; for what may be done twice.
steady() {
  local tries
  for tries in 1 2 3; do
    if "$@"; then
      return
    fi
    echo "Try $tries of 3 failed: $*" >&2
    pause
  done
  return 1
}

# A machine is RUNNING or ACTIVE before it lets anybody in.
wait_for_ssh() {
  local tries
  for ((tries = 0; tries < 20; tries++)); do
    if each_host true >"$scratch/ssh" 2>&1; then
      return
    fi
    pause
  done
  cat "$scratch/ssh"
  echo "error: no ssh to every host of ${flag[name]}." >&2
  exit 1
}

# on_host INDEX COMMAND...: one command line, quoted for the shell over there.
on_host() {
  local index=$1
  shift
  host_shell "$index" "$(quoted "$@")" </dev/null
}

# each_host COMMAND...: on all hosts at once; what host I prints goes to $scratch/said.I, too.
each_host() {
  local i pids=() failed=0
  for ((i = 0; i < flag[hosts]; i++)); do
    if [ -n "${flag[dry_run]}" ]; then
      on_host "$i" "$@" # one after the other, or the lines would mix
    else
      on_host "$i" "$@" >"$scratch/said.$i" 2>"$scratch/warned.$i" &
      pids+=($!)
    fi
  done
  for i in "${!pids[@]}"; do
    wait "${pids[i]}" || failed=1
    sed "s/^/[host $i] /" "$scratch/said.$i" "$scratch/warned.$i"
  done
  return $failed
}

host_script=bcgd_jax/launch/tpu_host.sh
host_tool=(bash "$host_script")

# Copies the commit, installs, compares versions, brings data and workdir: all that a start needs.
prepare_hosts() {
  local commit i data_dir
  offset=0
  commit=$(git -C "$root" rev-parse HEAD)
  run git -C "$root" archive --format=tar.gz --output="$scratch/bcgd_jax.tar.gz" HEAD
  for ((i = 0; i < flag[hosts]; i++)); do
    steady copy_to_host "$i" "$scratch/bcgd_jax.tar.gz" bcgd_jax.tar.gz
  done
  steady each_host bash -c "rm -rf bcgd_jax && mkdir bcgd_jax &&
tar -xzf bcgd_jax.tar.gz -C bcgd_jax && echo $commit >bcgd_jax/COMMIT"
  # of an earlier start, where this machine is used again
  steady each_host "${host_tool[@]}" stop
  echo "Installing Python ${flag[python]}, jax ${flag[jax]} ..."
  steady each_host "${host_tool[@]}" install "${flag[python]}" "${flag[jax]}"
  compare_versions
  if [ -n "${flag[data_from]}" ]; then
    data_dir=$(seen_from_checkout "${flag[data_to]}")
    steady each_host "${host_tool[@]}" fetch "${flag[data_from]}" "$data_dir"
  fi
  if [ -n "${flag[setup]}" ]; then
    each_host bash -c "${flag[setup]}"
  fi
  if [ "${flag[hosts]}" != 1 ]; then
    steady each_host "${host_tool[@]}" share "${flag[bucket]}"
  elif [ -n "${flag[bucket]}" ]; then
    steady each_host "${host_tool[@]}" restore "${flag[bucket]}"
  fi
}

compare_versions() {
  local i
  steady each_host "${host_tool[@]}" versions
  for ((i = 1; i < flag[hosts]; i++)); do
    if [ -z "${flag[dry_run]}" ] && ! cmp -s "$scratch/said.0" "$scratch/said.$i"; then
      echo "error: host $i has other versions than host 0." >&2
      exit 1
    fi
  done
}

# A path in a host's home as the commands there see it, which run in the checkout.
seen_from_checkout() {
  case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '../%s\n' "$1" ;;
  esac
}
