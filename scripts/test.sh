#!/usr/bin/env bash
# Runs every check. Sets everything up first; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$longtake_root"

# need COMMAND PACKAGE WHY: installs a Debian package unless its command is there.
need() {
    if command -v "$1" >/dev/null; then
        return
    elif [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2"
    else
        echo "error: no $1 was found ($3); install it (apt-get install $2)" >&2
        exit 1
    fi
}
command -v chromium-browser >/dev/null || need chromium chromium "the pages are tested in a real browser"
need redis-server redis-server "the journal is tested with a real Redis"
need prometheus prometheus "dashboards and alerts are tested with a real Prometheus"

# Two test processes that each use all cores slow each other down fifty-fold.
export OMP_NUM_THREADS=1

ruff check .
ruff format --check .
# A minute where it has no cache, on one core: beside the tests, which often wait.
types="$(mktemp)"
mypy >"$types" 2>&1 &
checking=$!
trap 'kill "$checking" 2>/dev/null || true; rm -f "$types"' EXIT
# By file, in the order of tests/conftest.py: a file that starts a cluster starts it once.
tests=0
pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || tests=$?
typed=0
wait "$checking" || typed=$?
cat "$types"
exit "$((tests ? tests : typed))"
