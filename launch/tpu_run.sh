# Sourced by tpu.sh: a run on prepared hosts: started, followed, started again, brought back.
# shellcheck disable=SC2034,SC2154 # flag, place, ... are tpu.sh's

machine_is_ours="" # set once there may be a machine that costs money

# One host: a local workdir, copied to the bucket. Several: a folder of the mounted bucket.
remote_workdir() {
  if [ "${flag[hosts]}" = 1 ]; then
    seen_from_checkout bcgd_workdir
  else
    seen_from_checkout "bcgd_bucket/${flag[bucket]#gs://*/}"
  fi
}

start_on_hosts() {
  local i peers save_url="" data=()
  if [ "${flag[hosts]}" = 1 ]; then
    save_url=${flag[bucket]}
  fi
  if [ -n "${flag[data_from]}" ]; then
    data=(--config.data.data_dir="$(seen_from_checkout "${flag[data_to]}")")
  fi
  echo "Starting on ${flag[hosts]} host(s) ..."
  for ((i = 0; i < flag[hosts]; i++)); do
    peers=()
    [ "${flag[hosts]}" = 1 ] || peer_flags "$i"
    # comes back once the process is there: none can go on before all have begun
    steady on_host "$i" "${host_tool[@]}" start "$save_url" --workdir="$(remote_workdir)" \
      --expected_platform=tpu --expected_devices="${flag[devices]}" "${peers[@]}" "${data[@]}" \
      "${train_flags[@]}"
  done
}

# poll INDEX FROM: sets run_state, run_status, run_step, log_bytes; $scratch/poll gets the log.
poll() {
  local look
  look=$(quoted "${host_tool[@]}" status "$(remote_workdir)" "$2")
  # a new machine has no script yet; that must not look like a dropped connection, nor the reverse
  look="if [ -e $host_script ]; then $look; else echo bcgd-status none - -1 0; fi"
  on_host "$1" bash -c "$look" >"$scratch/poll" || return 1
  if [ -n "${flag[dry_run]}" ]; then
    run_state=$dry_state run_status=0 run_step=-1 log_bytes=0
    return
  fi
  local header
  header=$(grep -m1 '^bcgd-status ' "$scratch/poll") || return 1
  read -r _ run_state run_status run_step log_bytes <<<"$header"
}

# Shows host 0's log until its process ends, or the machine is away; sets status, and lost in the
# latter case.
follow() {
  local failures=0 state
  lost=""
  while :; do
    if poll 0 "$offset"; then
      failures=0
      awk 'shown; /^bcgd-status / { shown = 1 }' "$scratch/poll"
      offset=$log_bytes
      if [ "$run_state" != running ]; then
        collect_statuses
        return
      fi
    elif state=$(state_now ready); then
      # a dropped connection is nothing: the run is detached. A machine that is gone is.
      failures=$((failures + 1))
      if [ "$state" != ready ] || [ "$failures" -ge "${flag[unanswered]}" ]; then
        echo "${flag[name]} is $state and does not answer."
        status=255 lost=1
        return
      fi
    fi
    pause
  done
}

# Every host's status in one; those that still run a while after host 0 ended are stopped.
collect_statuses() {
  local i tries statuses=()
  for ((i = 0; i < flag[hosts]; i++)); do
    for ((tries = 0; tries < 6; tries++)); do
      if ! steady poll "$i" 0; then
        run_state=ended run_status=255 lost=1
      fi
      [ "$run_state" = running ] || break
      pause
    done
    if [ "$run_state" = running ]; then
      on_host "$i" "${host_tool[@]}" stop || true
      run_status=137
    fi
    if [ "$run_state" = none ]; then
      run_status=255 # another machine by the same name
    fi
    statuses+=("$run_status")
    [ "$i" = 0 ] || [ "$run_status" = 0 ] || echo "host $i ended with status $run_status."
  done
  status=$(overall_status "${statuses[@]}")
}

# The newest committed step: by the host where there is one, else by the bucket.
step_now() {
  if poll 0 0; then
    printf '%s\n' "$run_step"
  elif [ -n "${flag[bucket]}" ]; then
    # none is no error, and a list that fails counts as no new checkpoint
    (gcloud storage ls "${flag[bucket]}/checkpoints/*/manifest.json" || true) | newest_step
  else
    echo -1
  fi
}

train_on_machine() {
  local dry_state=none state
  ensure_machine first
  steady poll 0 0
  if [ "$run_state" = running ]; then
    echo "A run is going on there: following it."
    offset=0
  else
    prepare_hosts
    steady poll 0 0
    last_step=$run_step offset=$log_bytes
    start_on_hosts
  fi
  dry_state=ended
  while :; do
    follow
    if ! is_restartable "$status"; then
      break
    fi
    count_restart "$(step_now)" || break
    echo "The run ended with status $status at step $last_step or later: starting it again."
    state=$(state_now ready)
    if [ "$state" != ready ] || [ -n "$lost" ]; then
      replace_machine "$state"
      ensure_machine again
      prepare_hosts
    fi
    start_on_hosts
  done
  finish
}

# Brings the workdir back and deletes the machine; ends the script with the run's status.
finish() {
  local state
  state=$(state_now ready)
  if [ "$state" = ready ] && [ "${flag[hosts]}" = 1 ] && [ -n "${flag[bucket]}" ]; then
    steady on_host 0 "${host_tool[@]}" save "${flag[bucket]}"
  fi
  if [ -n "${flag[bucket]}" ]; then
    bring_from_bucket
  elif [ "$state" = ready ]; then
    bring_from_host
  else
    keep_only_copy "$state"
  fi
  if [ -z "${flag[keep]}" ]; then
    [ "$state" = none ] || delete_machine
    delete_leftovers
    machine_is_ours=""
  fi
  if [ -n "${flag[dry_run]}" ]; then
    echo "Nothing was run."
  else
    echo "The run ended with status $status; what there is of its workdir is in ${flag[output]}."
  fi
  exit "$status"
}

bring_from_bucket() {
  # a run that failed at once wrote nothing
  if [ -n "${flag[dry_run]}" ] || has_objects "${flag[bucket]}"; then
    run mkdir -p "${flag[output]}"
    run gcloud storage rsync --recursive "${flag[bucket]}" "${flag[output]}"
  fi
}

bring_from_host() {
  run mkdir -p "${flag[output]}"
  on_host 0 tar -C bcgd_workdir -czf - . >"$scratch/workdir.tar.gz"
  run tar -xzf "$scratch/workdir.tar.gz" -C "${flag[output]}"
}

say_what_is_left() {
  local status=$?
  rm -rf "$scratch"
  if [ -n "$machine_is_ours" ] && [ -z "${flag[dry_run]}" ]; then
    echo "${flag[name]} may still be there and cost money. The same command follows its run;" \
      "with --delete it deletes the machine."
  fi
  exit "$status"
}

say_price() {
  if [ -n "${flag[price]}" ]; then
    awk -v chips="${flag[devices]}" -v price="${flag[price]}" 'BEGIN {
      printf "%d chips at %s $ an hour: %.2f $ an hour.\n", chips, price, chips * price }'
  fi
}
