"""What listens on a machine's other addresses than loopback, in the words of the table in k8s/README.md."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

TABLE = Path(__file__).parent.parent / "k8s" / "README.md"
OWN = (  # a part of the command line, and what the table calls it
    ("/haproxy ", "HAProxy"),
    ("gcs_server", "GCS"),
    ("raylet/raylet ", "raylet"),
    ("dashboard/agent.py", "agent"),
    ("runtime_env/agent", "agent"),
    ("dashboard/dashboard.py", "dashboard"),
    ("ray-dashboard", "dashboard"),
    ("log_monitor.py", "log monitor"),
    ("_private/monitor.py", "autoscaler"),
    ("autoscaler/", "autoscaler"),
    ("ray.util.client.server", "Ray client"),
    ("ray::", "worker"),
    ("default_worker.py", "worker"),
)


def documented(readme: str) -> dict[str, list[range]]:
    """Ports by who listens there."""
    found: dict[str, list[range]] = {}
    rows = re.findall(r"^\| (\w[\w ]*) \| (any|[\d, –]+) \|", readme[readme.index("## Ports") :], flags=re.MULTILINE)
    for who, ports in rows:
        for part in ports.split(","):
            first, _, last = part.strip().replace("any", "1–65535").partition("–")
            found.setdefault(who, []).append(range(int(first), int(last or first) + 1))
    return found


def listening(processes: Iterable[psutil.Process], usual: Mapping[int, int]) -> set[tuple[str, int]]:
    """Who listens for other machines, and on which port, or the one that a pod has ``usual``ly instead."""
    found = set()
    for process in processes:
        try:
            command = " ".join(process.cmdline()) + " "
            sockets = process.net_connections("inet")
        except psutil.Error:
            continue  # it has just ended
        who = next((name for part, name in OWN if part in command), command)
        for socket in sockets:
            if socket.status == psutil.CONN_LISTEN and not socket.laddr.ip.startswith(("127.", "::1")):
                found.add((who, usual.get(socket.laddr.port, socket.laddr.port)))
    return found
