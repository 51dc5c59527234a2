"""Triton's kernels for whole chunks, AdaStat and pack, against the plain-torch ones and the books' own drift score."""

import pytest
import torch

from cache.drift import ChannelStatistics, Reference
from kernels import adastat as adastat_reference
from kernels import adastat_triton, pack_triton
from kernels import pack as pack_reference
from kernels.quantised import LARGEST
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
    got = adastat_triton.correct(x, mean, std, strength)
    expected = adastat_reference.correct(x, mean, std, strength)
    near(got.x, expected.x, TOLERANCE[dtype])
    assert torch.equal(got.x[0], x[0])
    for name in ("mean", "std", "shift"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-9, rtol=1e-9)
    for row in (1, 2):
        alone = adastat_reference.adastat(x[row], mean[row], std[row], float(strength[row]))
        near(expected.x[row], alone, TOLERANCE[dtype])


def test_statistics_survive_an_offset_a_million_times_their_spread() -> None:
    x = draw(2, 1000, 5) * 0.01 + 1e4
    for got, expected in zip(
        adastat_triton.channel_statistics(x), adastat_reference.channel_statistics(x), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-9)


def test_the_distance_is_what_the_books_score_drift_by() -> None:
    x, (mean, std) = draw(2, 63, 9), references(2, 9)
    std[0, 4] = 0.0  # below the floor
    got = adastat_triton.correct(x, mean, std, torch.ones(2, dtype=torch.float64, device=DEVICE))
    for row in range(2):
        book = Reference(mean[row].cpu().numpy(), std[row].cpu().numpy(), 2)
        seen = ChannelStatistics(got.mean[row].cpu().numpy(), got.std[row].cpu().numpy())
        assert got.shift[row].item() == pytest.approx(book.shift(seen), rel=1e-9)


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_checksum_is_the_same_both_ways_and_changes_with_a_bit_or_an_exchange(dtype: torch.dtype) -> None:
    storage = filled(dtype, 100, 50)
    packed, sums = pack_triton.pack_checked(storage, 3)
    assert torch.equal(sums, pack_reference.pack_checked(storage, 3)[1])
    assert torch.equal(sums, pack_triton.unpack_checked(storage, 0, packed))
    damaged = packed.clone()
    damaged.view(torch.uint8)[1, 1, 7, 9] ^= 1
    assert not torch.equal(sums, pack_triton.unpack_checked(storage, 0, damaged))
    exchanged = packed.clone()
    exchanged[0, 0, [4, 5]] = exchanged[0, 0, [5, 4]]
    assert not torch.equal(sums, pack_triton.unpack_checked(storage, 0, exchanged))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codes", LARGEST)
def test_a_chunk_packs_to_the_reference_s_codes_and_back(codes: torch.dtype, dtype: torch.dtype) -> None:
    storage = filled(dtype, 17, 14)
    got, expected = pack_triton.pack_codes(storage, 3, codes), pack_reference.pack_codes(storage, 3, codes)
    for a, b in ((got.keys, expected.keys), (got.values, expected.values)):
        assert torch.equal(a.codes.float(), b.codes.float())
        assert torch.equal(a.scale, b.scale)
    assert torch.equal(got.keys.zero, expected.keys.zero)
    pack_triton.unpack_codes(storage, 0, got)
    near(storage[:, 0, 0], got.keys.read(torch.float32), TOLERANCE[dtype])
    near(storage[:, 1, 0], got.values.read(torch.float32), TOLERANCE[dtype])


def test_chunks_of_all_types_lie_one_after_the_other_in_one_buffer() -> None:
    storages = [filled(torch.float32, 7, 6), filled(torch.float32, 3, 2), filled(torch.float32, 5, 14)]
    for pack_all in (pack_triton.pack_all, pack_reference.pack_all):
        parts = pack_all(storages, [3, 3, 3])
        for part, storage in zip(parts, storages, strict=True):
            assert torch.equal(part, storage[:, :, 3])
        starts = [part.data_ptr() - parts[0].data_ptr() for part in parts]
        assert starts == [0, 1008, 1152]  # 3 layers × 2 × 42 floats; then 36 floats; multiples of 16 bytes


def test_what_does_not_fit_is_refused() -> None:
    storage = filled(torch.float32, 5, 6)
    packed, odd = pack_triton.pack(storage, 3), filled(torch.float16, 1, 3)
    strength = torch.ones(1, dtype=torch.float64, device=DEVICE)
    for call, what in (
        (lambda: pack_triton.pack(storage, 5), r"pages \[5\]"),
        (lambda: pack_triton.pack(storage[0], 0), "5 dimensions"),
        (lambda: pack_triton.pack(storage[..., 1:], 0), "expected it contiguous"),
        (lambda: pack_triton.unpack(storage, 1, packed.half()), "a page is"),
        (lambda: pack_triton.unpack(storage, 1, packed.transpose(0, 1).contiguous().transpose(0, 1)), "contiguous"),
        (lambda: pack_triton.pack_checked(odd, 3), "whole words"),
        (lambda: pack_triton.pack_codes(odd, 3, torch.int8), "expected an even one"),
        (lambda: pack_triton.pack_codes(storage, 3, torch.int16), "codes are torch.int16"),
        (lambda: adastat_triton.channel_statistics(packed.double()), "x is torch.float64"),
        (lambda: adastat_triton.correct(packed[0, :1], *references(1, 5), strength), "expected"),
    ):
        with pytest.raises(ValueError, match=what):
            call()  # type: ignore[no-untyped-call]
