"""Codecs that lose something: what they lose is bounded by theory, measured by channel, and never beyond the budget."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings

from cache.codecs import Ladder, channel_errors, named, packing
from tests import slow_codec
from tests.tensors import FLOATS, KINDS, WIDE, Drawn, bits, key_values, of_kind

FINITE = tuple(kind for kind in KINDS if kind != "bits")
LOSSY = ("int8", "int4", "fp8")


def decoded(name: str, tensor: torch.Tensor, group: int = 64) -> torch.Tensor:
    codec = named(name, group=group)
    return codec.decode(codec.encode(tensor), tensor.dtype, tuple(tensor.shape))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LOSSY)
def test_every_number_is_that_of_the_slow_twin(name: str, dtype: torch.dtype) -> None:
    compared = 0
    for seed, (kind, tokens, width, group) in enumerate(product(FINITE, (8, 21), (5, 9), (8, 64))):
        tensor = of_kind(kind, (1, 2, tokens, width), dtype, seed)
        data = named(name, group=group).encode(tensor)
        if set(packing(data, dtype, tensor.shape).rungs) != {name}:
            continue  # the bytes as they are were fewer, or too large for float32
        found = named(name).decode(data, dtype, tuple(tensor.shape))
        expected = slow_codec.decoded(tensor[0], name, group)
        assert torch.equal(found[0].float(), expected.float()), (kind, tokens, width, group)
        compared += 1
    pays = dtype.itemsize > 1 or name == "int4"  # eight bits are no less than eight bits
    assert compared > 14 if pays else not compared


def half_step(x: torch.Tensor) -> torch.Tensor:
    """Most that rounding to the type of ``x`` can change elements of this size, float64."""
    info = torch.finfo(x.dtype)
    return torch.maximum(x.double().abs() * info.eps, torch.tensor(info.smallest_normal * info.eps).double())


def spans(length: int, group: int) -> list[slice]:
    return [slice(i, min(i + group, length)) for i in range(0, length, group)]


@pytest.mark.parametrize("name", LOSSY)
@settings(max_examples=60)
@given(drawn=key_values(kinds=FINITE, dtypes=WIDE, least=8))
def test_no_element_is_off_by_more_than_theory_allows(name: str, drawn: Drawn) -> None:
    """Half a step: of (max - min) / (2^bits - 1) for keys, of max / (2^(bits-1) - 1) for values, of e4m3 for fp8."""
    tensor = drawn.tensor
    x, y = tensor.double(), decoded(name, tensor).double()
    for axis, side, length in ((1, 0, x.shape[2]), (2, 1, x.shape[3])):
        for span in spans(length, 64):
            index = (slice(None), side, span) if axis == 1 else (slice(None), side, slice(None), span)
            was, off, least = x[index], (x[index] - y[index]).abs(), half_step(tensor[index])
            low, high = was.amin(axis, keepdim=True), was.amax(axis, keepdim=True)
            peak = torch.maximum(high, -low)
            if name == "fp8":
                scale = (peak / 448).clamp(min=2.0**-126)
                allowed = torch.maximum(was.abs() * 2.0**-4, scale * 2.0**-10)
            else:
                steps = (1 << int(name[3:])) - 1
                span_of = (high - low) / steps if side == 0 else peak / (steps // 2)
                allowed = span_of.clamp(min=2.0**-126) / 2
            allowed = allowed * (1 + 2.0**-12) + 2 * least + peak * 2.0**-22
            assert bool((off <= allowed).all()), (drawn.kind, side, float((off - allowed).max()))


@pytest.mark.parametrize("name", LOSSY)
@settings(max_examples=40)
@given(drawn=key_values(least=8))
def test_zeros_stay_zeros_and_channels_that_do_not_change_stay_as_they_are(name: str, drawn: Drawn) -> None:
    """Values have no zero point so that a dead channel stays dead; a constant key channel is its own zero point."""
    tensor = drawn.tensor.clone()
    tensor[..., 0] = 0
    if name != "fp8":
        tensor[:, 0, :, -1] = tensor[:, 0, :1, -1].float().nan_to_num(1.0, 1.0, 1.0).to(tensor.dtype)
    found = decoded(name, tensor)
    assert not found[..., 0].float().any()
    if name != "fp8":
        assert torch.equal(found[:, 0, :, -1].float(), tensor[:, 0, :, -1].float())


@pytest.mark.parametrize("name", [*LOSSY, "int4@0.2"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_matrix_with_what_is_no_number_comes_back_bit_for_bit_and_is_counted(name: str, bad: float) -> None:
    tensor = of_kind("normal", (2, 2, 64, 128), torch.bfloat16, 1)
    tensor[1, 1, 5, 7] = bad
    codec = named(name)
    assert isinstance(codec, Ladder)
    data = codec.encode(tensor)
    found = codec.decode(data, tensor.dtype, tuple(tensor.shape))
    assert bits(found[1, 1]) == bits(tensor[1, 1])
    assert packing(data, tensor.dtype, tensor.shape).rungs["planes"] == codec.statistics().rungs["planes"] == 1
    assert bool(found.isfinite()[0].all())


@pytest.mark.parametrize("dtype", FLOATS)
def test_elements_at_the_end_of_the_range_never_come_back_as_infinite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    tensor = (torch.linspace(-1, 1, 64 * 32) * largest).to(dtype).reshape(1, 1, 64, 32).expand(1, 2, 64, 32)
    for name in LOSSY:
        found = decoded(name, tensor)
        assert bool(found.float().isfinite().all()), name


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_what_ends_of_groups_would_make_larger_is_kept_exact(tokens: int) -> None:
    tensor = of_kind("normal", (3, 2, tokens, 5), torch.bfloat16, 1)
    for name in LOSSY:
        data = named(name).encode(tensor)
        found = packing(data, tensor.dtype, tensor.shape)
        assert len(data) <= 16 + 9 * 6 + tensor.nbytes
        assert found.rungs.keys() <= {"exact", "planes", name}
        if tokens == 1:  # two ends for every single key
            assert found.rungs.get("exact", 0) >= 3


def test_bytes_held_are_those_of_the_codes_and_of_all_ends_and_tables() -> None:
    tensor = of_kind("normal", (4, 2, 64, 256), torch.bfloat16, 1)
    head, tables = 16, 9 * 8
    codes, elements = {"int8": 1.0, "int4": 0.5, "fp8": 1.0}, 4 * 64 * 256
    key_groups, value_groups = 4 * 256, 4 * 64 * (256 // 64)
    for name, width in codes.items():
        ends = key_groups * (1 if name == "fp8" else 2) + value_groups
        expected = head + tables + 2 * int(elements * width) + ends * 2
        data = named(name).encode(tensor)
        found = packing(data, tensor.dtype, tensor.shape)
        assert len(data) == found.held_bytes == expected
        assert found.bits_per_element == 8 * expected / (2 * elements) > 8 * width
        assert found.ratio == 2 * 2 * elements / expected


def test_two_codes_of_four_bits_share_a_byte_also_when_their_number_is_odd() -> None:
    tensor = of_kind("normal", (1, 2, 9, 129), torch.float32, 1)
    data = named("int4").encode(tensor)
    codes = (9 * 129 + 1) // 2
    assert len(data) == 16 + 18 + 2 * codes + 2 * 129 * 4 + 9 * 3 * 4


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("kind", FINITE)
def test_what_comes_back_is_packed_to_the_same_again(name: str, kind: str) -> None:
    """So that errors do not add up over many evictions."""
    tensor = of_kind(kind, (2, 2, 65, 130), torch.bfloat16, 1)
    once = decoded(name, tensor)
    assert torch.equal(decoded(name, once), once)


def test_scales_are_each_chunks_own() -> None:
    quiet = of_kind("normal", (1, 2, 64, 64), torch.float32, 1)
    codec = named("int8")
    for factor in (2.0**-40, 1.0, 2.0**40):
        tensor = quiet * factor
        found = codec.decode(codec.encode(tensor), tensor.dtype, tuple(tensor.shape))
        errors = channel_errors(tensor, found)
        assert 0.001 < float(errors.mean()) < 0.01
        assert torch.equal(found, decoded("int8", quiet) * factor)


def test_the_error_of_a_channel_is_what_its_definition_says() -> None:
    exact = torch.zeros(1, 2, 130, 4)
    exact[..., 1], exact[..., 2] = 3.0, 1e-30
    exact[:, :, ::2, 3] = 2.0
    found = exact.clone()
    found[:, :, :13, 1] += 0.3
    found[..., 2] *= 1.5
    found[0, 1, 0, 0] = 1e-20
    errors = channel_errors(exact, found)
    share = math.sqrt(13 / 130) * 0.1
    assert errors.shape == (1, 2, 4)
    assert errors[0, 0].tolist() == pytest.approx([0.0, share, 0.5, 0.0], rel=1e-6)
    assert errors[0, 1].tolist() == pytest.approx([math.inf, share, 0.5, 0.0], rel=1e-6)


@pytest.mark.parametrize("name", ["int8@0.02", "int4@0.2", "int4@0.004", "fp8@0.04"])
@settings(max_examples=60)
@given(drawn=key_values())
def test_no_channel_is_ever_beyond_the_budget(name: str, drawn: Drawn) -> None:
    codec, tensor = named(name), drawn.tensor
    assert isinstance(codec, Ladder)
    found = codec.decode(codec.encode(tensor), tensor.dtype, tuple(tensor.shape))
    budget = codec.budget
    assert budget is not None
    for was, now in zip(tensor.flatten(0, 1), found.flatten(0, 1), strict=True):
        if bits(was) != bits(now):
            assert float(channel_errors(was, now).max()) <= budget
    assert codec.statistics().worst_error <= budget


def test_one_bad_channel_costs_its_own_matrix_alone_and_is_counted() -> None:
    tensor = of_kind("normal", (3, 2, 64, 64), torch.bfloat16, 1)
    tensor[1, 1, :, 0] *= 1e-3  # a quiet channel of values shares its scales with loud ones
    codec = named("int8@0.02")
    assert isinstance(codec, Ladder)
    data = codec.encode(tensor)
    found = codec.decode(data, tensor.dtype, tuple(tensor.shape))
    assert packing(data, tensor.dtype, tensor.shape).rungs == {"int8": 5, "planes": 1}
    assert bits(found[1, 1]) == bits(tensor[1, 1])
    assert float(channel_errors(tensor, decoded("int8", tensor))[1, 1, 0]) > 0.5
    statistics = codec.statistics()
    assert (statistics.rungs, statistics.beyond_budget) == ({"int8": 5, "planes": 1}, 1)
    assert 0.005 < statistics.worst_error <= 0.02


def test_a_ladder_takes_the_first_rung_that_is_good_enough() -> None:
    tensor = of_kind("normal", (1, 2, 64, 64), torch.bfloat16, 2)
    errors = channel_errors(tensor, decoded("int4", tensor)).amax(-1)[0].tolist()
    keys, values = sorted(errors)
    assert keys == errors[0]
    for budget, expected in (
        (values * 1.01, {"int4": 2}),
        ((keys + values) / 2, {"int4": 1, "int8": 1}),
        (keys * 0.99, {"int8": 2}),
        (1e-4, {"planes": 2}),
    ):
        data = named(f"int4@{budget}").encode(tensor)
        assert packing(data, tensor.dtype, tensor.shape).rungs == expected


def test_a_more_exact_codec_has_smaller_errors_and_holds_more() -> None:
    tensor = of_kind("normal", (2, 2, 64, 128), torch.bfloat16, 1)
    worst = {n: float(channel_errors(tensor, decoded(n, tensor)).max()) for n in ("exact", "planes", "int8", "int4")}
    held = {n: len(named(n).encode(tensor)) for n in worst}
    assert worst["exact"] == worst["planes"] == 0 < worst["int8"] < worst["int4"] / 10
    assert held["exact"] > 1.4 * held["planes"] > 1.4 * 1.2 * held["int8"] > 1.4 * 1.2 * 1.8 * held["int4"]
    assert [named(n).lossless for n in worst] == [True, True, False, False]
