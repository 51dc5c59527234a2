"""The area in front of a restore store: bounded, never stale, and the same answers as without it."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache.keep_set import Role
from cache.spec import TYPES, AttentionType
from cache.staging import Staging
from cache.tiers import KeyValues, Latents
from cache.way_back import WayBack
from errors import RecordLost
from tests.slow_tier import SlowTier

KIND, SIZE = TYPES[0], 32


def key_values(value: float) -> KeyValues:
    return KeyValues(torch.full((SIZE // 4,), value), 3, Role.SCENE_SINK)


def latents(value: float) -> Latents:
    return Latents(torch.full((SIZE // 8,), value), torch.full((SIZE // 8,), value), "p")


def staging(budget: int = 10 * SIZE, delay: float | None = 1.0) -> tuple[Staging, SlowTier]:
    tier = SlowTier(1 << 20, delay=lambda chunk, kind: delay)
    sizes: dict[AttentionType | None, int] = {**dict.fromkeys(TYPES, SIZE), None: SIZE}
    made = Staging(tier, sizes, budget, 5.0, WayBack(), tier.clock)
    for chunk in range(6):
        made.offload("s", chunk, KIND, key_values(chunk))
        made.keep_latents("s", chunk, latents(chunk))
    return made, tier


def test_what_was_prefetched_is_here_when_it_is_asked_for() -> None:
    made, tier = staging()
    made.prefetch("s", [(1, KIND), (1, None)])
    assert made.to_come("s", 1, [KIND, None]) == 2 * SIZE
    tier.pass_until(1.0)
    assert made.to_come("s", 1, [KIND, None]) == 0
    asked = made.begin_fetch("s", 1, KIND)
    assert asked.done()
    assert asked.result().tensor[0] == 1
    assert not made.begin_fetch("s", 2, KIND).done()
    assert made.statistics().hits == 1
    assert made.statistics().misses == 1


def test_at_the_bound_nothing_more_is_prefetched_and_it_is_counted() -> None:
    made, tier = staging(budget=3 * SIZE)
    made.prefetch("s", [(chunk, KIND) for chunk in range(5)])
    assert made.statistics().bytes_held == 3 * SIZE
    assert made.statistics().refused == 2
    made.expire("s")
    assert made.statistics().bytes_held == 3 * SIZE, "what is on its way cannot be called back"
    tier.pass_until(1.0)
    made.settle()
    assert made.statistics().bytes_held == 0
    assert made.statistics().dropped == 3


@pytest.mark.parametrize("change", ["offload", "forget", "close"])
def test_what_changed_in_the_store_is_not_given_out_as_it_was(change: str) -> None:
    made, tier = staging()
    made.prefetch("s", [(1, KIND)])
    tier.pass_until(1.0)
    if change == "offload":
        made.offload("s", 1, KIND, key_values(100))
    elif change == "forget":
        made.forget("s", 1)
    else:
        made.close("s")
    asked = made.begin_fetch("s", 1, KIND)
    tier.pass_until(2.0)
    if change == "offload":
        assert asked.result().tensor[0] == 100
    else:
        with pytest.raises(RecordLost):
            asked.result()


def test_what_never_comes_is_not_counted_for_ever_and_is_asked_for_anew() -> None:
    made, tier = staging(delay=None)
    made.prefetch("s", [(1, KIND)])
    tier.pass_until(6.0)
    made.settle()
    assert made.statistics().bytes_held == 0
    tier.delay = lambda chunk, kind: 0.0
    assert made.begin_fetch("s", 1, KIND).done()


def test_bandwidth_is_measured_with_what_was_ahead() -> None:
    made, tier = staging(budget=1 << 30)
    made.bytes_of = {**dict.fromkeys(TYPES, 10**8), None: 10**6}
    tier.delay = lambda chunk, kind: 0.1 * (chunk + 1)  # one after the other
    for _ in range(30):
        made.prefetch("s", [(chunk, KIND) for chunk in range(4)])
        assert made.ahead("slow") == 4 * 10**8
        tier.pass_until(tier.now + 1.0)
        made.expire("s")
    made.settle()
    assert made.way_back.statistics().tiers["slow"][1] == pytest.approx(1e9, rel=0.02)


class Area(RuleBasedStateMachine):
    """Whatever happens: what is given out is what the store has, and what nobody asked for is within the budget."""

    @initialize(budget=st.integers(0, 8))
    def build(self, budget: int) -> None:
        self.made, self.tier = staging(budget * SIZE)
        self.version = 100.0

    @rule(chunk=st.integers(0, 5), latent=st.booleans())
    def change(self, chunk: int, latent: bool) -> None:
        self.version += 1
        if latent:
            self.made.keep_latents("s", chunk, latents(self.version))
        else:
            self.made.offload("s", chunk, KIND, key_values(self.version))

    @rule(chunk=st.integers(0, 5))
    def forget(self, chunk: int) -> None:
        self.made.forget("s", chunk)

    @rule(chunks=st.lists(st.integers(0, 5)), delay=st.sampled_from([0.5, 2.0, None]))
    def prefetch(self, chunks: list[int], delay: float | None) -> None:
        self.tier.delay = lambda chunk, kind: delay
        self.made.prefetch("s", [(chunk, kind) for chunk in chunks for kind in (None, KIND)])

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.tier.pass_until(self.tier.now + seconds)

    @rule()
    def expire(self) -> None:
        self.made.expire("s")

    @rule(chunk=st.integers(0, 5))
    def ask(self, chunk: int) -> None:
        self.tier.delay = lambda chunk, kind: 0.5
        asked = self.made.begin_fetch("s", chunk, KIND)
        self.tier.wait([asked], 5.0)
        held = self.tier.holds("s", chunk).types
        if asked.done() and asked.exception() is None:
            assert asked.result() is self.tier.fetch("s", chunk, KIND)
        else:
            assert not asked.done() or not held
        self.made.release("s", chunk)

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "made"):
            self.made.check_integrity()


TestArea = Area.TestCase
TestArea.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
