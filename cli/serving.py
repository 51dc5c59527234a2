"""``longtake serve``, and ``longtake config`` for a Ray cluster that runs."""

from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from cli.common import app, fail
from errors import LongtakeError
from settings import load, plain_settings


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="Settings, YAML.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
) -> None:
    """Serve streams with Ray Serve until Ctrl-C; joins a running Ray cluster if there is one."""
    try:
        settings = load(config)
    except LongtakeError as error:
        fail(error, 2)
    from serve_app import run  # Ray takes a second to import, which no other command should wait for

    console = Console()
    console.print("starting Ray, the generators and the gateway …")
    run(settings, host, port, lambda: console.print(f"open http://{host}:{port}/ in a browser; Ctrl-C ends it"))


@app.command("config")
def serve_config(
    config: Annotated[Path | None, typer.Option(help="Settings, YAML; they are written into the result.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
) -> None:
    """Print what `serve deploy` takes, for a Ray cluster that runs: longtake config --config my.yaml > serve.yaml."""
    try:
        settings = None if config is None else plain_settings(config)
        from serve_app import deploy_config

        typer.echo(yaml.safe_dump(deploy_config(settings, host, port), sort_keys=False), nl=False)
    except LongtakeError as error:
        fail(error, 2)
