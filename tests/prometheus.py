"""A real Prometheus on a port and in a folder of its own, that scrapes what a test runs every few seconds."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from monitoring.prometheus import Prometheus
from tests.real_service import free_ports

EVERY_S = 3  # an agent on a busy machine takes more than a second to answer
RULES = Path(__file__).parent.parent / "k8s" / "monitoring" / "rules.yaml"


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Prometheus with our alerts, until the block ends; ``targets``: ``host:port`` of Ray's agents."""
    (port,) = free_ports(1)
    config = {
        "global": {
            "scrape_interval": f"{EVERY_S}s",
            "scrape_timeout": f"{EVERY_S}s",
            "evaluation_interval": f"{EVERY_S}s",
        },
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": list(targets)}]}],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log, stdout=log) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _ready(url, process)
            with httpx.Client(base_url=url, timeout=30) as http:
                yield Prometheus(http)
        finally:
            process.terminate()


def _ready(url: str, process: "subprocess.Popen[bytes]", seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, "Prometheus has ended; see its log"
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"Prometheus is not ready after {seconds:g} s")
