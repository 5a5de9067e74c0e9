#!/usr/bin/env bash
# Make .venv with latmorph and what its development needs.
#
# A torch that PYTHON (default python3) can import is kept and used. Otherwise the version in
# constraints.txt is installed; on a machine without an NVIDIA GPU the multi-gigabyte CUDA build is
# refused, with what to do instead.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

fail() {
    echo "make_venv: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "no $python on the PATH; set PYTHON to a Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old; set PYTHON to a Python 3.11 or newer"

limits=$(mktemp)
trap 'rm -f "$limits"' EXIT
if installed=$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null); then
    echo "using the installed torch $installed"
    "$python" -m venv --clear --system-site-packages .venv
    # What stands beside that torch stays as well: only what is missing is installed.
    echo "torch==$installed" >"$limits"
else
    "$python" -m venv --clear .venv
    cp constraints.txt "$limits"
    torch=$(grep '^torch==' constraints.txt)
    if [ ! -e /dev/nvidia0 ]; then
        plan=$(.venv/bin/python -m pip install --quiet --dry-run --report - "$torch")
        case "$plan" in
        *'"nvidia'* | *'"cuda-'*)
            fail "this machine has no NVIDIA GPU, but pip would install the CUDA build of $torch, several GB." \
                "Name PyTorch's CPU index in PIP_EXTRA_INDEX_URL, or install torch yourself first"
            ;;
        esac
    fi
    .venv/bin/python -m pip install --quiet "$torch"
fi
.venv/bin/python -m pip install --quiet -c "$limits" -e '.[dev]'
touch .venv/.ready
