"""Processes that are killed while they write: a share of the campaign that ``bench.damage`` runs in full."""

from pathlib import Path

import pytest

from bench.damaged import kills, recycled
from tests.records import KEY


@pytest.mark.parametrize("key", [b"", KEY], ids=["plain", "sealed"])
def test_a_store_that_is_killed_while_it_writes_loses_nothing_acknowledged_and_leaves_nothing(
    tmp_path: Path, key: bytes
) -> None:
    tally = kills(tmp_path / "store", 12, 1, key)
    assert (tally.done, tally.wrong, tally.lost, tally.leaks) == (12, 0, 0, 0)
    assert tally.right > 0


def test_memory_that_is_used_again_is_never_seen_by_who_still_looks_at_it(tmp_path: Path) -> None:
    tally = recycled(tmp_path, 300)
    assert (tally.wrong, tally.right) == (0, tally.done)
    assert tally.reasons["buffers used again"] > 0
