"""What talks to a service: ``longtake watch``, ``ls``, ``inspect``, ``stop``, ``export``, ``import``.

Nothing here is imported that takes long: these are typed to look at something.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.common import app, fail
from client import Client
from errors import ConfigError, LongtakeError, MediaError
from media.output import open_output

URL, KEY = "http://127.0.0.1:8000", "LONGTAKE_KEY"
Url = Annotated[str, typer.Option(help="Where the service is.")]
Key = Annotated[str, typer.Option(envvar=KEY, help="The API key, if the service wants one.")]


@app.command()
def watch(
    session: Annotated[str, typer.Argument(help="Name of a session; default: a new one with --prompt.")] = "",
    prompt: Annotated[str, typer.Option(help="Begin a session that shows this.")] = "",
    script: Annotated[Path | None, typer.Option(help="Begin a session with these scenes, YAML.")] = None,
    out: Annotated[Path, typer.Option(help="The MP4 to write; it plays while it grows.")] = Path("watched.mp4"),
    chunks: Annotated[int, typer.Option(help="Stop after so many chunks; default: when the take ends.")] = 0,
    url: Url = URL,
    key: Key = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
) -> None:
    """Write what a session shows to a file. A connection that is lost is renewed, without a gap."""
    if (bool(session) + bool(prompt) + (script is not None)) != 1:
        fail(ConfigError("expected either the name of a session, --prompt or --script"), 2)

    async def work(client: Client) -> None:
        name = session or (await client.create(prompt, _scenes(script)))["session"]
        console = Console()
        seen = 0
        with open_output(out, overwrite) as file:
            async with client.watch(name) as messages:
                async for message in messages:
                    if message["type"] == "init" and not seen:
                        file.write(message["data"])
                    elif message["type"] == "chunk":
                        file.write(message["data"])
                        seen += 1
                        if seen == chunks:
                            break
                    elif message["type"] in ("state", "end"):
                        console.print(f"{name}: {message['state']}: {message['reason']}", markup=False, soft_wrap=True)
        console.print(f"{out}: {seen} chunks of {name}", markup=False, highlight=False, soft_wrap=True)

    talk(url, key, work)


def _scenes(script: Path | None) -> list[dict[str, Any]]:
    if script is None:
        return []
    from settings import read_shots  # takes a second

    shots = read_shots(script).scenes
    return [
        {"duration": s.duration, "name": s.name, "prompt": s.prompt, "subject": s.subject, "return_to": s.return_to}
        for s in shots
    ]


@app.command("ls")
def list_sessions(url: Url = URL, key: Key = "") -> None:
    """List your sessions."""

    async def work(client: Client) -> None:
        table = Table("session", "state", "chunk", "media", "viewers", "deadlines missed")
        for s in await client.sessions():
            media = f"{s['next_chunk'] * s['chunk_seconds']:.0f} s"
            table.add_row(s["session"], s["state"], str(s["next_chunk"]), media, str(s["viewers"]), str(s["misses"]))
        Console().print(table)

    talk(url, key, work)


@app.command()
def inspect(
    session: Annotated[str, typer.Argument(help="Name of a session.")],
    url: Url = URL,
    key: Key = "",
    plain: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """Show what a session's cache remembers."""

    async def work(client: Client) -> None:
        books = await client.inspect(session)
        console = Console()
        if plain:
            console.print_json(json.dumps(books))
            return
        table = Table("", *(role.replace("_", " ") for role in _roles(books)), "bytes")
        for kind, roles in books["keep_set"].items():
            cells = (" ".join(map(str, roles.get(role, []))) for role in _roles(books))
            table.add_row(kind, *cells, f"{books['bytes'][kind]:,}")
        head = f"{session}: {books['state']}, chunk {books['next_chunk']}, scene {books['scene']}, rung {books['rung']}"
        console.print(head, markup=False)
        console.print(table)

    talk(url, key, work)


def _roles(books: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(role for roles in books["keep_set"].values() for role in roles))


@app.command()
def stop(session: Annotated[str, typer.Argument(help="Name of a session.")], url: Url = URL, key: Key = "") -> None:
    """End a session and release all that it holds."""

    async def work(client: Client) -> None:
        receipt = await client.stop(session)
        Console().print(f"{session}: stopped before chunk {receipt['from']}", markup=False)

    talk(url, key, work)


@app.command("export")
def export_session(
    session: Annotated[str, typer.Argument(help="Name of a session.")],
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    url: Url = URL,
    key: Key = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Write a session to a file, from which another goes on; the session goes on too."""
    if file.exists() and not overwrite:
        fail(ConfigError(f"{file} exists; expected another name, or --overwrite"), 2)

    async def work(client: Client) -> None:
        try:
            size = await client.export(session, file)
        except OSError as error:
            raise MediaError(f"{file} cannot be written: {error}") from error
        Console().print(f"{file}: {session}, {size:,} bytes", markup=False, highlight=False, soft_wrap=True)

    talk(url, key, work)


@app.command("import")
def import_session(
    file: Annotated[Path, typer.Argument(help="A file that `longtake export` wrote.")], url: Url = URL, key: Key = ""
) -> None:
    """Begin a session that goes on from a file, as a fork of the one that was exported."""

    async def work(client: Client) -> None:
        try:
            made = await client.import_take(file)
        except OSError as error:
            raise MediaError(f"{file} cannot be read: {error}") from error
        told = f"{made['session']}: goes on from chunk {made['next_chunk']}"
        Console().print(told, markup=False, highlight=False, soft_wrap=True)

    talk(url, key, work)


def talk(url: str, key: str, work: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Do something with a client; errors are shown, and end the command."""

    async def talk() -> None:
        async with Client(url, key) as client:
            await work(client)

    try:
        asyncio.run(talk())
    except ConfigError as error:
        fail(error, 2)
    except LongtakeError as error:
        fail(error, 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
