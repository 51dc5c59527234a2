"""Triton's kernels for whole chunks, AdaStat and pack, against the plain-torch ones."""

import pytest
import torch

from kernels import adastat as adastat_reference
from kernels import adastat_triton, pack_triton
from tests.kernel_cases import DEVICE, DTYPES, TOLERANCE, draw, near, poisoned


def references(rows: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    mean, std = torch.randn(rows, channels, generator=generator), torch.rand(rows, channels, generator=generator)
    return mean.double().to(DEVICE), std.double().to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "channels"), [(1, 3), (63, 16), (1000, 21)])
def test_every_session_is_corrected_towards_its_own_reference(dtype: torch.dtype, tokens: int, channels: int) -> None:
    """A channel that is constant, one with an outlier, and a strength of 0, which changes no bit."""
    x = draw(3, tokens, channels, dtype=dtype)
    x[:, :, 2], x[1, 0, 0] = 7.0, 1000.0
    mean, std = references(3, channels)
    strength = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, device=DEVICE)
    for correct in (adastat_triton.correct, adastat_reference.correct):
        got = correct(x, mean, std, strength)
        assert got.dtype == dtype
        assert torch.equal(got[0], x[0])
        for row in (1, 2):
            expected = adastat_reference.adastat(x[row], mean[row], std[row], float(strength[row]))
            near(got[row], expected, TOLERANCE[dtype])


def test_statistics_survive_an_offset_a_million_times_their_spread() -> None:
    x = draw(2, 1000, 5) * 0.01 + 1e4
    for got, expected in zip(
        adastat_triton.channel_statistics(x), adastat_reference.channel_statistics(x), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-9)


def filled(dtype: torch.dtype, tokens: int, width: int) -> torch.Tensor:
    """A pool of which only page 3 was ever written."""
    storage = poisoned(3, 2, 5, tokens, width, dtype=dtype)
    storage[:, :, 3] = draw(3, 2, tokens, width, dtype=dtype)
    return storage


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 6), (63, 15), (100, 50)])
def test_a_chunk_packs_and_unpacks_bit_equal_and_touches_no_other_page(
    dtype: torch.dtype, tokens: int, width: int
) -> None:
    storage, other = filled(dtype, tokens, width), poisoned(3, 2, 5, tokens, width, dtype=dtype)
    packed = pack_triton.pack(storage, 3)
    assert torch.equal(packed, storage[:, :, 3])
    assert packed.is_contiguous()
    pack_triton.unpack(other, 1, packed)
    assert torch.equal(other[:, :, 1], packed)
    assert other[:, :, [0, 2, 3, 4]].isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    storage = filled(torch.float32, 5, 6)
    packed = pack_triton.pack(storage, 3)
    strength = torch.ones(1, dtype=torch.float64, device=DEVICE)
    for call, what in (
        (lambda: pack_triton.pack(storage, 5), r"pages \[5\]"),
        (lambda: pack_triton.pack(storage[0], 0), "5 dimensions"),
        (lambda: pack_triton.pack(storage[..., 1:], 0), "expected it contiguous"),
        (lambda: pack_triton.unpack(storage, 1, packed.half()), "a page is"),
        (lambda: pack_triton.unpack(storage, 1, packed.transpose(0, 1).contiguous().transpose(0, 1)), "contiguous"),
        (lambda: adastat_triton.channel_statistics(packed.double()), "x is torch.float64"),
        (lambda: adastat_triton.correct(packed[0, :1], *references(1, 5), strength), "expected"),
    ):
        with pytest.raises(ValueError, match=what):
            call()  # type: ignore[no-untyped-call]
