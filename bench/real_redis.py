"""A real Redis server that answers on a Unix socket alone, and can be killed and begun again where it was."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

START_S = 20.0


class RealRedis:
    """``redis-server`` in a folder of its own; every write is on the disk before it is answered (``fsync``)."""

    def __init__(self, folder: Path, fsync: str = "always") -> None:
        self.folder, self.fsync = folder, fsync
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, and wait until it answers."""
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
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
def real_redis(folder: Path, fsync: str = "always") -> Iterator[RealRedis]:
    """A server that has ended when this ends. ``folder`` must have a short path: sockets have at most 107 bytes."""
    made = RealRedis(folder, fsync)
    made.start()
    try:
        yield made
    finally:
        made.kill()
