# Sourced by the scripts that start training: runs it so that signals reach it, says which exit
# statuses are worth another start, and when to give up. Not a command. Variables that it shares
# with the sourcing script: max_restarts, max_stalled; child, child_status, stop_signal.
# shellcheck disable=SC2034,SC2154

# 143 SIGTERM, saved; 134 a peer was lost; 142 a peer hangs; 137 killed; 255 ssh or the machine
# went away. Never 1 or 2: the same start would fail the same way.
is_restartable() {
  case $1 in
    134 | 137 | 142 | 143 | 255) return 0 ;;
    *) return 1 ;;
  esac
}

# overall_status STATUS...: one status for a run of several processes. A process that failed for
# good counts before those that it took along: they end with 134 or 143.
overall_status() {
  local status overall=0
  for status in "$@"; do
    if [ "$status" != 0 ] && ! is_restartable "$status"; then
      printf '%s\n' "$status"
      return
    fi
    if [ "$overall" = 0 ]; then
      overall=$status
    fi
  done
  printf '%s\n' "$overall"
}

# Reads paths of manifests, one a line; prints the newest committed step, or -1.
newest_step() {
  local line newest=-1 step
  while IFS= read -r line; do
    if [[ $line =~ /step_([0-9]+)(-[0-9]+)?/manifest\.json$ ]]; then
      step=$((10#${BASH_REMATCH[1]}))
      newest=$((step > newest ? step : newest))
    fi
  done
  printf '%s\n' "$newest"
}

# step_of_workdir DIR: the newest step committed in it, or -1.
step_of_workdir() {
  if [ -d "$1/checkpoints" ]; then
    find "$1/checkpoints" -mindepth 2 -maxdepth 2 -name manifest.json | newest_step
  else
    echo -1
  fi
}

# count_restart STEP: called before each start again, STEP being the newest committed step. Keeps
# restarts, stalled and last_step; fails, and says why, when max_restarts is reached or max_stalled
# starts in a row brought no new checkpoint.
restarts=0 stalled=0 last_step=-1
count_restart() {
  restarts=$((restarts + 1))
  if [ "$1" -gt "$last_step" ]; then
    last_step=$1 stalled=0
  else
    stalled=$((stalled + 1))
  fi
  if [ "$stalled" -ge "$max_stalled" ]; then
    echo "error: $stalled starts in a row brought no new checkpoint (newest step: $last_step);" \
      "giving up." >&2
    return 1
  fi
  if [ "$restarts" -gt "$max_restarts" ]; then
    echo "error: started again $max_restarts times already; giving up (newest step:" \
      "$last_step)." >&2
    return 1
  fi
}

# quoted COMMAND...: one line that a shell reads as these words.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" ${word@Q}"
    fi
  done
  printf '%s\n' "${line# }"
}

# run_child COMMAND...: runs it, passes TERM on to it and TERM for INT (a shell's background
# processes ignore INT); sets child_status, and stop_signal to TERM or INT where one came.
run_child() {
  stop_signal=""
  "$@" &
  child=$!
  trap 'stop_signal=TERM; kill -TERM "$child" 2>/dev/null || true' TERM
  trap 'stop_signal=INT; kill -TERM "$child" 2>/dev/null || true' INT
  wait_child
  trap - TERM INT
}

# Waits for $child, however often a trap interrupts the waiting; sets child_status.
wait_child() {
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" || true
  done
  # only now: a wait that a signal ended returns the signal's status, not the child's
  child_status=0
  wait "$child" || child_status=$?
}
