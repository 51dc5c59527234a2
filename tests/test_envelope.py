"""A record of the restore store is whole and the one that was asked for, or it is not used."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.envelope import HEAD, Label, check, head, peek
from errors import ConfigError, RecordCorrupt, RecordForeign

LABEL = Label("s", 7, "video_self", "attic", 3, "model-a", "exact", {"slot": 4, "shape": [1, 2, 3]})
PAYLOAD = bytes(range(256)) * 5
BLOCK = head(LABEL, PAYLOAD)


def test_a_whole_record_gives_its_label_back_also_with_padding_behind_it() -> None:
    assert len(BLOCK) == HEAD
    assert peek(BLOCK) == (LABEL, len(PAYLOAD))
    assert check(BLOCK, PAYLOAD, LABEL) == LABEL
    assert check(BLOCK, PAYLOAD + bytes(100), LABEL) == LABEL


def test_any_flipped_bit_of_the_used_head_or_the_payload_is_found() -> None:
    whole = BLOCK + PAYLOAD
    for at in [*range(200), *range(HEAD - 8, len(whole))]:
        for bit in (0, 7):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            with pytest.raises(RecordCorrupt):
                check(damaged[:HEAD], damaged[HEAD:])


@given(st.integers(0, HEAD + len(PAYLOAD) - 1))
def test_a_record_cut_off_anywhere_is_found(length: int) -> None:
    cut = (BLOCK + PAYLOAD)[:length]
    with pytest.raises(RecordCorrupt):
        check(cut[:HEAD], cut[HEAD:])


@pytest.mark.parametrize(
    "change", [{"session": "t"}, {"chunk": 8}, {"kind": "audio_self"}, {"generation": 2}, {"model": "model-b"}]
)
def test_a_whole_record_of_something_else_is_refused(change: dict[str, object]) -> None:
    other = replace(LABEL, **change)  # type: ignore[arg-type]
    with pytest.raises(RecordForeign, match=next(iter(change))):
        check(head(other, PAYLOAD), PAYLOAD, LABEL)


def test_a_label_that_does_not_fit_the_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at most"):
        head(replace(LABEL, scene="x" * HEAD), PAYLOAD)
