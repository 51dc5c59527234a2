"""Every kernel in every configuration that ships, as launches on ``meta`` tensors at the sizes of LTX-2.

These are made by the launchers that serve, so what is compiled ahead of time is what would run.
"""

from collections.abc import Iterator
from itertools import product

import torch

from kernels.adastat_triton import prepare as prepare_adastat
from kernels.attention import BlockTable, Own
from kernels.attention_triton import prepare as prepare_attention
from kernels.commit_triton import prepare as prepare_commit
from kernels.launch import Launch
from kernels.pack import Codes
from kernels.pack_triton import prepare as prepare_copy
from kernels.pack_triton import prepare_codes, prepare_reading_codes
from kernels.quantised import KeyPages, QuantisedKeys, QuantisedValues, ValuePages, empty_keys, empty_values
from kernels.quantised_triton import blocks_of, prepare_keys
from kernels.rotary import RotaryLayout
from kernels.rotary_triton import prepare as prepare_rotation

META = torch.device("meta")
HEADS, PAGES, LAYERS, ROWS = 32, 64, 48, 2
# Tokens of a chunk of three latent frames of 512 × 768 pixels, and of the audio of its time, rounded up.
VIDEO, AUDIO = 1152, 25
KEPT = 31
NUMBERS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
CODES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


def shipped() -> Iterator[tuple[str, Launch]]:
    """Name and launch of each, none twice.

    Types of 16 bits take the same registers and shared memory, so most are here in bfloat16 alone.
    """
    yield from _attention()
    yield from _own()
    yield from _coded_queries()
    yield from _rotation()
    yield from _commit()
    yield from _pack()
    yield from _adastat()


def _attention() -> Iterator[tuple[str, Launch]]:
    """All tiles of the table; with everything that a block table may ask for, and with nothing of it."""
    everything = BlockTable(tuple(range(KEPT)), 5, tuple(range(1, KEPT + 1)))
    plain = BlockTable(tuple(range(KEPT)))
    half, single = (torch.bfloat16, torch.float16), torch.float32
    for dtype, stored, (head, queries, tokens), table in (
        *product(half[:1], (None, *CODES), ((128, VIDEO, VIDEO), (64, VIDEO, AUDIO), (64, AUDIO, VIDEO)), [everything]),
        *product(half, [None], ((128, VIDEO, VIDEO), (64, AUDIO, VIDEO)), [plain]),
        *product(half[:1], CODES, ((128, VIDEO, VIDEO), (64, AUDIO, VIDEO)), [plain]),
        *product(half[:1], [None], ((64, VIDEO, VIDEO), (64, AUDIO, AUDIO)), [plain]),
        *product([single], [None], ((128, VIDEO, VIDEO), (64, AUDIO, VIDEO)), [everything]),
    ):
        query = torch.empty(ROWS, queries, HEADS * head, dtype=dtype, device=META)
        keys, values = _pages(tokens, HEADS * head, dtype, stored)
        attention = prepare_attention(query, keys, values, [table] * ROWS, HEADS, wants_lse=table is everything)
        kind = NUMBERS[dtype] if stored is None else f"{NUMBERS[dtype]} over {CODES[stored]}"
        what = ", subject anchor, merged chunks, mass" if table is everything else ""
        yield f"attend {queries}×{KEPT}×{tokens}, {HEADS}×{head}, {kind}{what}", attention.launches[0]
        if len(attention.launches) > 1 and table is plain and stored is None:
            yield f"merge {queries}, {HEADS}×{head}, {kind}", attention.launches[1]


def _own() -> Iterator[tuple[str, Launch]]:
    """The chunk itself beside pages of codes, which is a part of its own for the merge."""
    table = BlockTable(tuple(range(KEPT)))
    for (head, queries, tokens, mass), stored in product(
        ((128, VIDEO, VIDEO, False), (64, VIDEO, AUDIO, False), (64, AUDIO, VIDEO, False), (128, VIDEO, VIDEO, True)),
        CODES,
    ):
        query = torch.empty(ROWS, queries, HEADS * head, dtype=torch.bfloat16, device=META)
        exact = torch.empty(2, ROWS, tokens, HEADS * head, dtype=torch.bfloat16, device=META)
        keys, values = _pages(tokens, HEADS * head, torch.bfloat16, stored)
        own = Own(exact[0], exact[1], (3, 1))
        attention = prepare_attention(query, keys, values, [table] * ROWS, HEADS, wants_lse=mass, own=own)
        name, what = f"attend {queries}×{tokens}, {HEADS}×{head}, bf16", ", mass" if mass else ""
        if stored is torch.int8:
            yield f"{name}, itself{what}", attention.launches[0]
        yield f"{name} over {CODES[stored]} beside itself{what}", attention.launches[1]


def _coded_queries() -> Iterator[tuple[str, Launch]]:
    """Queries that become codes too, over the pages beside the chunk itself."""
    plain, everything = BlockTable(tuple(range(KEPT))), BlockTable(tuple(range(KEPT)), 5, tuple(range(1, KEPT + 1)))
    query = torch.empty(ROWS, VIDEO, HEADS * 128, dtype=torch.bfloat16, device=META)
    exact = torch.empty(2, ROWS, VIDEO, HEADS * 128, dtype=torch.bfloat16, device=META)
    own = Own(exact[0], exact[1], (3, 1))
    for stored, (table, mass) in product(CODES, ((plain, False), (plain, True), (everything, True))):
        pages = _pages(VIDEO, HEADS * 128, torch.bfloat16, stored)
        attention = prepare_attention(query, *pages, [table] * ROWS, HEADS, wants_lse=mass, own=own, coded=True)
        what = ", subject anchor, merged chunks" if table is everything else ""
        name = f"attend {VIDEO}×{KEPT}×{VIDEO}, {HEADS}×128, {CODES[stored]} over {CODES[stored]}"
        yield f"{name}{what}{', mass' if mass else ''}", attention.launches[1]


