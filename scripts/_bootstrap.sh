# Sourced by the scripts beside it: makes .venv in the checkout ($root), installs the package, and puts it first on PATH.
# Needs a Python 3.10-3.12 and nothing else: neither root nor pip nor Debian's python3-venv.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_suits() {
  "$1" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1
}

_find_python() {
  local python
  for python in ${NIFI_PYTHON:+"$NIFI_PYTHON"} python3 python3.12 python3.11 python3.10; do
    if _suits "$python"; then
      echo "$python"
      return
    fi
  done
  echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or name it: NIFI_PYTHON=/path/to/python $0" >&2
  return 1
}

_make_venv() {
  local python
  python=$(_find_python)
  echo "making $root/.venv with $("$python" --version)"
  rm -rf "$root/.venv"
  if ! "$python" -m venv "$root/.venv" >/dev/null 2>&1; then # Debian's python3 comes without ensurepip
    rm -rf "$root/.venv"
    "$python" -m venv --without-pip "$root/.venv"
    "$root/.venv/bin/python" "$root/scripts/_fetch_pip.py"
  fi
}

# Hints at progress while a quiet command runs.
_with_progress() {
  local start=$SECONDS status=0 log
  log=$(mktemp)
  "$@" >"$log" 2>&1 &
  local pid=$!
  trap 'kill "$pid" 2>/dev/null; rm -f "$log"' EXIT
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    if (((SECONDS - start) % 30 == 29)); then
      echo "  $((SECONDS - start + 1)) s, $(du -sm "$root/.venv" | cut -f1) MB"
    fi
  done
  wait "$pid" || status=$?
  if ((status)); then
    tail -n 40 "$log" >&2
    echo "error: '$*' failed; fix the error above and start again" >&2
  fi
  rm -f "$log"
  trap - EXIT
  return "$status"
}

_bootstrap() {
  local stamp="$root/.venv/installed-for" wanted
  wanted="$root $(sha256sum <"$root/pyproject.toml")"
  if ! _suits "$root/.venv/bin/python"; then
    _make_venv
  fi
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $root/.venv: about 9 GB, some minutes"
    _with_progress "$root/.venv/bin/python" -m pip install --progress-bar off --editable "${root}[dev]"
    echo "$wanted" >"$stamp"
    echo "installed after $SECONDS s"
  fi
}

# two scripts started at once share one installation
exec 9<"$root/pyproject.toml"
if command -v flock >/dev/null; then flock 9; fi
_bootstrap
exec 9<&-
export PATH="$root/.venv/bin:$PATH"
