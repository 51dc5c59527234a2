"""``longtake generators``, ``drain`` and ``move``: for whoever runs the service."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.common import app
from cli.service import URL, Key, Url, talk
from client import Client


@app.command()
def generators(url: Url = URL, key: Key = "") -> None:
    """List the generators."""

    async def work(client: Client) -> None:
        table = Table("generator", "places taken", "sessions", "restore store", "")
        for g in await client.generators():
            drained = "drained" if g["draining"] else ""
            table.add_row(g["generator"], f"{g['taken']} of {g['capacity']}", str(g["sessions"]), g["store"], drained)
        Console().print(table)

    talk(url, key, work)


@app.command()
def drain(
    generator: Annotated[str, typer.Argument(help="Name of a generator, as `longtake generators` lists them.")],
    url: Url = URL,
    key: Key = "",
    undo: Annotated[bool, typer.Option("--undo", help="Place sessions there again instead.")] = False,
) -> None:
    """Empty a generator before it is taken away: its sessions go on in others, watched or not.

    Leaves with 1 if some had to stay.
    """

    async def work(client: Client) -> None:
        console = Console(highlight=False, soft_wrap=True)
        if undo:
            await client.undrain(generator)
            console.print(f"{generator}: takes sessions again", markup=False)
            return
        done = await client.drain(generator)
        for session, where in done["moved"].items():
            console.print(f"{session}: goes on in {where}", markup=False)
        for session, where in done["parked"].items():
            console.print(f"{session}: is put away at {where}", markup=False)
        for session in done["ending"]:
            console.print(f"{session}: is over, and waits for its viewers", markup=False)
        for session, reason in done["stayed"].items():
            console.print(f"{session}: STAYED: {reason}", markup=False)
        if done["stayed"]:
            raise typer.Exit(1)

    talk(url, key, work)


@app.command()
def move(
    session: Annotated[str, typer.Argument(help="Name of a session.")],
    to: Annotated[str, typer.Option(help="Generator; default: where most places are free.")] = "",
    url: Url = URL,
    key: Key = "",
) -> None:
    """Have another generator go on with a session; its viewers go on by themselves."""

    async def work(client: Client) -> None:
        done = await client.move(session, to)
        Console(highlight=False, soft_wrap=True).print(f"{session}: goes on in {done['to']}", markup=False)

    talk(url, key, work)
