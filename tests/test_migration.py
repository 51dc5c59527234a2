"""A stream that moves while it goes on is the same stream, and nothing of it is left behind."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from cache.host_tier import HostTier
from cache.keep_set import Budgets, Role
from cache.policies import ALL
from cache.positions import PositionConfig
from cache.spec import TYPES, AttentionType, Modality
from cache.tiers import KeyValues
from errors import RecordLost, SnapshotCorrupt, SnapshotMismatch
from streams.durability import everything, moving_shelf, shelves
from streams.migration import AT_A_TIME, Arrival, Offer, copy_ahead, offer, pack, stay, unpack
from streams.stream import Stream
from tests.builders import SMALL_KEEP_SET
from tests.test_recovery import POSITIONS, made
from tests.test_snapshot import equal, go_on, lived

Between = Callable[[Stream, int], object]
ROUNDS = 6


def on_and_on(stream: Stream, turn: int) -> None:
    stream.next()


def directed(stream: Stream, turn: int) -> None:
    """All that writes pages anew, gives them up and brings them back."""
    stream.next()
    if turn == 0:
        stream.change_prompt("a square in a red room", "recache")
    elif turn == 1:
        mask = torch.zeros(stream.engine.backbone.geometry.video_tokens, dtype=torch.bool)
        mask[3:7] = True
        assert stream.harvest(stream.session.manager.next_chunk - 1, {Modality.VIDEO: mask}, score=0.99)
    elif turn == 2:
        stream.cut("cellar", "a green cube")
    elif turn == 4:
        stream.return_to("opening")


def fetch(tier: HostTier, stream: str, record: int, type: AttentionType) -> KeyValues:
    return tier.fetch(moving_shelf(stream), record, type)


def begun(stream: Stream, between: Between, **options: object) -> tuple[Arrival, HostTier]:
    """A stream that is on its way to another engine with the same store; meanwhile ``between`` is done with it."""
    tier, session = stream.engine.tier, stream.session
    assert isinstance(tier, HostTier)
    arrival = Arrival.begin(made(stream.engine.config.durability, tier, **options), session.id)
    offered = copy_ahead(stream.engine, session)
    for turn in range(ROUNDS):
        arrival.take(offered, partial(fetch, tier, session.id))
        between(stream, turn)
        offered = copy_ahead(stream.engine, session, offered.pages)
    return arrival, tier


def ended(stream: Stream, arrival: Arrival, tier: HostTier) -> Stream:
    """The stream where it has gone."""
    session = stream.session
    copy_ahead(stream.engine, session, whole=True)
    offered, payload = unpack(pack(stream.engine, session))
    arrival.take(offered, partial(fetch, tier, session.id))
    found = Stream(arrival.engine, arrival.complete(offered, payload))
    for there, here in zip(shelves(session.id), shelves(found.session.id), strict=True):
        tier.adopt(there, here)
    stream.close()
    found.engine.check_integrity()
    return found


def moved(stream: Stream, between: Between = on_and_on, **options: object) -> Stream:
    return ended(stream, *begun(stream, between, **options))


def stayed(stream: Stream, between: Between = on_and_on) -> Stream:
    for turn in range(ROUNDS):
        between(stream, turn)
    return stream


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_stream_that_moved_while_it_went_on_equals_one_that_stayed(policy: type, positions: tuple) -> None:
    options = {"policy": policy(Budgets.uniform(SMALL_KEEP_SET)), "positions": PositionConfig(31, *positions)}
    expected = go_on(stayed(lived(made("none", **options))))
    assert equal(go_on(moved(lived(made("none", **options)), **options)), expected)


@pytest.mark.parametrize("durability", ["none", "latents", "kv"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_so_does_one_that_was_directed_meanwhile(durability: str, positions: tuple) -> None:
    options = {"positions": PositionConfig(31, *positions)}
    expected = go_on(stayed(lived(made(durability, **options)), directed))  # type: ignore[arg-type]
    assert equal(go_on(moved(lived(made(durability, **options)), directed, **options)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("pages", ["int8", "fp8"])
def test_so_does_one_whose_pages_are_codes(pages: str) -> None:
    expected = go_on(stayed(lived(made("none", pages=pages)), directed))
    assert equal(go_on(moved(lived(made("none", pages=pages)), directed, pages=pages)), expected)


def test_a_stream_can_move_again_and_again_and_so_can_its_fork() -> None:
    expected = go_on(stayed(stayed(lived(made("none"))).fork()))
    assert equal(go_on(moved(moved(lived(made("none"))).fork())), expected)


def test_a_chunk_is_copied_at_a_time_and_nothing_twice_that_is_as_it_was() -> None:
    stream = lived(made("none"))
    kept = len(stream.session.manager.kept())
    first = copy_ahead(stream.engine, stream.session)
    assert len({record for _, record, _, _ in first.pages}) == AT_A_TIME
    assert first.left >= kept - AT_A_TIME
    while offer(stream.session).left:
        copy_ahead(stream.engine, stream.session)
    whole = offer(stream.session)
    assert copy_ahead(stream.engine, stream.session) == whole
    stream.next()
    assert offer(stream.session).left == 1


def test_copying_catches_up_with_a_stream_that_makes_a_chunk_meanwhile_and_little_is_left() -> None:
    stream = lived(made("none"))
    for _ in range(2 * len(stream.session.manager.kept())):
        left = copy_ahead(stream.engine, stream.session).left
        if left <= 1:
            break
        stream.next()
    assert left <= 1


def test_what_was_fetched_makes_room_in_the_store() -> None:
    stream = lived(made("none"))
    tier, shelf, offered = stream.engine.tier, moving_shelf(stream.session.id), Offer("", (), {}, 1)
    assert isinstance(tier, HostTier)
    while offered.left:
        offered = copy_ahead(stream.engine, stream.session, offered.pages)
        assert len(tier.chunks(shelf)) <= 2 * AT_A_TIME
    copy_ahead(stream.engine, stream.session, offered.pages)
    assert not tier.chunks(shelf)


def test_a_page_that_was_written_anew_after_it_was_fetched_does_not_make_room_for_its_older_self() -> None:
    stream = lived(made("none"))
    old = copy_ahead(stream.engine, stream.session, whole=True)
    stream.change_prompt("a square", "recache")
    copy_ahead(stream.engine, stream.session, whole=True)
    copy_ahead(stream.engine, stream.session, old.pages)
    tier = stream.engine.tier
    assert isinstance(tier, HostTier)
    fresh = set(offer(stream.session).pages) - set(old.pages)
    assert fresh
    assert all(t in tier.holds(moving_shelf(stream.session.id), record).types for t, record, _, _ in fresh)


def test_nothing_is_left_of_a_stream_that_moved_and_ended() -> None:
    found = moved(lived(made("kv")))
    tier = found.engine.tier
    assert isinstance(tier, HostTier)
    found.close()
    assert tier.statistics().bytes_held == 0
    assert not sum(found.engine.pool.statistics().held_bytes.values())


def test_nothing_is_left_of_a_move_that_did_not_happen_and_the_stream_is_as_it_was() -> None:
    expected = go_on(stayed(lived(made("none"))))
    stream = lived(made("none"))
    arrival, tier = begun(stream, on_and_on)
    arrival.drop()
    stay(stream.engine, stream.session)
    assert not any(tier.chunks(name) for name in everything(arrival.name))
    assert not tier.chunks(moving_shelf(stream.session.id))
    assert not sum(arrival.engine.pool.statistics().leased_bytes.values())
    assert equal(go_on(stream), expected)


def test_a_stream_that_ends_on_its_way_takes_what_was_copied_along() -> None:
    stream = lived(made("none"))
    arrival, tier = begun(stream, on_and_on)
    arrival.drop()
    stream.close()
    assert tier.statistics().bytes_held == 0


def test_a_store_that_has_no_room_for_pages_does_not_have_them_taken_for_copied() -> None:
    stream = lived(made("none", HostTier(0)))
    copy_ahead(stream.engine, stream.session, whole=True)
    assert not offer(stream.session).pages
    with pytest.raises(RecordLost, match="found no room"):
        pack(stream.engine, stream.session)


def test_a_page_that_is_another_than_was_offered_is_not_taken() -> None:
    stream = lived(made("none"))
    tier, offered = stream.engine.tier, copy_ahead(stream.engine, stream.session)
    arrival = Arrival.begin(made("none"), stream.session.id)
    t, record, *_ = offered.pages[0]
    payload = tier.fetch(moving_shelf(stream.session.id), record, t)
    tier.offload(moving_shelf(stream.session.id), record, t, KeyValues(payload.tensor, payload.slot, Role.RECENT, 9999))
    assert isinstance(tier, HostTier)
    with pytest.raises(RecordLost, match="another than was offered"):
        arrival.take(offered, partial(fetch, tier, stream.session.id))


def test_a_stream_of_another_configuration_or_with_other_pages_is_refused_and_nothing_is_open() -> None:
    stream = lived(made("none"))
    copy_ahead(stream.engine, stream.session, whole=True)
    offered, payload = unpack(pack(stream.engine, stream.session))
    tier = stream.engine.tier
    assert isinstance(tier, HostTier)
    other = made("none", positions=PositionConfig(30))
    arrival = Arrival.begin(other, stream.session.id)
    arrival.take(offered, partial(fetch, tier, stream.session.id))
    with pytest.raises(SnapshotMismatch, match="positions"):
        arrival.complete(offered, payload)
    arrival.drop()
    same = made("none")
    lacking = Offer(offered.stream, offered.pages[1:], {}, 0)
    arrival = Arrival.begin(same, stream.session.id)
    arrival.take(lacking, partial(fetch, tier, stream.session.id))
    with pytest.raises(SnapshotCorrupt, match="not those in the books"):
        arrival.complete(lacking, payload)
    arrival.drop()
    for engine in (other, same):
        assert not engine.sessions
        assert not any(engine.pool.statistics().leased_bytes[t] for t in TYPES)
