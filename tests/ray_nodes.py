"""Ray nodes of this machine, begun as KubeRay begins a RayService's pods: ``ray start`` and what a manifest says.

Each is a process with all that it begets, on loopback, and is lost by killing these. Where a manifest has a pod's
address, a Secret or a volume, a node has the loopback address, a given value, a folder.
"""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

HOST = "127.0.0.1"
POOL = (
    100_000_000  # bytes of a node's object store: Ray's least is 75 MB, and a manifest's would not fit a small machine
)
LOGIN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-and-no-secret"}
HURRY = {  # a node or a server that has gone is noticed within seconds
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
    "RAY_enable_metrics_collection": "0",
    "RAY_raylet_start_wait_time_s": "120",  # on a busy machine
}
# PR_SET_PDEATHSIG: Ray ends all that it began on SIGTERM, should whoever tests be killed.
ENDS_WITH_US = [
    sys.executable,
    "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])",
]
Manifest = Mapping[str, Any]


def quiet_ports(count: int) -> list[int]:
    """Ports that nobody uses, and that the kernel and Ray give to nobody: a head must find its own free again."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server((HOST, port)):
            found.append(port)
    return found


@dataclass
class Node:
    """One ``ray start --block``, with everything that it begot."""

    process: "subprocess.Popen[bytes]"
    own: list[int]

    @property
    def port(self) -> int:
        """Its proxy's."""
        return self.own[0]

    @property
    def number(self) -> str:
        """The node's number, as Ray has it; nothing until it has one."""
        lines = [line for one in self.family() if one.name() == "raylet" for line in one.cmdline()]
        return next((line.partition("=")[2] for line in lines if line.startswith("--node_id=")), "")

    def family(self) -> list[psutil.Process]:
        """All its processes."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def kill(self) -> None:
        """End all of its processes between any two instructions."""
        everybody = self.family()
        for one in everybody:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(everybody, timeout=20)
        self.process.wait()


@dataclass
class Nodes:
    """A cluster of one RayService: a head without CPUs, and workers that each stand for a pod of every group.

    Args:
        service: the manifest's ``spec``.
        folder: with a short path; what must outlive the head is there.
        environ: for what the manifest takes from Secrets and volumes.
        head_environ: what the operator gives the head alone; ``head_parameters``: adds to its ``rayStartParams``.
    """

    service: Manifest
    folder: Path
    environ: Mapping[str, str]
    head_environ: Mapping[str, str] = field(default_factory=dict)
    head_parameters: Mapping[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: quiet_ports(3))
    head: Node | None = None
    workers: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where Ray is."""
        return f"{HOST}:{self.ports[0]}"

    @property
    def dashboard(self) -> str:
        """The dashboard and its REST API, by which applications are deployed."""
        return f"http://{HOST}:{self.ports[1]}"

    def begin_head(self) -> None:
        """The head, new or after a loss: where the stored state is, it goes on from that."""
        known = self.folder / "ray" / "ray_current_cluster"  # a new pod has none, and Ray would not begin beside it
        known.unlink(missing_ok=True)
        group = self.service["rayClusterConfig"]["headGroupSpec"]
        options = ["--head", f"--port={self.ports[0]}", f"--dashboard-port={self.ports[1]}"]
        options += [f"--ray-client-server-port={self.ports[2]}", f"--temp-dir={self.folder / 'ray'}"]
        parameters = {**group["rayStartParams"], **self.head_parameters, "dashboard-host": HOST}
        own = self.head.own if self.head else quiet_ports(4)
        self.head = self._begin(group["template"], parameters, options, own, self.head_environ)

    def begin_worker(self) -> None:
        """A node with the resources of one pod of each worker group."""
        groups = self.service["rayClusterConfig"]["workerGroupSpecs"]
        cpus, resources = 0.0, dict[str, float]()
        for group in groups:
            for name, amount in group.get("resources", {}).items():
                if name == "CPU":
                    cpus += float(amount)
                else:
                    resources[name] = resources.get(name, 0.0) + float(amount)
        options = [f"--address={self.address}", f"--num-cpus={cpus:g}", f"--resources={json.dumps(resources)}"]
        parameters = groups[-1]["rayStartParams"]
        self.workers.append(self._begin(groups[-1]["template"], parameters, options, quiet_ports(4)))

    def serve_deploy(self, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        """``serve deploy`` with what the manifest says, perhaps with a change."""
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self._config(change)))
        command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(file), "--address", self.dashboard]
        environ = {**os.environ, **LOGIN}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy(self, change: Callable[[dict[str, Any]], None]) -> None:
        """The same by the REST API of the head, as KubeRay does it."""
        self._asked("put", self._config(change))

    def _config(self, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self.service["serveConfigV2"])
        assert self.head is not None
        config["http_options"] |= {"host": HOST, "port": self.head.port}
        change(config)
        return config

    def running(self) -> bool:
        """Whether the application and all its deployments are as they were asked to be."""
        applications = self.details().get("applications", {})
        return bool(applications) and all(
            application["status"] == "RUNNING"
            and all(d["status"] == "HEALTHY" for d in application["deployments"].values())
            for application in applications.values()
        )

    def replicas(self, deployment: str) -> set[str]:
        """Names of the replicas that run."""
        found = self.details()["applications"]["longtake"]["deployments"][deployment]["replicas"]
        return {one["replica_id"] for one in found if one["state"] == "RUNNING"}

    def details(self) -> dict[str, Any]:
        """What the head says of all applications; nothing while it does not answer."""
        try:
            return self._asked("get")
        except httpx.HTTPError:
            return {}

    def _asked(self, method: str, config: Any = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {LOGIN['RAY_AUTH_TOKEN']}"}
        url = f"{self.dashboard}/api/serve/applications/"
        answer = httpx.request(method.upper(), url, headers=headers, json=config, timeout=20.0)
        assert answer.status_code < 500 or method == "get", answer.text
        answer.raise_for_status()
        found: dict[str, Any] = answer.json() if method == "get" else {}
        return found

    def processes(self) -> list[psutil.Process]:
        """All that live."""
        nodes = [node for node in [self.head, *self.workers] if node is not None and node.process.poll() is None]
        return [one for node in nodes for one in node.family()]

    def usual(self) -> dict[int, int]:
        """By the ports of these nodes, those of pods, each of which has an address of its own."""
        found = dict(zip(self.ports, (6379, 8265, 10001), strict=True))
        for node in [self.head, *self.workers]:
            if node is not None:
                found |= dict(zip(node.own, (8000, 9101, 8404, 8500), strict=True))
        return found

    def begun(self) -> int:
        """How many nodes have begun so far, those that were lost included."""
        return (self.folder / "nodes.log").read_bytes().count(b"Ray runtime started.")

    def end(self) -> None:
        """Kill what lives."""
        for node in [*self.workers, self.head]:
            if node is not None and node.process.poll() is None:
                node.kill()

    def _begin(
        self,
        template: Manifest,
        parameters: Mapping[str, str],
        options: list[str],
        own: list[int],
        more: Mapping[str, str] | None = None,
    ) -> Node:
        parameters = {**parameters, "object-store-memory": str(POOL)}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={HOST}", *(f"--{name}={value}" for name, value in parameters.items()), *options]
        containers = template["spec"]["containers"]
        given = {one["name"]: one["value"] for box in containers for one in box.get("env", []) if "value" in one}
        environ = {**os.environ, **given, **HURRY, **LOGIN, **_colocated(own), **self.environ, **(more or {})}
        environ["LONGTAKE_SERVICE__RESTORE__DISK"] = str(self.folder / f"restore-{own[0]}")
        with (self.folder / "nodes.log").open("ab") as log:
            process = subprocess.Popen([*ENDS_WITH_US, *command], env=environ, stdout=log, stderr=log)
        return Node(process, own)


def _colocated(own: list[int]) -> dict[str, str]:
    """Ports that are the same in every pod, and cannot be on one machine."""
    names = ("WORKER_PROXY_HTTP_PORT", "HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT")
    return {f"RAY_SERVE_{name}": str(port) for name, port in zip(names, own, strict=True)}
