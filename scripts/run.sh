#!/usr/bin/env bash
# Streams a take. Sets everything up first; arguments are those of `longtake stream`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [ "$#" -eq 0 ]; then
    set -- "a red ball bouncing in a blue room" --chunks 60 --out take --overwrite
fi
exec longtake stream "$@"
