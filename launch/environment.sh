# Sourced by the other scripts: finds a Python and makes virtual environments. Not a command.

# Prints the first usable Python among the arguments, tried in order: 3.11 or newer, with venv.
find_python() {
  local candidate
  for candidate in "$@"; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
      >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  return 1
}

default_python() {
  find_python "${PYTHON:-python3}" python3 python python3.13 python3.12 python3.11 || {
    echo "error: Python 3.11 or newer (with venv) is needed; set PYTHON to its path." >&2
    return 1
  }
}

# make_environment DIR PYTHON EXTRA: DIR holds this checkout with EXTRA, installed at most once
# for each version of setup.py.
make_environment() {
  local dir=$1 python=$2 extra=$3 stamp
  stamp="$extra $(cksum <setup.py)"
  if [ "$(cat "$dir/.installed" 2>/dev/null)" = "$stamp" ]; then
    return 0
  fi
  # an environment that was moved or whose Python is gone cannot be mended, only made again
  if ! "$dir/bin/python" -c "" 2>/dev/null; then
    "$python" -m venv --clear "$dir"
  fi
  "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
  printf '%s\n' "$stamp" >"$dir/.installed"
}
