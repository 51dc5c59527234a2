"""Each Triton kernel against its plain-torch reference; where there is no GPU, what the compiler says it takes.

With a GPU: every case is checked against its reference first, and no figure is printed for one that differs. Without:
the resources of everything that ships, compiled for ``sm_90``; nothing is timed, and nothing runs.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.common import Report, label, options, parser
from kernels import adastat, attention, commit, pack, relocate
from kernels.attention import BlockTable, Own
from kernels.coded_queries import pays
from kernels.quantised import empty_keys, empty_values, quantise_keys, quantise_values
from kernels.rotary import RotaryLayout

# Of the SXM parts, dense; NVIDIA's datasheets of the H100 and H200. What can be reached is measured, in the same run.
DATASHEETS = "Datasheets: 989 TFLOP/s in bfloat16, and 3.35 TB/s of memory (H100) or 4.8 TB/s (H200)."
CODES = torch.float8_e4m3fn
TOLERANCE = 2e-2  # of the largest number expected: bfloat16 has 8 bits


@dataclass(frozen=True)
class Size:
    """What the cases are made for; by default a chunk of LTX-2 on a GPU (and 8 of its 48 layers)."""

    heads: int = 32
    video: int = 1152
    audio: int = 25
    layers: int = 8
    device: str = "cuda"


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    Args:
        run, reference: the kernel and the plain torch; ``rival`` another that is to be beaten, if there is one.
        read: what either leaves behind, for the comparison.
        moved_bytes, operations: the least that must be moved and computed.
    """

    name: str
    run: Callable[[], Any]
    reference: Callable[[], Any]
    read: Callable[[Any], torch.Tensor]
    moved_bytes: int
    operations: int = 0
    rival: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Timed:
    """Microseconds of each, and what the device did; ``fraction``: of the larger of the two floors."""

    name: str
    triton_us: float
    torch_us: float
    compiled_us: float | None
    rival_us: float | None
    gb_per_s: float
    fraction: float


def attention_cases(size: Size, kept: int) -> Iterator[Case]:
    """Attention over ``kept`` scattered pages, against torch's own on one contiguous copy of them."""
    from kernels import attention_triton

    for name, head, queries, tokens in (
        ("video_self", 128, size.video, size.video),
        ("audio_to_video", 64, size.video, size.audio),
        ("video_to_audio", 64, size.audio, size.video),
        ("audio_self", 64, size.audio, size.audio),
    ):
        width = size.heads * head
        query = torch.randn(1, queries, width, device=size.device, dtype=torch.bfloat16)
        pages = torch.randn(2, 2 * kept, tokens, width, device=size.device, dtype=torch.bfloat16)
        table = [BlockTable(tuple((7 * page) % (2 * kept) for page in range(0, 2 * kept, 2)))]
        operations = 4 * queries * kept * tokens * width
        moved = 2 * kept * tokens * width
        flat = [pages[i, list(table[0].pages)].reshape(1, -1, size.heads, head).transpose(1, 2) for i in (0, 1)]
        by_head = query.reshape(1, queries, size.heads, head).transpose(1, 2)
        codes = quantise_keys(pages[0], CODES), quantise_values(pages[1], CODES)
        kinds = [("bf16", (pages[0], pages[1]), 2, False), ("fp8", codes, 1, False)]
        if pays(queries, tokens):
            kinds.append(("fp8 times fp8", codes, 1, True))
        for kind, stored, wide, coded in kinds:
            arguments = (query, *stored, table, size.heads, None, coded)
            yield Case(
                f"{name}, {kept} chunks, {kind}",
                lambda arguments=arguments: attention_triton.attend(*arguments),
                lambda arguments=arguments: attention.attend(*arguments),
                itself,
                moved * wide + 4 * query.numel(),
                # One of the two products is of eight bits, which take half the time.
                operations * 3 // 4 if coded else operations,
                lambda q=by_head, kv=flat: torch.nn.functional.scaled_dot_product_attention(q, *kv),
            )


