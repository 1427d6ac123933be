# Sourced by tpu.sh and tpu_host.sh: a look into a bucket. Not a command.

# has_objects URL: whether anything lies there. Ends the script where that cannot be found out: it
# must not pass for "nothing", which is a new run.
has_objects() {
  local said
  if said=$(gcloud storage ls "$1/" 2>&1); then
    return 0
  fi
  case $said in
    *"matched no objects"*) return 1 ;;
  esac
  printf 'error: cannot look into %s: %s\n' "$1" "$said" >&2
  exit 1
}
