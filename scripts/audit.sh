#!/usr/bin/env bash
# Looks every package of requirements.lock up among known vulnerabilities. Needs the service that knows them (PyPI's
# JSON API, or with `--vulnerability-service osv` that of OSV); arguments go to pip-audit, e.g. --ignore-vuln ID.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

audit() {
    # --strict: a package that the service does not know is an error and not a clean one.
    pip-audit --strict --no-deps --disable-pip --progress-spinner off "$@"
}

if ! command -v pip-audit >/dev/null; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/python" -m pip --quiet --disable-pip-version-check install pip-audit==2.10.1
    PATH="$work/venv/bin:$PATH"
fi

# A service that cannot be reached, or a mirror without the JSON API, finds nothing either: so something must be found.
echo "jinja2==2.10" >"$work/known.txt"
found="$(audit --requirement "$work/known.txt" "$@" 2>&1 || true)"
if ! grep -qE 'CVE-|GHSA-|PYSEC-' <<<"$found"; then
    echo "error: nothing was audited: the known vulnerabilities of jinja2 2.10 were not found, so the service that" \
        "knows them does not answer: $(tail -n 1 <<<"$found")" >&2
    exit 3
fi
audit --requirement "$root/requirements.lock" "$@"
