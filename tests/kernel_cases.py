"""What the tests of Triton's kernels share: where they run, what is close enough, and pools full of NaN."""

import torch
from hypothesis import strategies as st

from kernels.attention import BlockTable
from tests.interpreter import quicken

quicken()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the largest number that comes out, by type. Sums are float32 throughout; bfloat16 has 8 bits, float16 has 11.
# Triton's interpreter cuts bfloat16 off where a GPU rounds, which costs the last bit.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Attention rounds weights of at most 1 to the type as well.
ATTENTION_TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = tuple(TOLERANCE)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Memory that nobody has written: whoever reads it is found out."""
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normal numbers in which, as in real keys and values, one channel is loud and off centre."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[..., 1] = x[..., 1] * 4 + 6
    return x.to(DEVICE, dtype)


def near(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Nowhere further apart than ``tolerance`` of the largest number expected, and NaN nowhere."""
    largest = float(expected.double().abs().max())
    torch.testing.assert_close(got.double(), expected.double(), atol=tolerance * largest, rtol=0)


@st.composite
def block_tables(draw: st.DrawFn, pages: int, tokens: int) -> list[BlockTable]:
    """Rows of any keep-sets, with subject anchors and merged chunks; a page may be in several rows."""
    tables = []
    for _ in range(draw(st.integers(1, 3))):
        chosen = draw(st.lists(st.integers(0, pages - 1), min_size=1, max_size=pages, unique=True))
        merged = draw(st.one_of(st.just([]), st.lists(st.integers(1, 9), min_size=pages, max_size=pages)))
        skip = draw(st.integers(0, tokens - 1))
        tables.append(BlockTable(tuple(chosen), skip, tuple(merged[: len(chosen)])))
    return tables
