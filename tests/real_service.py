"""The service on a Ray cluster of its own, in a process of its own: Serve chooses its data plane when it is imported.

Run as a module it serves until its input ends, and answers every line with what the cluster holds.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil

from tests.service import QUICK

PLANES: dict[str, dict[str, str]] = {
    "proxy": {},
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}

KEPT = {
    "sessions",
    "bytes_held",
    "records",
    "vault_bytes_held",
    "vault_streams",
}  # of all that stores and ledgers count


class RealService:
    """What a test sees of it: its address, its processes, and what the cluster holds."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url

    def books(self) -> dict[str, Any]:
        """Names of all ``actors``, ``places`` by generator, and what stores and ledgers have ``kept``."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self.said()

    def said(self) -> dict[str, Any]:
        """The next line of the service."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError(f"the service ended with {self.process.wait()}")

    def processes(self) -> list[psutil.Process]:
        """All that work for the service now; workers without work come and go as Ray likes."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in found if "IDLE" not in p.name()]


@contextmanager
def real_service(plane: str, settings: Mapping[str, str]) -> Iterator[RealService]:
    """The application with these ``settings``, on one of ``PLANES``."""
    port, metrics, statistics = free_ports(3)
    environ = {
        **os.environ,
        **QUICK,
        **PLANES[plane],
        **settings,
        # Freed memory goes back at once: what is left is held, not merely kept by the allocator for later.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
    command = [sys.executable, "-m", "tests.real_service", str(port)]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        service = RealService(process, f"http://127.0.0.1:{port}")
        service.said()
        try:
            yield service
        finally:
            process.communicate(timeout=100)
    assert process.returncode == 0


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def main(port: int) -> None:
    """Serve until the input ends."""
    import ray
    from ray import serve
    from ray.util import list_named_actors

    from actors.remote import DIRECTORY, LEDGER, NAMESPACE, STORE
    from serve_app import NAME, application
    from settings import load

    def books() -> dict[str, Any]:
        actors = sorted(actor["name"] for actor in list_named_actors(all_namespaces=True))
        places: Any = ray.get(ray.get_actor(DIRECTORY, NAMESPACE).places.remote())
        held = {
            name: ray.get(ray.get_actor(name, NAMESPACE).statistics.remote())
            for name in actors
            if name.startswith((STORE, LEDGER))
        }
        kept = {f"{name} {key}": n for name, found in held.items() for key, n in found.items() if key in KEPT}
        return {"actors": actors, "places": places, "kept": kept}

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(load()), name=NAME)
        print(json.dumps(books()), flush=True)  # Serve does not wait for stores and ledgers, which this asks
        for _ in sys.stdin:
            print(json.dumps(books()), flush=True)
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
