"""Codecs of the restore store: what is lossless is so for every bit, and what is not a packed tensor is refused."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.codec import BufferCodec, Exact
from cache.codecs import NAMES, Ladder, named, packing
from cache.codecs.ladder import READERS
from cache.codecs.planes import PIECE
from errors import ConfigError, RecordCorrupt
from tests.tensors import FLOATS, Drawn, bits, key_values, of_kind, strided

EVERY = (*NAMES, "int8@0.05", "int4@0.2", "fp8@0.04")
LOSSLESS = ("exact", "planes")
OTHER_TYPES = (torch.uint8, torch.int16, torch.int64, torch.float64, torch.bool, torch.complex64)
SAMPLE = of_kind("off centre", (2, 2, 65, 100), torch.bfloat16, 0)


def decoded(codec: BufferCodec, tensor: torch.Tensor) -> torch.Tensor:
    return codec.decode(codec.encode(tensor), tensor.dtype, tuple(tensor.shape))


@pytest.mark.parametrize("name", LOSSLESS)
@given(drawn=key_values())
def test_a_lossless_codec_gives_every_bit_back(name: str, drawn: Drawn) -> None:
    codec = named(name)
    assert codec.lossless
    assert bits(decoded(codec, drawn.tensor)) == bits(drawn.tensor)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("dtype", OTHER_TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 7), (2, 2, 0, 4), (0, 2, 3, 4), (2, 3, 5, 7, 2)])
def test_a_lossless_codec_takes_any_type_and_shape(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
    found = decoded(named(name), tensor)
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_planes_of_several_pieces_are_smaller_and_come_back_whole() -> None:
    shape = (1, 2, 70, 2000)
    assert shape[2] * shape[3] > PIECE
    for level in (1, 3):
        codec = named("planes", level=level)
        for dtype, least in ((torch.bfloat16, 1.4), (torch.float16, 1.05), (torch.float32, 1.1)):
            tensor = of_kind("normal", shape, dtype, 1)
            data = codec.encode(tensor)
            assert bits(codec.decode(data, dtype, shape)) == bits(tensor)
            assert packing(data, dtype, shape).ratio > least
            assert packing(data, dtype, shape).rungs == {"planes": 2}


def test_widened_numbers_are_held_in_hardly_more_than_what_they_were_widened_from() -> None:
    tensor = of_kind("normal", (1, 2, 64, 1024), torch.bfloat16, 2)
    narrow, wide = (len(named("planes").encode(x)) for x in (tensor, tensor.float()))
    assert wide < 1.01 * narrow


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=40)
@given(drawn=key_values())
def test_warm_buffers_and_pages_of_the_pool_get_what_fresh_memory_gets(name: str, drawn: Drawn) -> None:
    codec, tensor = named(name), drawn.tensor
    data = codec.encode(tensor)
    bound = codec.bound(tensor.dtype, tensor.shape)
    assert len(data) <= bound
    buffer = bytearray(b"\xff" * (bound + 8))
    assert codec.encode_into(tensor, memoryview(buffer)[3:]) == len(data)
    assert buffer[3 : 3 + len(data)] == data
    assert buffer[3 + bound :] == b"\xff" * 5
    fresh = codec.decode(memoryview(buffer)[3 : 3 + len(data)], tensor.dtype, tuple(tensor.shape))
    page = strided(torch.zeros_like(tensor))
    codec.decode_into(data, page)
    assert bits(page) == bits(fresh)
    assert fresh.shape == tensor.shape


@pytest.mark.parametrize("name", EVERY)
def test_a_codec_has_no_memory_of_other_chunks(name: str) -> None:
    codec = named(name)
    before = codec.encode(SAMPLE)
    codec.encode(of_kind("huge", (1, 2, 16, 8), torch.bfloat16, 3))
    codec.encode(of_kind("tiny", (1, 2, 16, 8), torch.bfloat16, 3))
    assert codec.encode(SAMPLE) == before


@pytest.mark.parametrize("name", EVERY)
def test_a_buffer_that_is_too_short_or_read_only_is_refused_before_anything_is_written(name: str) -> None:
    codec = named(name)
    bound = codec.bound(SAMPLE.dtype, SAMPLE.shape)
    short = bytearray(bound - 1)
    with pytest.raises(ValueError, match=f"expected {bound:,} or more"):
        codec.encode_into(SAMPLE, short)
    assert not any(short)
    with pytest.raises(ValueError, match="read-only"):
        codec.encode_into(SAMPLE, bytes(bound))


@pytest.mark.parametrize("name", EVERY)
def test_bytes_cut_off_anywhere_or_followed_by_others_are_refused(name: str) -> None:
    codec, tensor = named(name), of_kind("normal", (1, 2, 9, 20), torch.bfloat16, 4)
    whole = codec.encode(tensor)
    for damaged in (*(whole[:length] for length in range(len(whole))), whole + b"\0", whole + whole):
        with pytest.raises(RecordCorrupt):
            codec.decode(damaged, tensor.dtype, tuple(tensor.shape))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.bfloat16, (2, 2, 65, 99)),
        (torch.float32, (2, 2, 65, 100)),
        (torch.bfloat16, (3, 2, 65, 100)),
        (torch.bfloat16, (10**12, 2, 65, 100)),
        (torch.bfloat16, (10**15, 10**15)),
        (torch.bfloat16, (-2, 2, 65, -100)),
        (torch.bfloat16, (2, 2, 65, "100")),
    ],
)
def test_bytes_of_another_tensor_are_refused(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    codec = named(name)
    with pytest.raises(RecordCorrupt):
        codec.decode(codec.encode(SAMPLE), dtype, shape)


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"exact"}))
def test_bytes_of_as_many_elements_in_another_order_or_type_are_refused(name: str) -> None:
    codec = named(name)
    for dtype, shape in ((torch.float16, (2, 2, 65, 100)), (torch.bfloat16, (2, 2, 100, 65))):
        with pytest.raises(RecordCorrupt, match="another than"):
            codec.decode(codec.encode(SAMPLE), dtype, shape)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=30)
@given(data=st.binary(max_size=200))
def test_rubbish_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(RecordCorrupt):
        named(name).decode(data, torch.bfloat16, (1, 2, 64, 64))
    with pytest.raises(RecordCorrupt):
        packing(data, torch.bfloat16, (1, 2, 64, 64))


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"exact"}))
def test_any_damaged_byte_is_refused_or_gives_a_tensor_of_the_right_shape(name: str) -> None:
    """The checksum of the record finds damage; a codec must only never crash and never read past what it was given."""
    codec, tensor = named(name), of_kind("normal", (1, 2, 9, 20), torch.bfloat16, 4)
    whole = codec.encode(tensor)
    passed = set()
    for at in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[at] ^= flip
            try:
                assert codec.decode(damaged, tensor.dtype, tuple(tensor.shape)).shape == tensor.shape
                passed.add(at)
            except RecordCorrupt:
                pass
    magic_and_version, digest, lengths = range(6), range(8, 16), range(18, 34)
    assert not passed & {*magic_and_version, *digest, *lengths}


def lie(frame: bytes, elements: int) -> bytes:
    """A packed tensor of one matrix of bytes whose only plane is ``frame``."""
    codec = Ladder("forged", (READERS[1],))
    room = bytearray(codec.bound(torch.uint8, (elements,)))
    length = codec.encode_into(torch.zeros(elements, dtype=torch.uint8), room)
    head = bytearray(room[:17])
    body = len(frame).to_bytes(4, "little") + frame
    assert packing(room[:length], torch.uint8, (elements,)).rungs == {"planes": 1}
    return bytes(head) + len(body).to_bytes(8, "little") + body


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(torch.int16, (1, 2, 64, 64)), (torch.complex64, (1, 2, 64, 64)), (torch.bfloat16, (1, 2, 0, 64))],
)
def test_codes_of_a_tensor_that_has_none_are_refused(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    data = bytearray(named("planes").encode(torch.zeros(shape, dtype=dtype)))
    for code in (4, 8, 9, 77):
        data[16] = code
        with pytest.raises(RecordCorrupt, match=r"cannot have been|expected one of"):
            named("int8").decode(data, dtype, shape)


@pytest.mark.parametrize("sized", [True, False])
def test_a_plane_that_lies_about_its_size_takes_no_memory(sized: bool) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=sized).compress(bytes(1 << 28))
    assert len(bomb) < 1 << 16
    data = lie(bomb, 1 << 16)
    tracemalloc.start()
    try:
        with pytest.raises(RecordCorrupt, match="plane"):
            named("planes").decode(data, torch.uint8, (1 << 16,))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_two_frames_where_one_belongs_are_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 12))
    assert torch.equal(
        named("planes").decode(lie(frame, 1 << 12), torch.uint8, (1 << 12,)), torch.zeros(1 << 12, dtype=torch.uint8)
    )
    with pytest.raises(RecordCorrupt):
        named("planes").decode(lie(frame + frame, 1 << 12), torch.uint8, (1 << 12,))


@pytest.mark.parametrize("name", EVERY)
def test_the_name_of_a_codec_makes_it_again(name: str) -> None:
    data = named(name).encode(SAMPLE)
    again = named(named(name).name)
    assert torch.equal(
        again.decode(data, SAMPLE.dtype, tuple(SAMPLE.shape)),
        named(name).decode(data, SAMPLE.dtype, tuple(SAMPLE.shape)),
    )


@pytest.mark.parametrize(
    "name", ["", "int5", "INT8", "exact@0.1", "planes@0.1", "int8@", "int8@x", "int8@0", "int8@-1", "int8@nan"]
)
def test_a_name_that_is_none_is_refused_with_what_was_expected(name: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        named(name)


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 20}, {"group": 1}, {"group": 1 << 16}])
def test_a_level_or_group_that_cannot_be_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        named("int8", **options)


def test_a_tensor_that_is_none_of_keys_and_values_is_refused_by_what_would_lose_some_of_it() -> None:
    for shape in ((4, 5), (2, 3, 4, 5)):
        with pytest.raises(ValueError, match="expected \\[layers, 2, tokens, width\\]"):
            named("int8").encode(torch.zeros(shape))


def test_a_tensor_of_another_device_is_refused() -> None:
    for name in EVERY:
        with pytest.raises(ValueError, match="host memory"):
            named(name).encode(torch.zeros(1, 2, 3, 4, device="meta"))


def test_what_the_bytes_say_of_themselves_is_what_was_counted_also_by_several_threads() -> None:
    codec = named("int8")
    assert isinstance(codec, Ladder)
    tensors = [of_kind(kind, (2, 2, 65, 100), dtype, 5) for kind in ("normal", "bits") for dtype in FLOATS]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(codec.encode, tensors * 3))
    packed = [packing(d, x.dtype, x.shape) for d, x in zip(made, tensors * 3, strict=True)]
    found = codec.statistics()
    assert found.tensors == len(made)
    assert found.nominal_bytes == sum(p.nominal_bytes for p in packed) == 3 * sum(x.nbytes for x in tensors)
    assert found.held_bytes == sum(p.held_bytes for p in packed) == sum(map(len, made))
    for name in ("int8", "planes", "exact"):
        assert found.rungs.get(name, 0) == sum(p.rungs.get(name, 0) for p in packed)
    assert found.rungs["int8"] >= 3 * 3 * 4
    assert sum(found.rungs.values()) == 4 * len(made)


def test_bytes_as_they_are_are_counted_as_such() -> None:
    found = packing(Exact().encode(SAMPLE), SAMPLE.dtype, SAMPLE.shape)
    assert (found.ratio, found.bits_per_element, found.rungs) == (1.0, 16.0, {"exact": 4})