def _rotation() -> Iterator[tuple[str, Launch]]:
    for kind, head, dtype in (
        *product(("interleaved", "split"), (64, 128), [torch.bfloat16]),
        *product(["split"], [128], (torch.float16, torch.float32)),
    ):
        layout, width = RotaryLayout(kind, HEADS), HEADS * head  # type: ignore[arg-type]
        name = f"{kind}, {HEADS}×{head}, {NUMBERS[dtype]}"
        one = torch.empty(width // 2, device=META)
        keys = torch.empty(LAYERS, 2, PAGES, VIDEO, width, dtype=dtype, device=META)[:, 0, 3]
        yield f"relocate {name}", prepare_rotation(keys, keys, one, one, layout)
        if head == 128 and dtype == torch.bfloat16:
            for codes in CODES:
                packed = empty_keys(LAYERS, VIDEO, width, codes, META)
                yield f"restore {name} from {CODES[codes]}", prepare_rotation(packed, keys, one, one, layout)
                yield from _moved(codes, width, layout, name)
            query = torch.empty(ROWS, VIDEO, width, dtype=dtype, device=META)
            each = torch.empty(ROWS, VIDEO, width // 2, device=META)
            yield f"rotate {name}", prepare_rotation(query, torch.empty_like(query), each, each, layout)


def _moved(codes: torch.dtype, width: int, layout: RotaryLayout, name: str) -> Iterator[tuple[str, Launch]]:
    """Codes that are moved: one layer at a time to float32 and turned, and to codes again."""
    pages, turned = empty_keys(PAGES, VIDEO, width, codes, META), torch.empty(VIDEO, width, device=META)
    one = torch.empty(width // 2, device=META)
    keys = QuantisedKeys(pages.codes[3], pages.scale[3], pages.zero[3])
    yield f"restore {name} to fp32 from {CODES[codes]}", prepare_rotation(keys, turned, one, one, layout)
    if layout.kind == "split":  # the way back knows nothing of a layout
        yield f"store fp32 to {CODES[codes]}", prepare_keys(turned[None], pages, [3], blocks_of(width))


def _commit() -> Iterator[tuple[str, Launch]]:
    bf16 = torch.bfloat16
    for kind, head, dtype, weighted, stored in (
        *product(("interleaved", "split"), (64, 128), [bf16], [True], [None]),
        ("split", 128, bf16, False, None),
        ("split", 128, torch.float16, True, None),
        ("split", 128, torch.float32, True, None),
        *product(("interleaved", "split"), [128], [bf16], [True], CODES),
    ):
        layout, width = RotaryLayout(kind, HEADS), HEADS * head  # type: ignore[arg-type]
        key = torch.empty(ROWS, VIDEO, width, dtype=dtype, device=META)
        angle = torch.empty(ROWS, VIDEO, width // 2, device=META)
        weight = torch.empty(width, dtype=dtype, device=META) if weighted else None
        pages = _pages(VIDEO, width, dtype, stored)
        name = f"{kind}, {HEADS}×{head}, {NUMBERS[dtype]}{'' if stored is None else ' to ' + CODES[stored]}"
        launches = prepare_commit(key, key, weight, 1e-6, angle, angle, layout, *pages, [3, 1])
        # The values know nothing of a layout.
        for launch in launches if kind == "split" else launches[-1:]:
            yield f"commit {launch.kernel.__name__[1:]} {name}{', weighted' if weighted else ''}", launch


def _pack() -> Iterator[tuple[str, Launch]]:
    """Words are words, whatever type they are of."""
    storage = torch.empty(LAYERS, 2, PAGES, VIDEO, HEADS * 128, dtype=torch.bfloat16, device=META)
    packed = torch.empty(LAYERS, 2, VIDEO, HEADS * 128, dtype=torch.bfloat16, device=META)
    for checked in (False, True):
        launch = prepare_copy(storage, 3, packed, out_of_pool=True, checked=checked).launch
        yield f"pack and unpack{', checked' if checked else ''}", launch
    for codes in CODES:
        values = QuantisedValues(packed[:, 1].to(codes), torch.empty(LAYERS, VIDEO, device=META))
        ends = torch.empty(2, LAYERS, HEADS * 128, device=META)
        both = Codes(QuantisedKeys(packed[:, 0].to(codes), ends[0], ends[1]), values)
        for launch in prepare_codes(storage, 3, both):
            yield f"pack {launch.kernel.__name__[1:]} bf16 to {CODES[codes]}", launch
        yield f"unpack values bf16 from {CODES[codes]}", prepare_reading_codes(storage, 3, both)[1]


def _adastat() -> Iterator[tuple[str, Launch]]:
    x = torch.empty(ROWS, VIDEO, 128, device=META)
    reference = torch.empty(2, ROWS, 128, dtype=torch.float64, device=META)
    strength = torch.empty(ROWS, dtype=torch.float64, device=META)
    yield "adastat", prepare_adastat(x, (reference[0], reference[1], strength))
    yield "channel statistics", prepare_adastat(x, None)


def _pages(tokens: int, width: int, dtype: torch.dtype, stored: torch.dtype | None) -> tuple[KeyPages, ValuePages]:
    if stored is None:
        pages = torch.empty(2, PAGES, tokens, width, dtype=dtype, device=META)
        return pages[0], pages[1]
    return empty_keys(PAGES, tokens, width, stored, META), empty_values(PAGES, tokens, width, stored, META)
