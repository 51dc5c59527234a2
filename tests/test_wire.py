"""Envelopes: whole and of the right kind, or refused; no bytes make the decoder fail in any other way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import SnapshotCorrupt, SnapshotError, SnapshotMismatch
from wire import seal, unseal

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_what_is_sealed_comes_back(payload: object) -> None:
    assert unseal(seal("snapshot", 3, payload), "snapshot", 3) == payload


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(SnapshotCorrupt):
        unseal(data, "snapshot", 1)


@given(PLAIN, st.data())
def test_no_single_byte_can_change_unnoticed(payload: object, data: st.DataObject) -> None:
    sealed = bytearray(seal("snapshot", 1, payload))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SnapshotError):
        unseal(bytes(sealed), "snapshot", 1)


@given(PLAIN, st.data())
def test_no_truncation_goes_unnoticed(payload: object, data: st.DataObject) -> None:
    sealed = seal("snapshot", 1, payload)
    with pytest.raises(SnapshotCorrupt):
        unseal(sealed[: data.draw(st.integers(0, len(sealed) - 1))], "snapshot", 1)


def test_another_kind_and_another_version_are_named() -> None:
    with pytest.raises(SnapshotMismatch, match="this is a Longtake receipt; expected a snapshot"):
        unseal(seal("receipt", 1, {}), "snapshot", 1)
    with pytest.raises(SnapshotMismatch, match="format version 9"):
        unseal(seal("snapshot", 9, {}), "snapshot", 1)
