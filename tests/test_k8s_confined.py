"""The service runs as its containers do: as nobody, without capabilities, on a read-only root file system."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from client import Client
from errors import ServiceError
from tests.manifests import K8S, ROOT
from tests.real_service import PLANES, free_ports
from tests.service import QUICK

MAY = os.geteuid() == 0 and all(shutil.which(name) for name in ("unshare", "setpriv"))

pytestmark = pytest.mark.nodes


def confined(folder: Path, *command: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a command the way ``confined.sh`` says; see ``ended``."""
    if not MAY or subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False).returncode != 0:
        pytest.skip("only root, with unshare and setpriv, may make the confinement of a container here")
    (folder / "root").mkdir()
    script = str(ROOT / "tests" / "confined.sh")
    shell = ["unshare", "--mount", "--pid", "--fork", "bash", script]
    return subprocess.Popen(
        [*shell, str(folder / "root"), str(ROOT), sys.prefix, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def ended(process: "subprocess.Popen[str]") -> None:
    """Kill the first process of the confinement, and with it all others there; a change of user outlives its parent."""
    for first in psutil.Process(process.pid).children():
        first.kill()
    process.wait()


def test_the_confinement_holds(tmp_path: Path) -> None:
    own = "id -u; grep CapEff /proc/self/status"
    tries = "for f in /opt/longtake/x /usr/x /etc/x /x; do touch $f && echo wrote; done"
    said, _ = confined(tmp_path, "bash", "-c", f"{own}; {tries}; touch /tmp/x $HOME/x && echo volumes").communicate(
        timeout=30
    )
    lines = said.splitlines()
    assert lines[:2] == ["10001", "CapEff:\t0000000000000000"]
    assert said.count("Read-only file system") == 4
    assert "wrote" not in said
    assert lines[-1] == "volumes"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """The address of a service with HAProxy and the settings of cpu-demo, but for what needs the other pods."""
    settings = yaml.safe_load((K8S / "overlays" / "cpu-demo" / "settings.yaml").read_text())
    own = settings["service"]
    for name in [name for name in own if name.endswith("_resources")]:
        del own[name]
    own |= {"gateways": 1, "generators": 1, "segmenters": 1, "mirror": "none", "journal": {"kind": "file"}}
    own["restore"]["disk"] = "/tmp/restore"
    port, metrics, statistics = free_ports(3)
    variables = {
        **QUICK,
        **PLANES["haproxy"],
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "STORE_KEY": "0f" * 32,
    }
    start = " ".join(
        [
            f"cat > /tmp/settings.yaml && exec env {' '.join(f'{k}={v!r}' for k, v in variables.items())}",
            f"longtake serve --config /tmp/settings.yaml --port {port}",
        ]
    )
    process = confined(tmp_path, "bash", "-c", start, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[str] = []
    ready = threading.Event()

    def listen(lines: Any) -> None:
        for line in lines:
            said.append(line)
            if "in a browser" in line:
                ready.set()
        ready.set()

    process.stdin.write(yaml.safe_dump(settings))
    process.stdin.close()
    listener = threading.Thread(target=listen, args=(process.stdout,))
    listener.start()
    try:
        assert ready.wait(240)
        assert process.poll() is None, "".join(said)
        yield f"http://127.0.0.1:{port}"
    finally:
        ended(process)
        listener.join()
        process.stdout.close()


async def begun(client: Client) -> str:
    """A session, once all actors have begun."""
    async with asyncio.timeout(150):
        while True:
            with suppress(ServiceError):
                return str((await client.create("a red ball bouncing in a blue room", []))["session"])
            await asyncio.sleep(0.5)


@pytest.mark.timeout(500)
def test_a_take_is_made_and_watched_without_rights(service: str) -> None:
    async def watch() -> list[int]:
        async with Client(service) as client:
            session = await begun(client)
            seen = []
            async with client.watch(session) as messages:
                async for message in messages:
                    if message["type"] == "chunk":
                        seen.append(message["index"])
                        if len(seen) == 3:
                            return seen
        raise AssertionError("the watch ended")

    assert asyncio.run(watch()) == [0, 1, 2]
