"""A real Redis server on a Unix socket, perhaps on a port of loopback too, that can be killed and begun again."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

START_S = 20.0


class RealRedis:
    """``redis-server`` in a folder of its own; every write is on the disk before it is answered (``fsync``).

    ``port``: on loopback, for those who know ``password``; 0 for none.
    """

    def __init__(self, folder: Path, fsync: str = "always", port: int = 0, password: str = "") -> None:
        self.folder, self.fsync, self.port, self.password = folder, fsync, port, password
        self.socket = folder / "redis.sock"
        self.url = f"unix://:{password}@{self.socket}" if password else f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        command += ["--dir", str(self.folder), *(("--requirepass", self.password) if self.password else ())]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", self.fsync, "--loglevel", "warning"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + START_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise
                time.sleep(0.01)

    def client(self) -> redis.Redis:
        """Somebody who looks into it."""
        return redis.Redis.from_url(self.url)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def found() -> bool:
    """Whether this machine has a Redis server."""
    return shutil.which("redis-server") is not None


@contextmanager
def real_redis(folder: Path, fsync: str = "always", port: int = 0, password: str = "") -> Iterator[RealRedis]:
    """A server that has ended when this ends. ``folder`` must have a short path: sockets have at most 107 bytes."""
    made = RealRedis(folder, fsync, port, password)
    made.start()
    try:
        yield made
    finally:
        made.kill()
