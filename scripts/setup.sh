# Sourced by run.sh and test.sh: makes .venv as requirements.lock says, if it is not up to date, and activates it.

longtake_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
longtake_venv="$longtake_root/.venv"
longtake_stamp="$longtake_venv/longtake.stamp"

# A command counts only if it runs: a version manager leaves stubs of versions that are not installed.
find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    echo "error: no Python of version 3.11 or newer was found (looked for python3.11, 3.12, 3.13 and python3)" >&2
    return 1
}

# Debian ships Python without the modules that make a virtual environment.
require_venv_module() {
    local python="$1" package
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq "$package"
    else
        echo "error: $python cannot make virtual environments; install $package (apt-get install $package)" >&2
        return 1
    fi
}

# What the environment is made from, and where: a virtual environment that was moved does not work.
fingerprint() {
    { echo "$longtake_root"; cat "$longtake_root/pyproject.toml" "$longtake_root/requirements.lock"; } | sha256sum
}

install_venv() {
    local python
    python="$(find_python)"
    require_venv_module "$python"
    echo "setting up $longtake_venv with $("$python" --version)" >&2
    "$python" -m venv --clear "$longtake_venv"
    # Compiled at the end, on all cores: pip would do it on one.
    local pip=(env PIP_COMPILE=0 "$longtake_venv/bin/python" -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install --upgrade pip
    # First and alone: an unpinned torch, drawn in by something else, would be another and far larger one.
    "${pip[@]}" install "$(grep '^torch==' "$longtake_root/requirements.lock")"
    "${pip[@]}" install --requirement "$longtake_root/requirements.lock"
    "${pip[@]}" install --no-deps --editable "$longtake_root"
    "$longtake_venv/bin/python" -m compileall -qq -j 0 "$longtake_venv/lib" || true  # some packages ship what is no Python
    fingerprint >"$longtake_stamp"
}

if [ "$(fingerprint)" != "$(cat "$longtake_stamp" 2>/dev/null || true)" ]; then
    install_venv
fi
# shellcheck disable=SC1091
source "$longtake_venv/bin/activate"