def streaming_cases(size: Size) -> Iterator[Case]:
    """The kernels that memory bounds, at the width of video."""
    from kernels import adastat_triton, commit_triton, pack_triton, rotary_triton

    width, layout = size.heads * 128, RotaryLayout("split", size.heads)
    storage = torch.randn(size.layers, 2, 8, size.video, width, device=size.device, dtype=torch.bfloat16)
    angle = torch.rand(1, size.video, width // 2, device=size.device)
    turn = (angle[0, 0].cos(), angle[0, 0].sin())
    chunk = storage[:, 0, 3].nbytes
    key, value = storage[0, :, :1].clone()
    codes = quantise_keys(storage[:, 0, 3], CODES)
    shared = (
        key,
        value,
        torch.ones(width, device=size.device, dtype=torch.bfloat16),
        1e-6,
        angle.cos(),
        angle.sin(),
        layout,
    )
    outs = [torch.empty(2, 4, size.video, width, device=size.device, dtype=torch.bfloat16) for _ in "ab"]
    moved = [storage[:, 0, 3].clone() for _ in "abc"]

    def restart(keys: torch.Tensor, act: Callable[..., None]) -> Callable[[], torch.Tensor]:
        return lambda: (keys.copy_(storage[:, 0, 3]), act(keys, *turn, layout), keys)[-1]

    yield Case("relocate (after a copy)", restart(moved[0], rotary_triton.relocate),
               restart(moved[1], relocate.relocate), itself, 4 * chunk)  # fmt: skip
    yield Case("restore from fp8", lambda: (rotary_triton.restore(codes, moved[0], *turn, layout), moved[0])[1],
               lambda: (relocate.restore(codes, moved[1], *turn, layout), moved[1])[1], itself,
               3 * chunk // 2)  # fmt: skip
    yield Case("commit", lambda: (commit_triton.write(*shared, *outs[0], [2]), outs[0][:, 2])[1],
               lambda: (commit.write(*shared, *outs[1], [2]), outs[1][:, 2])[1], itself,
               4 * key.nbytes + 2 * angle.nbytes)  # fmt: skip
    yield Case("pack", lambda: pack_triton.pack(storage, 3), lambda: pack.pack(storage, 3), itself, 4 * chunk)
    yield Case("pack, checked", lambda: pack_triton.pack_checked(storage, 3)[0],
               lambda: pack.pack_checked(storage, 3)[0], itself, 4 * chunk)  # fmt: skip
    x = torch.randn(8, 768, 128, device=size.device)
    ends = [torch.rand(8, 128, device=size.device, dtype=torch.float64) for _ in "ab"]
    strength = torch.full((8,), 0.5, device=size.device, dtype=torch.float64)
    yield Case("adastat, 8 sessions", lambda: adastat_triton.correct(x, *ends, strength).x,
               lambda: adastat.correct(x, *ends, strength).x, itself, 2 * x.nbytes)  # fmt: skip


def itself(out: torch.Tensor) -> torch.Tensor:
    """What a run returned is what it left behind."""
    return out


def differs(case: Case) -> float:
    """The largest difference to the reference, of the largest number there; not a number counts as infinite."""
    got, expected = case.read(case.run()).float(), case.read(case.reference()).float()
    difference = float((got - expected).abs().max() / expected.abs().max())
    return difference if difference == difference else float("inf")


def microseconds(run: Callable[[], Any], repeats: int) -> float:
    """The median by events of the device, each after a write of 256 MB that leaves nothing of it in the caches."""
    flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    times = []
    for lap in range(repeats + 3):
        flush.zero_()
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        begun.record()
        run()
        ended.record()
        torch.cuda.synchronize()
        if lap >= 3:
            times.append(begun.elapsed_time(ended) * 1e3)
    return statistics.median(times)


def ceilings(repeats: int) -> tuple[float, float]:
    """Operations and bytes a second that this device reaches: a bfloat16 product on random numbers, and a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    product_us, copy_us = microseconds(lambda: a @ b, repeats), microseconds(lambda: target.copy_(source), repeats)
    return 2 * 8192**3 / product_us * 1e6, 2 * source.nbytes / copy_us * 1e6


def timed(case: Case, repeats: int, peak: tuple[float, float]) -> Timed:
    """Time one case that was found right."""
    ours = microseconds(case.run, repeats)
    plain = microseconds(case.reference, repeats)
    compiled = microseconds(torch.compile(case.reference), repeats) if case.rival is None else None
    rival = None if case.rival is None else microseconds(case.rival, repeats)
    floor_us = max(case.operations / peak[0], case.moved_bytes / peak[1]) * 1e6
    return Timed(case.name, ours, plain, compiled, rival, case.moved_bytes / ours / 1e3, floor_us / ours)


def on_device(report: Report) -> None:
    """Check, then time, every case; what differs from its reference gets no figure, and the run ends in an error."""
    size = Size()
    repeats, lengths = (5, (8,)) if report.options.quick else (50, (8, 31))
    peak = ceilings(repeats)
    report.configuration |= {"device": torch.cuda.get_device_name(), "repeats": repeats, "chunks kept": lengths}
    report.notes.append(f"Measured here: {peak[0] / 1e12:.0f} TFLOP/s, {peak[1] / 1e12:.2f} TB/s. {DATASHEETS}")
    rows, wrong = [], []
    for case in chain(*(attention_cases(size, kept) for kept in lengths), streaming_cases(size)):
        difference = differs(case)
        if difference <= TOLERANCE:
            rows.append(timed(case, repeats, peak))
        else:
            wrong.append(f"{case.name} differs by {difference:.3g} of the largest number")
    columns = ("kernel", "µs", "torch µs", "compiled µs", "SDPA µs", "GB/s", "of the floor")
    cells = [
        (r.name, *(_number(x) for x in (r.triton_us, r.torch_us, r.compiled_us, r.rival_us, r.gb_per_s, r.fraction)))
        for r in rows
    ]
    report.table("Against the larger of two floors: bytes at the speed of a copy, operations at that of a product",
                 columns, cells)  # fmt: skip
    report.figures |= {"timed": [asdict(row) for row in rows], "wrong": wrong, "ceilings": peak}
    report.goal("every kernel equals its reference", "; ".join(wrong) or "it does", not wrong)
    goals(report, rows)
    report.finish(bars([r.name for r in rows], [r.fraction for r in rows], "fraction of the floor"))
    if wrong:
        raise SystemExit("not timed: " + "; ".join(wrong))


def goals(report: Report, rows: Sequence[Timed]) -> None:
    """Attention of video against torch's own on contiguous memory, and what streams against a copy."""
    for row in rows:
        if row.rival_us is not None and row.name.startswith("video_self"):
            ratio, least = row.rival_us / row.triton_us, 0.9 if row.name.endswith("bf16") else 1.0
            report.goal(f"{row.name}: {least} of SDPA or more", f"{ratio:.2f}", ratio >= least)
        elif row.rival_us is None:
            least = 0.7 if row.name.startswith("adastat") else 0.8
            report.goal(f"{row.name}: {least} of the copy or more", f"{row.fraction:.2f}", row.fraction >= least)


def host(report: Report) -> None:
    """What the host does for a launch before Triton has it: checks, choices and memory, once in each layer and pass."""
    from kernels import attention_triton, commit_triton, rotary_triton

    size, there = Size(), torch.device("meta")
    width, layout = 128 * size.heads, RotaryLayout("split", size.heads)
    query, out = torch.empty(2, 1, size.video, width, dtype=torch.bfloat16, device=there)
    pages = torch.empty(2, 64, size.video, width, dtype=torch.bfloat16, device=there)
    codes = empty_keys(64, size.video, width, CODES, there), empty_values(64, size.video, width, CODES, there)
    table, own = [BlockTable(tuple(range(1, 32)), 5)], Own(query, out, (7,))
    weight, angle = (
        torch.empty(width, dtype=torch.bfloat16, device=there),
        torch.empty(1, size.video, width // 2, device=there),
    )
    commit_of = (query, out, weight, 1e-6, angle, angle, layout, pages[0], pages[1], (3,))
    cases: dict[str, Callable[[], Any]] = {
        "attention to 31 pages": lambda: attention_triton.prepare(query, pages[0], pages[1], table, size.heads),
        "attention to 31 pages of fp8, and to itself": lambda: attention_triton.prepare(
            query, *codes, table, size.heads, own=own
        ),
        "commit": lambda: commit_triton.prepare(*commit_of),
        "rotation": lambda: rotary_triton.prepare(query, out, angle, angle, layout),
    }
    laps = {name: host_us(run) for name, run in cases.items()}
    report.table("CPU time of the host for a launch, the launch itself not counted", ("launch", "µs"),
                 [(name, f"{us:.0f}") for name, us in laps.items()])  # fmt: skip
    report.figures["host_us"] = laps


def host_us(run: Callable[[], Any], laps: int = 300) -> float:
    """Mean CPU time of ``run`` after the first, in µs."""
    run()
    began = time.process_time()
    for _ in range(laps):
        run()
    return (time.process_time() - began) / laps * 1e6


def compiled(report: Report) -> None:
    """Registers, stack and shared memory of what ships, compiled here for a device that is not here."""
    from kernels.ahead_of_time import SHARED_BYTES
    from kernels.ahead_of_time import report as resources

    report.configuration |= {"device": "none here", "compiled for": "sm_90"}
    report.notes.append("There is no GPU here: nothing was run and nothing was timed.")
    rows = list(resources(0, 15 if report.options.quick else 1))
    columns = ("kernel", "registers", "stack bytes", "shared kB", "matrix instructions", "instructions a tile")
    cells = [
        (n, r.registers, r.stack_bytes, f"{r.shared_bytes / 1024:.1f}", " ".join(r.matrix), r.loop or "")
        for n, r in rows
    ]
    report.table("By the compiler's report; spilled registers go to the stack", columns, cells)
    spilled = [name for name, taken in rows if taken.stack_bytes]
    largest = max(taken.shared_bytes for _, taken in rows)
    report.figures["compiled"] = {name: asdict(taken) for name, taken in rows}
    report.goal("no kernel spills registers", f"{len(spilled)} of {len(rows)} do", not spilled)
    report.goal(f"at most {SHARED_BYTES} bytes of shared memory", f"{largest}", largest <= SHARED_BYTES)
    report.finish(bars([name for name, _ in rows], [taken.registers for _, taken in rows], "registers of a thread"))


def bars(names: list[str], values: Sequence[float], what: str) -> Figure:
    """One bar for each name."""
    figure = Figure(figsize=(10, 1 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, values)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    label(axes, "Triton kernels", what, "")
    return figure


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def main() -> None:
    """The command line."""
    shared = options(parser(__doc__ or "").parse_args())
    report = Report("kernels", "Triton kernels", shared, asdict(Size()))
    with torch.inference_mode():
        host(report)
        (on_device if torch.cuda.is_available() else compiled)(report)


if __name__ == "__main__":
    main()
