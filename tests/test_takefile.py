"""A take in a file: what goes on from it equals a fork, and whatever is not such a file is refused without a trace."""

import random
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cache.host_tier import HostTier
from errors import LongtakeError, MediaError, PoolExhausted, SnapshotCorrupt, SnapshotError, SnapshotMismatch
from streams.engine import Engine
from streams.snapshot import KIND, VERSION
from streams.stream import Stream
from streams.takefile import Take, export_stream, import_stream, resumed, save
from tests.builders import backbone, engine
from tests.test_snapshot import equal, go_on, lived
from wire import seal, unseal


@cache
def packed() -> bytes:
    """A take with everything in it."""
    return Take(backbone().fingerprint, lived(engine(backbone())).snapshot()).pack()


def untouched(made: Engine) -> bool:
    """Whether an engine holds nothing."""
    made.check_integrity()
    assert isinstance(made.tier, HostTier)
    return not made.sessions and not sum(made.pool.statistics().held_bytes.values()) and not made.tier.bytes_held


@pytest.mark.parametrize("durability", ["none", "latents", "kv"])
def test_an_imported_take_equals_a_fork_bit_for_bit_and_the_exported_one_goes_on(
    durability: Any, tmp_path: Path
) -> None:
    stream = lived(engine(backbone(), sessions=2, durability=durability))
    export_stream(stream, tmp_path / "a.take")
    elsewhere = engine(backbone(), durability=durability)
    imported = import_stream(elsewhere, tmp_path / "a.take")
    expected = go_on(stream.fork())
    assert equal(go_on(imported), expected)
    assert equal(go_on(stream), expected)
    imported.close()
    assert untouched(elsewhere)


def test_a_file_that_was_cut_off_anywhere_or_appended_to_is_refused_without_a_trace() -> None:
    data, made = packed(), engine(backbone())
    dice = random.Random(1)
    for length in [0, 1, 7, 8, 49, 50, 51, len(data) - 1, *(dice.randrange(len(data)) for _ in range(60))]:
        with pytest.raises(SnapshotCorrupt):
            resumed(made, Take.parse(data[:length]))
    with pytest.raises(SnapshotCorrupt, match="cut or appended"):
        Take.parse(data + b"\0")
    assert untouched(made)


def test_a_flipped_bit_anywhere_is_found_without_a_trace() -> None:
    data, made = bytearray(packed()), engine(backbone())
    dice = random.Random(2)
    for at in [*range(60), *(dice.randrange(len(data)) for _ in range(60))]:
        data[at] ^= 1 << dice.randrange(8)
        with pytest.raises(SnapshotError):
            resumed(made, Take.parse(bytes(data)))
        data[at] = packed()[at]
    assert untouched(made)


def test_a_take_put_together_from_two_is_found() -> None:
    other = Take("m", lived(engine(backbone())).snapshot()[:-1])
    head = len(packed()) - len(Take.parse(packed()).snapshot)
    with pytest.raises(SnapshotCorrupt):
        Take.parse(packed()[:head] + other.snapshot)


def test_a_take_of_another_model_is_refused_by_name_before_its_snapshot_is_read() -> None:
    made = engine(backbone("ltx-2.3"))
    with pytest.raises(SnapshotMismatch, match="import it where that model is served"):
        resumed(made, Take.parse(packed()))
    assert untouched(made)


def test_a_full_pool_takes_no_take() -> None:
    made = engine(backbone(), sessions=1)
    stream = Stream.open(made, "a ball")
    with pytest.raises(PoolExhausted):
        resumed(made, Take.parse(packed()))
    stream.close()
    assert untouched(made)


def places(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in plain data at which something stands."""
    yield path
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ():
        yield from places(value, (*path, key))


def test_lies_under_a_right_checksum_are_refused_without_a_trace_or_change_nothing_that_matters() -> None:
    truth, made = Take.parse(packed()).snapshot, engine(backbone())
    dice = random.Random(3)
    everywhere = sorted(list(places(unseal(truth, KIND, VERSION)))[1:], key=repr)
    refused = 0
    for path in dice.sample(everywhere, 80):
        lied = unseal(truth, KIND, VERSION)
        inner = lied
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = dice.choice([None, -1, 10**9, "x", b"", [], {}, 1.5])
        try:
            stream = resumed(made, Take(backbone().fingerprint, seal(KIND, VERSION, lied)))
        except SnapshotError:
            refused += 1
        else:
            with suppress(LongtakeError, RuntimeError, ValueError, TypeError, LookupError, AttributeError):
                stream.take(1)  # as in a generator, where only that session fails
            stream.close()
        assert untouched(made), path
    assert refused > 25


def test_saving_replaces_a_file_whole_or_leaves_it_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "a", b"first")
    save(tmp_path / "a", b"second")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a", b"second")]
    with pytest.raises(MediaError):
        save(tmp_path / "nowhere" / "a", b"third")
