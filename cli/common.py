"""What the commands share: the application, its version, how an error is shown, and Ctrl-C between two chunks."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from errors import LongtakeError

MODULES = {  # of this package, in the order of the help, with their commands
    "generate": ("generate",),
    "stream": ("stream",),
    "serving": ("serve", "config"),
    "service": ("watch", "ls", "inspect", "stop", "export", "import"),
    "fleet": ("generators", "drain", "move"),
    "planning": ("plan",),
}


class ByName(typer.core.TyperGroup):
    """Imports the module of the command that is asked for: a look at a service need not wait for models' libraries."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands, *(name for names in MODULES.values() for name in names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for module, names in MODULES.items():
            if cmd_name in names:
                import_module(f"cli.{module}")
                return typer.main.get_group(app).commands[cmd_name]
        return self.commands.get(cmd_name)


app = typer.Typer(
    cls=ByName,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def longtake() -> None:
    """Endless audio-video streams: write them to a file, serve them, and watch what the cache remembers."""


@app.command()
def version() -> None:
    """Print the version of the installed package."""
    try:
        typer.echo(f"longtake {metadata.version('longtake')}")
    except metadata.PackageNotFoundError:
        typer.echo("longtake, run from a checkout that is not installed")


def fail(error: LongtakeError, code: int) -> NoReturn:
    """Show ``error`` in one line and leave with ``code``."""
    message = " ".join(str(error).split())
    Console(stderr=True).print(Text(f"error [{error.code}]: {message}", style="red"), soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Ctrl-C is noted in the list that this gives, to be looked at between chunks; a second one is not waited for.

    Afterwards, while what was made is put away, Ctrl-C is ignored by ``undisturbed``.
    """
    pressed: list[int] = []

    def note(number: int, _: object) -> None:
        pressed.append(number)
        signal.signal(number, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C does nothing inside."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
