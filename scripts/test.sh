#!/usr/bin/env bash
# Runs every check. Sets everything up first; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$longtake_root"

# The pages are tested in a real browser.
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
    else
        echo "error: no chromium was found; install it (apt-get install chromium)" >&2
        exit 1
    fi
fi

# Two test processes that each use all cores slow each other down fifty-fold.
export OMP_NUM_THREADS=1

ruff check .
ruff format --check .
mypy
exec pytest -n 2 "$@"
