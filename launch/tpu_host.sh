#!/usr/bin/env bash
# What tpu.sh runs on each TPU host, in the copied checkout: tpu_host.sh VERB [ARGUMENTS]. Keeps
# ~/bcgd_env (Python), ~/bcgd_run (log, status), ~/bcgd_workdir or ~/bcgd_bucket. Not for hands.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/restart.sh
. launch/tpu_bucket.sh

environment=$HOME/bcgd_env
notes=$HOME/bcgd_run
bucket_mount=$HOME/bcgd_bucket
PATH=$HOME/.local/bin:$PATH

# install PYTHON JAX: pinned, because the images' own Python 3.10 would silently get an old jax.
install() {
  local python=$1 jax=$2 stamp
  stamp="$python $jax $(cksum <setup.py)"
  if [ "$(cat "$environment/.installed" 2>/dev/null)" != "$stamp" ]; then
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv venv --quiet --clear --python "$python" "$environment"
    uv pip install --quiet --python "$environment/bin/python" \
      --editable ".[train,tpu]" "jax[tpu]==$jax"
    printf '%s\n' "$stamp" >"$environment/.installed"
  fi
}

# versions: one line that must be the same on every host.
versions() {
  "$environment/bin/python" - "$(cat COMMIT)" <<'END'
import importlib.metadata as metadata
import platform
import sys

packages = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
found = [f"{name} {metadata.version(name)}" for name in packages]
print(f"python {platform.python_version()},", ", ".join(found) + f", commit {sys.argv[1]}")
END
}

# share URL: mounts the bucket of gs://BUCKET/PATH, shared by all hosts. Attributes are not cached:
# a host must see at once what another wrote.
share() {
  local bucket=${1#gs://}
  bucket=${bucket%%/*}
  mkdir -p "$bucket_mount"
  if mountpoint -q "$bucket_mount"; then
    return
  fi
  command -v gcsfuse >/dev/null || install_gcsfuse
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000 \
    "$bucket" "$bucket_mount"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -y -qq gcsfuse
}

# restore URL: brings the workdir of a machine that is gone; a local one is newer and stays.
restore() {
  local url=$1
  if [ -e "$HOME/bcgd_workdir" ] || ! has_objects "$url"; then
    return
  fi
  rm -rf "$HOME/bcgd_workdir.part"
  mkdir "$HOME/bcgd_workdir.part"
  gcloud storage rsync --recursive "$url" "$HOME/bcgd_workdir.part"
  mv "$HOME/bcgd_workdir.part" "$HOME/bcgd_workdir"
}

# fetch URL DIR: the data set, to a disk of this host.
fetch() {
  mkdir -p "$2"
  gcloud storage rsync --recursive "$1" "$2"
}

# save URL: copies the workdir. What is gone here goes there only once all the rest has arrived: a
# checkpoint cut short by a preemption still has the one before it.
save() {
  local url=$1
  gcloud storage rsync --recursive "$HOME/bcgd_workdir" "$url" &&
    gcloud storage rsync --recursive --delete-unmatched-destination-objects \
      "$HOME/bcgd_workdir" "$url"
}

copy_log() {
  gcloud storage cp "$notes/log" "$1.logs/$(cat "$notes/name").log"
}

# Copies until it gets TERM, which waits for a copy that is under way.
keep_saving() {
  local url=$1 nap=""
  trap 'kill "$nap" 2>/dev/null || true; exit 0' TERM
  while :; do
    sleep "${SAVE_SECONDS:-300}" &
    nap=$!
    wait "$nap" || true
    # the next round makes good what this one could not: files change while they are copied
    save "$url" || echo "warning: copying to $url failed; trying again."
    copy_log "$url" || echo "warning: copying the log to $url failed; trying again."
  done
}

# start SAVE_URL ARGUMENTS...: training, detached; SAVE_URL "" where the workdir is shared.
start() {
  if is_running; then
    return # the connection dropped after the start
  fi
  rm -f "$notes/pid" "$notes/status"
  mkdir -p "$notes" "$HOME/bcgd_workdir"
  printf '%s-%s\n' "$(hostname)" "$(date +%Y%m%dT%H%M%S)" >"$notes/name"
  nohup setsid bash launch/tpu_host.sh supervise "$@" </dev/null >>"$notes/log" 2>&1 &
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    if [ -s "$notes/pid" ]; then
      return
    fi
    sleep 0.1
  done
  echo "error: training did not start; see $notes/log." >&2
  return 1
}

supervise() {
  local url=$1 saver=""
  shift
  printf '%s\n' $$ >"$notes/pid"
  if [ -n "$url" ]; then
    keep_saving "$url" &
    saver=$!
  fi
  # named, so that JAX fails where it cannot have the TPU, instead of going on with CPUs
  run_child env JAX_PLATFORMS=tpu,cpu "$environment/bin/python" -u -m bcgd_jax.main "$@"
  if [ -n "$saver" ]; then
    kill -TERM "$saver"
    wait "$saver" || true
    # for a machine that is going away; tpu.sh saves once more where it is not
    save "$url" || echo "warning: copying to $url failed."
    copy_log "$url" || echo "warning: copying the log to $url failed."
  fi
  printf '%s\n' "$child_status" >"$notes/status.new"
  mv "$notes/status.new" "$notes/status"
}

is_running() {
  local pid command
  pid=$(cat "$notes/pid" 2>/dev/null) || return 1
  # a number alone may be another process's by now
  command=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || return 1
  [[ $command == *"tpu_host.sh supervise"* ]]
}

# status WORKDIR FROM_BYTE: "bcgd-status none|running|ended STATUS STEP BYTES", then the log from
# that byte on.
status() {
  local workdir=$1 from=$2 state=none code=- bytes=0
  if [ -f "$notes/status" ]; then
    state=ended code=$(cat "$notes/status")
  elif is_running; then
    state=running
  elif [ -f "$notes/pid" ]; then
    state=ended code=137 # killed with its shell, or the machine started anew
  fi
  if [ -f "$notes/log" ]; then
    bytes=$(wc -c <"$notes/log")
  fi
  printf 'bcgd-status %s %s %s %s\n' "$state" "$code" "$(step_of_workdir "$workdir")" "$bytes"
  if [ "$bytes" -gt "$from" ]; then
    tail -c "+$((from + 1))" "$notes/log" | head -c $((bytes - from))
  fi
}

# stop: TERM, which saves, then KILL for what hangs.
stop() {
  local pid tries
  is_running || return 0
  pid=$(cat "$notes/pid")
  kill -TERM "$pid"
  for ((tries = 0; tries < ${STOP_SECONDS:-120}; tries++)); do
    is_running || return 0
    sleep 1
  done
  kill -KILL -- "-$pid"
}

"$@"
