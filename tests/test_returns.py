"""A scene comes back while the chunk is due: in time and exact, by the other way, or later, and never a stall."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.manager import CacheManager
from cache.operations import Operation
from cache.replica import Answers, apply, digest
from cache.spec import TYPES, AttentionType
from cache.state import dump, load
from cache.way_back import WayBackConfig
from errors import ConfigError
from streams.engine import Engine
from streams.recovery import forget_lost, recover
from streams.slack import RestoreConfig, Slack
from streams.stream import Stream
from tests.builders import backbone, engine, examples, poison
from tests.slow_tier import Delay, SlowTier, at_once, passes_take
from tests.test_recovery import left
from wire import seal, unseal

PASS_S = 0.02  # so a step of two passes and a commit takes 0.06 s, and an encoding 0.02
SHARE, CHUNK_S = 0.5, 0.64
MODEL = backbone()
TOLERANCE_S = PASS_S / 8 + 1e-9
BACK = [0, 3, 8, 9]  # sink, anchor, last chunks of the opening
SAID = {"way back", "rebuild", "postpone", "give up", "not restored"}


def made(tier: SlowTier, **options: Any) -> Engine:
    guess = WayBackConfig(elsewhere_bytes_s=1e9, latency_s=0.001)
    given_ = {"share": SHARE, "way_back": guess, **options.pop("restore", {})}
    return engine(MODEL, tier=tier, restore=RestoreConfig(**given_), clock=tier.clock, wait=tier.wait, **options)


@contextmanager
def away(delay: Delay = at_once, **options: Any) -> Iterator[tuple[Stream, SlowTier]]:
    """A stream that has left its opening, and a store that answers as told from now on."""
    tier = SlowTier(1 << 28)
    stream = Stream.open(made(tier, **options), "a ball", seed=2)
    with passes_take(MODEL, tier, PASS_S):
        stream.take(10)
        stream.cut("kitchen", "a kitchen")
        stream.take(6)
        tier.delay = delay
        yield stream, tier
        stream.engine.check_integrity()
        assert not stream.session.manager.in_progress


def said(stream: Stream, since: int = 16) -> list[str]:
    return [str(d) for d in stream.decisions if d.action in SAID and d.at >= since]


def within(stream: Stream) -> float:
    return stream.engine.slack.within_s


def goes_back(stream: Stream, tier: SlowTier) -> float:
    """Return to the opening; how long that took."""
    poison(stream.engine)
    begun = tier.now
    stream.return_to("opening")
    return tier.now - begun


def late(types: tuple[AttentionType | None, ...], seconds: float | None) -> Delay:
    return lambda chunk, kind: seconds if kind in types else 0.0


def exactly(delay: Delay = at_once) -> list[torch.Tensor]:
    with away(delay) as (stream, _):
        stream.return_to("opening")
        return [chunk.video for chunk in stream.take(5)]


def test_what_is_back_in_time_is_exact_and_the_deadline_is_not_used_up() -> None:
    expected = exactly()
    with away(lambda chunk, kind: 0.1) as (stream, tier):
        assert goes_back(stream, tier) == pytest.approx(0.1)
        assert all(torch.equal(a, c.video) for a, c in zip(expected, stream.take(5), strict=True))
        assert stream.keep_set()["video_self"]["scene_sink"] == [0]
        lines = said(stream)
        assert len(lines) == 4
        assert all("way back" in line and ": load: load from slow" in line for line in lines)
        assert stream.engine.fetcher.restored.verdicts == {("slow", "loaded"): 4}


def test_what_is_not_back_in_time_is_encoded_from_its_latents_and_the_log_says_so() -> None:
    with away(late((AttentionType.VIDEO_SELF,), 3.0)) as (stream, tier):
        allowed = within(stream)
        took = goes_back(stream, tier)
        assert allowed - TOLERANCE_S - 1e-6 <= took <= allowed + TOLERANCE_S
        ms = f"{allowed * 1e3:.0f}"
        expected = [f"@16: rebuild chunk {c}: keys and values were not back within {ms} ms; encoded from latents"
                    for c in BACK]  # fmt: skip
        assert [line for line in said(stream) if "way back" not in line] == expected
        assert stream.keep_set()["video_self"]["restored"] == [8, 9]
        assert all(torch.isfinite(chunk.video).all() for chunk in stream.take(3))
        assert stream.engine.fetcher.restored.verdicts == {("slow", "rebuilt instead"): 4}


def test_the_way_that_is_predicted_sooner_is_taken_without_trying_the_other() -> None:
    slow = RestoreConfig(way_back=WayBackConfig(elsewhere_bytes_s=1e4)).way_back
    with away(late(TYPES, None), restore={"way_back": slow}) as (stream, tier):
        assert goes_back(stream, tier) == pytest.approx(4 * PASS_S)
        lines = said(stream)
        assert len(lines) == 4
        assert lines[0].startswith("@16: way back chunk 0: rebuild: load from slow ")
        assert lines[0].endswith("ms, rebuild 20.0 ms")
        assert stream.engine.fetcher.restored.verdicts == {("slow", "rebuilt"): 4}
        stream.take(2)


def test_with_nothing_back_the_chunk_is_made_of_what_is_there_and_the_rest_comes_later() -> None:
    expected = exactly()
    with away(lambda chunk, kind: 1.0) as (stream, tier):
        allowed = within(stream)
        assert goes_back(stream, tier) == pytest.approx(allowed)
        ms = f"{allowed * 1e3:.0f}"
        nothing = [f"@16: postpone chunk {c}: neither keys and values nor latents were back within {ms} ms"
                   for c in BACK]  # fmt: skip
        assert [line for line in said(stream) if "way back" not in line] == nothing
        assert stream.session.manager.waiting == BACK
        assert "scene_sink" not in stream.keep_set()["video_self"]
        stream.engine.check_integrity()
        first = stream.next()
        assert torch.isfinite(first.video).all()
        assert not torch.equal(first.video, expected[0]), "the scene is not there yet"
        while stream.session.manager.waiting:
            poison(stream.engine)
            stream.next()
        kept = stream.keep_set()["video_self"]
        assert (kept["scene_sink"], kept["scene_anchor"][:1], kept["restored"]) == ([0], [3], [8, 9])
        assert tier.now < 10


def test_what_came_late_is_as_it_was_written() -> None:
    """Pages of a late arrival equal those of one in time, where it stands in the same slot."""
    pages = []
    for seconds in (0.0, 1.0):
        with away(lambda chunk, kind, seconds=seconds: seconds) as (stream, _):  # type: ignore[misc]
            stream.return_to("opening")
            stream.take(1)
            while stream.session.manager.waiting:
                stream.next()
            session = stream.session
            values = {}
            for t in TYPES:
                for chunk in BACK:
                    page = session.page(t, session.manager.ledgers[t].entries[chunk].place)
                    values[t, chunk] = stream.engine.pool.storage[t][:, 1, page].clone()
            pages.append(values)
    assert all(torch.equal(page, pages[1][key]) for key, page in pages[0].items())


def test_what_never_comes_is_given_up_and_the_stream_goes_on() -> None:
    with away(lambda chunk, kind: None) as (stream, tier):
        goes_back(stream, tier)
        for _ in range(200):
            if not stream.session.manager.waiting:
                break
            stream.next()
            tier.pass_until(tier.now + CHUNK_S)
        assert said(stream)[-4:] == [
            f"@{stream.session.manager.next_chunk - 1}: give up chunk {c}: not back within 5 s" for c in BACK
        ]
        stream.take(2)
        stream.engine.staging.settle()
        assert stream.engine.staging.statistics().bytes_held == 0


def test_where_only_some_encodings_fit_the_sink_comes_first_and_the_rest_chunk_by_chunk() -> None:
    share = 0.05 / (CHUNK_S - 3 * PASS_S)  # room for two encodings and a half
    with away(late(TYPES, None), restore={"share": share, "least_s": 0.02}) as (stream, tier):
        took = goes_back(stream, tier)
        assert took <= 0.05 + TOLERANCE_S
        assert sorted(stream.session.manager.kept())[:2] == [0, 3]
        waits = [list(stream.session.manager.waiting)]
        while waits[-1]:
            stream.next()
            waits.append(list(stream.session.manager.waiting))
        assert waits == [[8, 9], [9], []]


def test_a_return_that_was_announced_is_not_waited_for() -> None:
    expected = exactly()
    tier = SlowTier(1 << 28)
    stream = Stream.open(made(tier), "a ball", seed=2)
    with passes_take(MODEL, tier, PASS_S):
        stream.take(10)
        stream.cut("kitchen", "a kitchen")
        stream.take(4)
        tier.delay = lambda chunk, kind: 0.1
        assert not stream.announce("opening")
        stream.take(2)
        assert stream.announce("opening")
        assert goes_back(stream, tier) == 0
        assert all(torch.equal(a, c.video) for a, c in zip(expected, stream.take(5), strict=True))
    found = stream.engine.staging.statistics()
    assert (found.hits, found.late, found.misses, found.refused, found.dropped) == (4 * 5, 0, 0, 0, 0)
    assert found.bytes_held == 0


def test_a_return_that_does_not_come_leaves_nothing_behind() -> None:
    with away(lambda chunk, kind: 0.05) as (stream, _):
        stream.announce("opening")
        assert stream.engine.staging.statistics().parcels == 4 * 5
        stream.take(stream.engine.config.restore.lead + 4)
        found = stream.engine.staging.statistics()
        assert (found.parcels, found.bytes_held, found.dropped) == (0, 0, 20)


def test_nothing_is_announced_of_a_scene_that_is_on_air_or_unknown() -> None:
    with away(lambda chunk, kind: 0.05) as (stream, _):
        assert stream.announce("kitchen")
        assert stream.announce("cellar")
        assert stream.engine.staging.statistics().parcels == 0


def test_staging_that_is_too_small_holds_the_sink_and_all_latents_first() -> None:
    with away(lambda chunk, kind: 0.05) as (stream, tier):
        sizes = stream.engine.bytes_of
        room = 4 * sizes[None] + sum(sizes[t] for t in TYPES)
        stream.engine.staging.budget_bytes = room
        stream.announce("opening")
        tier.pass_until(tier.now + 1)
        here = [c for c in BACK if stream.engine.staging.to_come(stream.session.id, c, TYPES) == 0]
        assert here == [0]
        assert all(not stream.engine.staging.to_come(stream.session.id, c, [None]) for c in BACK)
        stream.engine.staging.check_integrity()


def test_streams_share_one_allowance_between_two_steps() -> None:
    tier = SlowTier(1 << 28)
    host = made(tier)
    streams = [Stream.open(host, "a ball", seed=i) for i in range(3)]
    with passes_take(MODEL, tier, PASS_S):
        for stream in streams:
            stream.take(10)
            stream.cut("kitchen", "a kitchen")
            stream.take(6)
        tier.delay = lambda chunk, kind: None
        begun, allowed = tier.now, host.slack.within_s
        for stream in streams:
            stream.return_to("opening")
        assert tier.now - begun <= allowed + 2 * host.config.restore.least_s + TOLERANCE_S
        host.step([stream.session for stream in streams])
    host.check_integrity()


def test_a_take_that_nobody_waits_for_loads_everything_however_long_it_takes() -> None:
    expected = exactly()
    with away(lambda chunk, kind: 4.0, restore={"share": None}) as (stream, tier):
        assert goes_back(stream, tier) == pytest.approx(4.0)
        assert all(torch.equal(a, c.video) for a, c in zip(expected, stream.take(5), strict=True))
        assert not said(stream)


def test_a_stream_that_waits_for_chunks_can_be_put_away_forked_and_lost() -> None:
    with away(lambda chunk, kind: 1.0, durability="kv") as (stream, tier):
        stream.return_to("opening")
        assert stream.session.manager.waiting == BACK
        saved = stream.snapshot()
        tier.delay = at_once
        others = [Stream.resume(stream.engine, saved), stream.fork()]
        elsewhere = made(tier, durability="kv")
        stream.next()
        others.append(Stream(elsewhere, recover(elsewhere, *left(stream))))
        forget_lost(elsewhere, stream.session.id)
        for other in others:
            other.take(3)
            assert other.session.manager.waiting == []
            assert other.keep_set()["video_self"]["scene_sink"] == [0]
            other.engine.check_integrity()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"share": 1.5}, "share is 1.5; expected a part between 0 and 1, or nothing"),
        ({"patience_s": -1.0}, "patience_s is -1.0; expected seconds, 0 or more"),
        ({"tries": 0}, "tries is 0; expected 1 or more"),
        ({"staging_bytes": -1}, "staging_bytes is -1; expected 0 or more"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RestoreConfig(**wrong)


def test_slack_is_what_a_chunk_plays_longer_than_it_takes_to_make() -> None:
    slack = Slack(RestoreConfig(share=0.5, least_s=0.01), chunk_s=0.64)
    slack.stepped(0.24)
    assert slack.within_s == pytest.approx(0.2)
    slack.use(0.15)
    assert slack.within_s == pytest.approx(0.05)
    slack.use(1.0)
    assert slack.within_s == 0.01
    slack.stepped(1.24)
    assert slack.step_s == pytest.approx(0.44)
    assert slack.within_s == pytest.approx(0.1)


class Follower:
    """Books elsewhere that do the same, by way of bytes."""

    def __init__(self, stream: Stream) -> None:
        manager = stream.session.manager
        self.stream, self.answers = stream, Answers()
        manager.recorder.take()
        config = manager.books.config
        args = ("other", stream.engine.specs, manager.policy, config, self.answers)
        self.manager: CacheManager = load(dump(manager), *args)

    def follow(self) -> None:
        _, operations = self.stream.session.manager.recorder.take()
        for operation in operations:
            plain = unseal(seal("o", 1, [operation.do, operation.arguments, operation.held]), "o", 1)
            apply(self.manager, self.answers, Operation(*plain))
        assert digest(self.manager) == digest(self.stream.session.manager)


@settings(max_examples=examples(12), deadline=None)
@given(data=st.data())
def test_whatever_comes_late_or_never_the_stream_goes_on_whole_and_books_elsewhere_agree(data: st.DataObject) -> None:
    tier = SlowTier(1 << 28)
    host = made(tier, sessions=2)
    stream = Stream.open(host, "a ball", seed=2)
    follower = Follower(stream)
    delays = st.sampled_from([0.0, 0.0, 0.05, 0.3, 0.8, 2.0, None])
    tier.delay = lambda chunk, kind: data.draw(delays)
    scenes, actions = ["opening"], ["step", "step", "leave", "return", "announce", "lose", "pause", "idle"]
    with passes_take(MODEL, tier, PASS_S):
        stream.take(9)
        for _ in range(data.draw(st.integers(5, 14))):
            action = data.draw(st.sampled_from(actions))
            on_air = stream.session.manager.scenes.current_name
            elsewhere = [name for name in stream.scenes if name != on_air]
            poison(host)
            begun, allowed = tier.now, max(host.slack.within_s, host.config.restore.least_s)
            if action == "leave":
                scenes.append(f"scene {len(scenes)}")
                stream.cut(scenes[-1], f"prompt {len(scenes)}")
            elif action == "return" and elsewhere:
                stream.return_to(data.draw(st.sampled_from(elsewhere)))
            elif action == "announce" and elsewhere:
                stream.announce(data.draw(st.sampled_from(elsewhere)))
                assert tier.now == begun, "prefetching waits for nothing"
            elif action == "lose":
                _lose(data, tier, stream)
            elif action == "pause":
                stream = Stream.resume(host, stream.pause())
                follower = Follower(stream)
            elif action == "idle":
                tier.pass_until(tier.now + data.draw(st.sampled_from([0.2, 2.0, 6.0])))
                begun = tier.now
            assert tier.now - begun <= allowed + TOLERANCE_S, "no direction takes longer than a chunk allows"
            for _ in range(data.draw(st.integers(0, 3))):
                begun = tier.now
                chunk = stream.next()
                assert torch.isfinite(chunk.video).all()
                passes = len(host.config.schedule.sigmas) + 1
                spent = tier.now - begun - passes * PASS_S
                assert spent <= 2 * SHARE * CHUNK_S + TOLERANCE_S, "what was waited for before it, and after it"
            host.check_integrity()
            follower.follow()
    stream.close()
    assert not any(host.pool.statistics().held_bytes.values())


def _lose(data: st.DataObject, tier: SlowTier, stream: Stream) -> None:
    for chunk in tier.chunks(stream.session.id):
        what = data.draw(st.sampled_from(["nothing", "nothing", "keys and values", "all"]))
        if what == "all":
            tier.forget(stream.session.id, chunk)
        elif what == "keys and values":
            record = tier.records(stream.session.id)[chunk]
            for t in list(record.key_values):
                tier._release(record.key_values.pop(t))
