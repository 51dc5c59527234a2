#!/usr/bin/env bash
# Generates a film. Sets everything up first; arguments are those of `longtake generate`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [ "$#" -eq 0 ]; then
    set -- --script "$longtake_root/examples/three-scenes.yaml" --out take.mp4 --report take --overwrite
fi
exec longtake generate "$@"
