"""The audit of dependencies says that there was none where nothing could be looked up."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FINDS = 'echo "jinja2 2.10 PYSEC-2019-217 2.10.1"; exit 1'


@pytest.mark.parametrize(
    ("of_jinja", "of_lock", "code", "said"),
    [
        ("echo 'No known vulnerabilities found'", "exit 0", 3, "nothing was audited"),  # all were skipped
        ("echo 'could not be resolved' >&2; exit 1", "exit 0", 3, "nothing was audited"),
        (FINDS, "exit 0", 0, ""),
        (FINDS, "echo torch CVE-1; exit 1", 1, "torch CVE-1"),
    ],
)
def test_clean_is_only_what_was_looked_up(tmp_path: Path, of_jinja: str, of_lock: str, code: int, said: str) -> None:
    program = tmp_path / "pip-audit"
    strict = 'case "$*" in *--strict*) ;; *) exit 9 ;; esac'
    which = f'case "$*" in *requirements.lock*--ignore-vuln*) {of_lock} ;; *) {of_jinja} ;; esac'
    program.write_text(f"#!/bin/sh\n{strict}\n{which}\n")
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "audit.sh"), "--ignore-vuln", "X"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
