"""Empties the generators of this pod's node before the pod goes; run in its container by the preStop hook.

What has no place elsewhere stays, is named, and is failed over when the pod is gone.
"""

import argparse
import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

URL = "http://127.0.0.1:8000"  # this pod's own proxy, which knows all gateways
STORE = "restore-store"  # what a node's restore store is called, before the node's number: actors.remote.STORE
SHOWN = 12  # digits of the number
FLAG = "--node_id="  # of the raylet


class Operator(Protocol):
    """What is needed of ``client.Client``."""

    async def generators(self) -> list[dict[str, Any]]:
        """Every generator and its restore store."""
        ...

    async def drain(self, generator: str) -> dict[str, Any]:
        """Empty one."""
        ...


async def empty(operator: Operator, node: str, seconds: float) -> dict[str, str]:
    """Drain every generator of a node of Ray, all at once; sessions that stayed, and why.

    Raises:
        TimeoutError: not done within ``seconds``; what was moved until then has moved.
    """
    async with asyncio.timeout(seconds):
        store = f"{STORE}-{node[:SHOWN]}"
        here = [g["generator"] for g in await operator.generators() if g["store"] == store]
        done = await asyncio.gather(*(operator.drain(generator) for generator in here))
        for generator, result in zip(here, done, strict=True):
            print(f"{generator}: {len(result['moved'])} moved, {len(result['parked'])} put away", flush=True)
        return {session: why for result in done for session, why in result["stayed"].items()}


def own_node(proc: Path = Path("/proc")) -> str:
    """The number of this container's Ray node, from its raylet's arguments: the head may be gone already.

    Raises:
        LookupError: there is not exactly one.
    """
    found = set()
    for file in proc.glob("[0-9]*/cmdline"):
        with suppress(OSError):  # a process that has just ended
            arguments = file.read_bytes().decode(errors="replace").split("\0")
            found |= {a.removeprefix(FLAG) for a in arguments if a.startswith(FLAG)}
    if len(found) != 1:
        raise LookupError(f"{len(found)} raylets run here; expected one")
    return found.pop()


async def main(seconds: float) -> int:
    """1 if a session had to stay."""
    from client import Client

    async with Client(URL, os.environ.get("ADMIN_KEY", "")) as operator:
        stayed = await empty(operator, own_node(), seconds)
    for session, why in stayed.items():
        print(f"{session}: stayed: {why}", file=sys.stderr)
    return int(bool(stayed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="how long it may take")
    sys.exit(asyncio.run(main(parser.parse_args().seconds)))
