"""Two stores for one: what is mirrored, what is counted when it is not, and what survives the loss of a node."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors import sites
from actors.mirrored import LOOK_EVERY, REFILL, MirroredTier, MirroredVault
from actors.order import Order
from actors.remote_tier import RemoteTier
from actors.restore_store import RestoreStore
from actors.sites import LaterVault, Sites
from actors.vault import HostVault
from cache.host_tier import HostTier
from cache.keep_set import Role
from cache.spec import TYPES
from cache.tiers import Latents
from errors import NoCapacity, RecordLost, UnknownSession
from streams.durability import published_shelf
from tests.service import run, until
from tests.test_gateway import BALL, RING
from tests.test_movement import seen, watched
from tests.test_restore_store import Line, key_values
from tests.town import Node, gate, town

NAMES, CHUNKS = st.sampled_from(["a", "b", "c"]), st.integers(0, 5)


def latents() -> Latents:
    return Latents(torch.rand(2, 3), torch.rand(1, 3), "p")


class Mirrors(RuleBasedStateMachine):
    """A mirrored tier, told what one of its own is told, while mirrors come, go and begin anew."""

    @initialize()
    def build(self) -> None:
        self.twin, self.mirror = HostTier(1 << 20), Node()
        self.tier = MirroredTier(HostTier(1 << 20))
        self.tier.mirror_to(RemoteTier(self.mirror.call))

    @rule(name=NAMES, chunk=CHUNKS)
    def keep_latents(self, name: str, chunk: int) -> None:
        payload = latents()
        for tier in (self.tier, self.twin):
            tier.keep_latents(name, chunk, payload)

    @rule(name=NAMES, chunk=CHUNKS)
    def offload(self, name: str, chunk: int) -> None:
        payload = key_values(Role.RECENT)
        for tier in (self.tier, self.twin):
            tier.offload(name, chunk, TYPES[0], payload)

    @rule(name=NAMES, chunk=CHUNKS)
    def forget(self, name: str, chunk: int) -> None:
        for tier in (self.tier, self.twin):
            tier.forget(name, chunk)

    @rule(name=NAMES)
    def close(self, name: str) -> None:
        for tier in (self.tier, self.twin):
            tier.close(name)

    @rule(parent=NAMES, child=NAMES, adopts=st.booleans())
    def fork(self, parent: str, child: str, adopts: bool) -> None:
        if self.twin.chunks(child):
            return
        for tier in (self.tier, self.twin):
            (tier.adopt if adopts else tier.fork)(parent, child)

    @rule()
    def the_mirror_is_lost(self) -> None:
        self.mirror.store = None

    @rule()
    def the_mirror_begins_anew(self) -> None:
        self.mirror.store = RestoreStore(1 << 20, 0)

    @rule()
    def another_mirror(self) -> None:
        self.mirror = Node()
        self.tier.mirror_to(RemoteTier(self.mirror.call))

    @rule()
    def steps_go_by_and_the_mirror_has_it_all(self) -> None:
        for _ in range(2 * LOOK_EVERY + 36 // REFILL):
            assert self.tier.landed().result(5)
        if self.mirror.store is not None:
            for name in ("a", "b", "c"):
                mine = {c for c in self.twin.chunks(name) if self.twin.holds(name, c).latents}
                there = self.mirror.store.tier
                assert mine <= {c for c in there.chunks(name) if there.holds(name, c).latents}
                for chunk in mine:
                    assert torch.equal(there.latents(name, chunk).video, self.twin.latents(name, chunk).video)

    @invariant()
    def what_is_read_is_what_a_tier_alone_gives(self) -> None:
        if not hasattr(self, "twin"):
            return
        for name in ("a", "b", "c"):
            assert self.tier.chunks(name) == self.twin.chunks(name)
            for chunk in self.twin.chunks(name):
                held = self.twin.holds(name, chunk)
                assert self.tier.holds(name, chunk).types == held.types
                if held.latents:
                    assert torch.equal(self.tier.latents(name, chunk).video, self.twin.latents(name, chunk).video)


TestMirrors = Mirrors.TestCase
TestMirrors.settings = settings(max_examples=25, stateful_step_count=25)


def test_a_mirror_that_does_not_answer_is_waited_for_once_and_counted_from_then_on() -> None:
    now = [0.0]
    line = Line(RestoreStore(1 << 20, 0))
    tier = MirroredTier(HostTier(1 << 20), patience_s=0.05, clock=lambda: now[0])
    tier.mirror_to(RemoteTier(line.call))
    tier.keep_latents("a", 0, latents())
    assert tier.landed().result(5)
    assert tier.unmirrored == 0
    line.late = True
    tier.keep_latents("a", 1, latents())
    first = tier.landed()
    assert not first.done()
    assert first.result(5)  # booked all the same
    assert tier.unmirrored == 1
    assert tier.landed().done()  # not waited for again
    now[0] = 11.0
    third = tier.landed()
    assert not third.done()
    line.carry_out()
    assert third.result(5)
    assert tier.unmirrored == 2


def test_what_the_own_store_loses_is_said_and_the_mirror_still_has_it() -> None:
    own, mirror = Line(RestoreStore(1 << 20, 0)), Line(RestoreStore(1 << 20, 0))
    tier = MirroredTier(RemoteTier(own.call))
    tier.mirror_to(RemoteTier(mirror.call))
    payload = latents()
    tier.keep_latents("a", 0, payload)
    tier.offload("a", 0, TYPES[0], key_values(Role.RECENT))
    assert tier.landed().result(5)
    own.store = None
    tier.keep_latents("a", 1, latents())
    assert not tier.landed().result(5)
    assert tier.holds("a", 0).latents
    assert not tier.holds("a", 0).types
    assert torch.equal(tier.latents("a", 0).video, payload.video)


def test_without_a_mirror_every_step_is_counted() -> None:
    tier = MirroredTier(HostTier(1 << 20))
    found: Future[bool] = tier.landed()
    assert found.result(0)
    tier.keep_latents("a", 0, latents())
    tier.landed()
    assert tier.unmirrored == 2
    with pytest.raises(RecordLost):
        tier.latents("a", 7)


def test_a_stream_that_is_put_away_is_in_both_vaults_if_the_second_has_room() -> None:
    vault, second = MirroredVault(HostVault(100)), HostVault(10)
    vault.mirror = second
    vault.put("a", b"x" * 8)
    vault.put("b", b"y" * 8)
    assert (second.take("a"), vault.take("b")) == (b"x" * 8, b"y" * 8)
    vault.own = HostVault(0)
    assert vault.take("a") == b"x" * 8
    with pytest.raises(RecordLost):
        vault.take("b")
    vault.drop("a")
    assert not second.statistics()["streams"]
    with pytest.raises(NoCapacity):
        vault.put("c", b"z")


@pytest.mark.parametrize("durability", ["latents", "kv"])
def test_after_a_node_is_lost_a_session_goes_on_from_the_mirror_as_after_the_loss_of_its_generator(
    durability: str,
) -> None:
    async def lost(node: bool) -> Any:
        """The same take, that loses its node, or only its generator; latents from the fail-over on."""
        async with town("latents" if not node else durability, nodes=2, mirror=True) as made:
            made.settle("first")
            made.settle("second", node=1 if node else 0)
            made.directory.drain("second")
            await made.create("a", Order(BALL, seed=5), "")
            await watched(made, "a", 7)
            await still(made, "first")
            made.directory.undrain("second")
            if node:
                await made.lose(0)
            else:
                made.directory.desert("a")
                made.reporting["first"].cancel()
                await die_of(made, "first")
            at = int(made.ledger.service.read("a")[1].state["next_chunk"])
            await made.take_over("a")
            await watched(made, "a", at + 3)
            return at, made.latents["a"]

    async def test() -> None:
        at, through_node = await lost(node=True)
        again, through_generator = await lost(node=False)
        assert at == again
        for chunk in range(at, at + 3):
            assert torch.equal(through_node[chunk], through_generator[chunk]), chunk

    run(test)


async def still(made: Any, name: str) -> None:
    live = made.named[name].sessions["a"]
    await until(lambda: not live.due and not live.in_flight)


async def die_of(made: Any, name: str) -> None:
    from tests.test_takeover import die

    await die(made.named[name])
    made.built.remove(made.named.pop(name))
    made.directory.bury(name)


def test_a_viewer_of_a_lost_node_misses_no_chunk_and_scenes_come_back_from_the_mirror() -> None:
    async def test() -> None:
        async with town("latents", nodes=2, mirror=True) as made, gate(made) as (client, _):
            made.settle("first")
            made.settle("second", node=1)
            made.directory.drain("second")
            session = (await client.create(BALL))["session"]
            made.directory.undrain("second")
            await seen(client, session, 6)
            await client.cut(session, "attic", RING)
            reached = asyncio.Event()
            watching = asyncio.create_task(seen(client, session, 22, {14: reached}))
            await reached.wait()
            await made.lose(0)
            assert await watching == list(range(22))
            await client.return_to(session, "opening")
            await seen(client, session, 8)
            decided = (await client.inspect(session))["decisions"]
            assert any(d["action"] == "restore" for d in decided)

    run(test)


def test_a_paused_session_survives_its_node_and_an_unmirrored_one_does_not_harm_anybody() -> None:
    async def test() -> None:
        for mirror in (True, False):
            async with town("latents", nodes=2, mirror=mirror) as made:
                made.settle("first")
                made.settle("second", node=1)
                made.directory.drain("second")
                await made.create("a", Order(BALL), "")
                await watched(made, "a", 4)
                await made.ask("a", "", "pause")
                made._report("first")
                made.directory.undrain("second")
                await made.lose(0)
                if mirror:
                    await made.ask("a", "", "resume")
                    await watched(made, "a", 8)
                    assert not made.nodes[1].store.statistics()["vault_streams"]  # type: ignore[union-attr]
                else:
                    with pytest.raises((UnknownSession, RecordLost)):
                        await made.named["second"].succession.take_over("nobody")
                await made.create("b", Order(RING), "")
                await watched(made, "b", 3)
                made.named["second"].worker.engine.check_integrity()

    run(test)


def test_a_session_that_ends_leaves_nothing_in_either_store() -> None:
    async def test() -> None:
        async with town("latents", nodes=2, mirror=True) as made:
            made.settle("first")
            await made.create("a", Order(BALL), "")
            await watched(made, "a", 4)
            stores = [node.store for node in made.nodes]
            assert all(store is not None and store.statistics()["records"] for store in stores)
            names = made.named["first"].worker.reels["a"].on.session.id
            assert stores[1] is not None
            assert stores[1].tier.chunks(published_shelf(names))
            await made.ask("a", "", "stop")
            assert [store and store.statistics()["records"] for store in stores] == [0, 0]

    run(test)


def test_a_store_that_ended_and_was_made_anew_under_its_name_is_called_and_not_the_one_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    living = {"restore-store-b": "the first"}

    def get_actor(name: str, namespace: str) -> str:
        if name not in living:
            raise ValueError(name)
        return living[name]

    monkeypatch.setattr(sites, "ray", SimpleNamespace(get_actor=get_actor))
    monkeypatch.setattr(sites, "store_calls", lambda handle: handle)
    monkeypatch.setattr(sites, "RemoteTier", lambda call: ("tier of", call))
    made = Sites.__new__(Sites)
    made._known = {}

    def called() -> list[Any]:
        for site in made.others():
            assert isinstance(site.vault, LaterVault)
            assert site.tier == ("tier of", site.vault.handle)
        return [site.vault.handle for site in made.others() if isinstance(site.vault, LaterVault)]

    made.names = ("restore-store-b",)
    before = made.others()
    assert called() == ["the first"]
    assert made.others()[0] is before[0]  # what it keeps in flight stays one
    made.names = ()  # the generator beside it has gone, and it ends: nobody asks for it meanwhile
    assert called() == []
    living["restore-store-b"] = "the second"
    made.names = ("restore-store-b",)
    assert called() == ["the second"]
