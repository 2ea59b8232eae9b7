# Makes .venv and installs this package into it, unless that was done since pyproject.toml last changed. To be sourced.
# Needs a Python 3.10 to 3.12 and PyPI (or the index that pip is configured for); neither root, nor Debian's python3-venv.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.12 python3.11 python3.10 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10, 3.11 or 3.12 found: install one, or name it, as in PYTHON=/path/to/python3.11 $0" >&2
    return 1
}

make_venv() {
    local python
    python=$(find_python)
    # Debian splits ensurepip off into python3-venv; without it pip comes as a wheel, which can run itself
    "$python" -m venv .venv >/dev/null 2>&1 || {
        rm -rf .venv
        "$python" -m venv --without-pip .venv
        .venv/bin/python scripts/_get_pip.py
    }
}

if [ ! -x .venv/bin/python ]; then make_venv; fi
if ! cmp -s pyproject.toml .venv/installed.toml; then
    echo "installing into .venv (PyTorch and its CUDA libraries are a few GB; some minutes)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
    cp pyproject.toml .venv/installed.toml
fi
export PATH="$PWD/.venv/bin:$PATH"
