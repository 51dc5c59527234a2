"""Compiles launches for ``sm_90`` on a machine without a GPU, and reads the compiler's report of what they take."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.launch import Launch
from kernels.shipped import shipped

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024  # of one program on sm_90 at the most (CUDA C++ programming guide, compute capability 9.0)
_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
MATRIX = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "QMMA", "IMMA")
_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    ``registers`` of a thread; ``stack_bytes`` of a thread in local memory, where spilled registers go; ``shared_bytes``
    of a program; ``matrix``: which matrix instructions the machine code has; ``loop``: instructions of the shortest
    loop that has any, which is what a warp issues for one tile of keys.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    matrix: tuple[str, ...]
    loop: int


def compile_launch(launch: Launch) -> Any:
    """The kernel of ``launch``, compiled for ``sm_90``; its tensors may be on the ``meta`` device.

    Pointers and strides are taken to be aligned where those of ``launch`` are, as a launch on a GPU would find them.
    """
    signature, constants, attributes = {}, {}, {}
    for at, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name], aligned = _signature(value)
        if aligned:
            attributes[(at,)] = _ALIGNED
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, HOPPER, {"num_warps": launch.warps, "num_stages": launch.stages})


def resources(launch: Launch) -> Resources:
    """Compile ``launch`` and read the report of ``cuobjdump`` and the machine code of ``nvdisasm``."""
    compiled = compile_launch(launch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    numbers = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    matrix = tuple(m for m in MATRIX if re.search(rf"\b{m}\b", code))
    stack = numbers["STACK"] + numbers["LOCAL"]
    return Resources(numbers["REG"], stack, int(compiled.metadata.shared), matrix, _loop(code))


def report(part: int = 0, parts: int = 1) -> Iterator[tuple[str, Resources]]:
    """Name and resources of what ships, or of every ``parts``-th of it from number ``part`` on."""
    for name, launch in islice(shipped(), part, None, parts):
        yield name, resources(launch)


def _loop(code: str) -> int:
    """Instructions of the shortest loop with matrix instructions in what ``nvdisasm`` printed; 0 if there is none."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1])
    loops = []
    for at, instruction in enumerate(instructions):
        branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction)
        if branch and labels.get(branch[1], at) < at:
            loops.append(instructions[labels[branch[1]] : at + 1])
    return min((len(loop) for loop in loops if any(m in x for x in loop for m in MATRIX)), default=0)


def _signature(value: Any) -> tuple[str, bool]:
    """Triton's name of a type, and whether the value is divisible by 16."""
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype], value.storage_offset() * value.element_size() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0


def _tool(name: str, *arguments: str) -> str:
    """What a tool of NVIDIA's that Triton brings along says."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    done = subprocess.run([folder / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    for name, taken in report(*map(int, sys.argv[1:])):
        print(json.dumps({"name": name, **asdict(taken)}), flush=True)
