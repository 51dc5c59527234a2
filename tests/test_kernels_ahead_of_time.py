"""Every kernel in every configuration that ships compiles for sm_90 without a GPU, and takes no more than there is.

Compiled in processes of their own, as here Triton interprets. Triton keeps what it compiled: only the first run takes
its time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_BYTES = 227 * 1024
PARTS = 2


def compiled(part: int) -> list[dict[str, Any]]:
    """What ``kernels.ahead_of_time`` says of its part of what ships."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.ahead_of_time", str(part), str(PARTS)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_shipped_kernel_compiles_for_hopper_spills_nothing_and_fits(part: int) -> None:
    """Attention of many queries runs on Hopper's own matrix instructions: of 16 bits, and for codes also of 8."""
    kernels = compiled(part)
    assert len(kernels) >= 25
    assert {k["name"]: k["stack_bytes"] for k in kernels if k["stack_bytes"]} == {}
    assert {k["name"]: k["shared_bytes"] for k in kernels if k["shared_bytes"] > SHARED_BYTES} == {}
    assert max(k["registers"] for k in kernels) <= 255
    attention = [k for k in kernels if k["name"].startswith("attend 1152") and "fp32" not in k["name"]]
    assert attention
    eight = {"fp8 over": "QGMMA", "int8 over": "IGMMA"}
    for kernel in attention:
        codes = [matrix for name, matrix in eight.items() if name in kernel["name"]]
        assert kernel["matrix"] == ["HGMMA", *codes], kernel["name"]
