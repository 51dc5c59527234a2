"""Sessions out of the service as files and in again, over real HTTP: equal to a fork, owned, bounded, and safe."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from actors.freight import PIECE, Freight
from actors.generator import Generator
from actors.limits import Limits
from actors.order import Order
from actors.pace import Pace
from client import Client
from errors import BadMessage, NoCapacity, ServiceError, SessionOver, SnapshotCorrupt, SnapshotMismatch, UnknownSession
from streams.director import Script, Shot
from streams.takefile import Take
from tests.service import generator, run, served, until
from tests.test_gateway import BALL, KEY, OTHER, RING
from tests.test_generator import of, take
from tests.test_takeover import house


async def still(made: Generator, session: str) -> int:
    """Wait until a session is at its lead; its next chunk."""
    live = made.sessions[session]
    await until(lambda: not live.due and not live.in_flight)
    return live.made


def test_an_imported_session_makes_the_latents_of_a_fork_and_the_exported_one_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with house("latents", sessions=3) as shared:
            first, second = shared.generator(), shared.generator()
            await first.create("a", Order(BALL, seed=4))
            await take(first, "a", 6)
            at = await still(first, "a")
            found = await first.carriage.export("a", 1 << 30)
            pieces = [await first.carriage.piece("a", found["ticket"], i) for i in range(0, found["bytes"], PIECE)]
            await first.fork("a", "fork")
            made = await second.carriage.bring("b", "me", found["bytes"], some(pieces))
            assert made["next_chunk"] == at
            for one, session, owner in ((first, "fork", ""), (second, "b", "me"), (first, "a", "")):
                assert of(await watched(one, session, owner, at - 1, 8), "chunk")[0]["index"] == at
            for chunk in range(at, at + 8):
                assert torch.equal(shared.latents["b"][chunk], shared.latents["fork"][chunk]), chunk
                assert torch.equal(shared.latents["b"][chunk], shared.latents["a"][chunk]), chunk

    run(test)


async def some(pieces: list[bytes]) -> Any:
    for piece in pieces:
        yield piece


async def watched(made: Generator, session: str, owner: str, after: int, chunks: int) -> list[Any]:
    seen = []
    async for message in made.watch(session, owner, "me", after, 2, False):
        seen.append(message)
        if message["type"] == "chunk":
            await made.acknowledge(session, "me", message["index"], 2)
            if len(of(seen, "chunk")) == chunks:
                break
    return seen


def test_a_script_goes_on_from_a_file_where_it_was() -> None:
    script = Script((Shot(2.6, "lab", BALL), Shot(2.6, "attic", RING), Shot(1.3, return_to="lab")))

    async def test() -> None:
        async with generator(Pace(lead=2)) as made:
            await made.create("a", Order(script=script))
            await take(made, "a", 5)
            at = await still(made, "a")
            found = await made.carriage.export("a", 1 << 30)
            data = b"".join(
                [await made.carriage.piece("a", found["ticket"], i) for i in range(0, found["bytes"], PIECE)]
            )
            await made.carriage.bring("b", "", len(data), some([data]))
            scenes = [m["scene"] for m in of(await watched(made, "b", "", at - 1, 10 - at), "chunk")]
            assert scenes == (["lab"] * 4 + ["attic"] * 4 + ["lab"] * 2)[at:]
            await until(lambda: made.sessions["b"].state == "finished")
            with pytest.raises(SessionOver):
                await made.carriage.export("b", 1 << 30)

    run(test)


def test_over_http_a_session_is_exported_running_or_paused_and_imported_by_another_key(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            served(Limits(keys=(KEY, OTHER)), key=KEY) as (made, client, url),
            Client(url, OTHER) as other,
        ):
            session = (await client.create(BALL))["session"]
            await watched(made, session, made.sessions[session].owner, -1, 5)
            at = await still(made, session)
            with pytest.raises(UnknownSession):
                await other.export(session, tmp_path / "stolen")
            assert not list(tmp_path.iterdir())
            size = await client.export(session, tmp_path / "running")
            assert size == (tmp_path / "running").stat().st_size > PIECE
            await client.pause(session)
            await client.export(session, tmp_path / "paused")
            owner = made.sessions[session].owner.encode()
            for name in ("running", "paused"):
                assert owner not in (tmp_path / name).read_bytes()
                made_of_it = await other.import_take(tmp_path / name)
                assert made_of_it["next_chunk"] == at
                assert [s["session"] for s in await other.sessions()] == [made_of_it["session"]]
                with pytest.raises(UnknownSession):
                    await client.inspect(made_of_it["session"])
                assert [s["name"] for s in (await other.inspect(made_of_it["session"]))["scenes"]] == ["opening"]
                assert (await other.cut(made_of_it["session"], "attic", RING))["from"] >= at
                await other.stop(made_of_it["session"])

    run(test)


def test_rubbish_is_refused_with_a_clear_problem_and_nothing_is_changed(tmp_path: Path) -> None:
    async def test() -> None:
        async with served() as (made, client, url):
            session = (await client.create(BALL))["session"]
            await client.pause(session)
            file, bad = tmp_path / "take", tmp_path / "bad"
            await client.export(session, file)
            await client.stop(session)
            data = file.read_bytes()
            flipped = data[:-1000] + bytes([data[-1000] ^ 4]) + data[-999:]
            foreign = Take("other", Take.parse(data).snapshot).pack()
            for lie, kind, words in (
                (b"", SnapshotCorrupt, "do not begin with LONGTAKE"),
                (b"rubbish" * 1000, SnapshotCorrupt, "do not begin with LONGTAKE"),
                (data[:-1], SnapshotCorrupt, "cut or appended"),
                (flipped, SnapshotCorrupt, "checksum"),
                (foreign, SnapshotMismatch, "of model other"),
            ):
                bad.write_bytes(lie)
                with pytest.raises(kind, match=words):
                    await client.import_take(bad)
                assert not made.sessions
                assert not made.worker.engine.sessions
                assert not made.carriage.incoming._files
            async with httpx.AsyncClient(base_url=url) as http:
                answer = await http.post("/v1/imports", content=foreign)
                assert (answer.status_code, answer.json()["code"]) == (422, "snapshot_mismatch")
                schema = (await http.get("/openapi.json")).json()["paths"]
                assert "application/vnd.longtake.take" in str(schema["/v1/imports"]["post"]["requestBody"])
                assert "application/vnd.longtake.take" in str(schema["/v1/sessions/{session}/export"]["get"])

    run(test)


def test_sizes_places_and_creations_are_limited_both_ways(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(sessions=1) as (made, client, _):
            session = (await client.create(BALL))["session"]
            await client.export(session, tmp_path / "take")
            with pytest.raises(NoCapacity):
                await client.import_take(tmp_path / "take")
            assert set(made.sessions) == {session}
        async with served(Limits(take_bytes=100_000, creations=1)) as (made, client, _):
            with pytest.raises(BadMessage, match="expected at most 100,000"):
                await client.import_take(tmp_path / "take")
            session = (await client.create(BALL))["session"]
            with pytest.raises(BadMessage, match="expected at most 100,000"):
                await client.export(session, tmp_path / "large")
            assert not (tmp_path / "large").exists()
            (tmp_path / "small").write_bytes(b"small")
            with pytest.raises(NoCapacity, match="too many sessions created"):
                await client.import_take(tmp_path / "small")

    run(test)


def test_a_download_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    async def test() -> None:
        async with served() as (made, client, _):
            session = (await client.create(BALL))["session"]
            await watched(made, session, "", -1, 4)
            piece = made.carriage.outgoing.piece

            def once(ticket: str, offset: int) -> bytes:
                if offset:
                    made.carriage.outgoing.drop(ticket)
                return piece(ticket, offset)

            made.carriage.outgoing.piece = once  # type: ignore[method-assign]
            with pytest.raises(ServiceError, match="broke off"):
                await client.export(session, tmp_path / "take")
            assert not list(tmp_path.iterdir())
            assert (await client.inspect(session))["state"] == "running"

    run(test)


def test_the_command_exports_and_imports(tmp_path: Path) -> None:
    async def cli(*arguments: object) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli", *map(str, arguments), stdout=-1, stderr=-2
        )
        told = (await process.communicate())[0].decode()
        return process.returncode or 0, told

    async def test() -> None:
        async with served() as (made, client, url):
            session = (await client.create(BALL))["session"]
            file = tmp_path / "take"
            code, told = await cli("export", session, file, "--url", url)
            assert (code, f"{file.stat().st_size:,} bytes" in told) == (0, True), told
            code, told = await cli("export", session, file, "--url", url)
            assert (code, "--overwrite" in told) == (2, True), told
            code, told = await cli("import", file, "--url", url)
            assert (code, "goes on from chunk" in told) == (0, True), told
            assert len(made.sessions) == 2
            code, told = await cli("import", tmp_path / "nothing", "--url", url)
            assert (code, "cannot be read" in told) == (1, True), told

    run(test)


def test_freight_has_room_for_so_many_files_and_gives_up_those_that_nobody_asks_for() -> None:
    now = [0.0]
    freight = Freight(most=1, patience_s=5.0, clock=lambda: now[0])
    ticket = freight.reserve()
    freight.put(ticket, b"x" * (PIECE + 1))
    with pytest.raises(NoCapacity):
        freight.reserve()
    with pytest.raises(BadMessage, match="expected one of the"):
        freight.piece(ticket, -1)
    now[0] = 4.0
    assert len(freight.piece(ticket, 0)) == PIECE
    now[0] = 8.0
    assert freight.piece(ticket, PIECE) == b"x"
    with pytest.raises(BadMessage, match="begin anew"):
        freight.piece(ticket, 0)
    coming = freight.reserve()
    freight.expect(coming, 3)
    with pytest.raises(BadMessage, match="expected the next"):
        freight.add(coming, 1, b"a")
    with pytest.raises(BadMessage, match="expected the next"):
        freight.add(coming, 0, b"four")
    freight.add(coming, 0, b"ab")
    now[0] = 14.0
    other = freight.reserve()
    with pytest.raises(BadMessage, match="begin anew"):
        freight.add(coming, 2, b"c")
    freight.expect(other, 2)
    freight.add(other, 0, b"a")
    with pytest.raises(BadMessage, match="expected 2"):
        freight.whole(other)
