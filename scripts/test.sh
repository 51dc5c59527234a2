#!/usr/bin/env bash
# Runs every check. Sets everything up first; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$longtake_root"

# Two test processes that each use all cores slow each other down fifty-fold.
export OMP_NUM_THREADS=1

ruff check .
ruff format --check .
mypy
exec pytest -n 2 "$@"
