"""The image is made by the steps that make the environment of every test, and a pod is emptied before it goes."""

import asyncio
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from k8s.base import drain
from tests.manifests import IMAGES, K8S, ROOT, documents

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Instructions and their arguments, lines joined, comments left out."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


# How each file names the environment and the tree that it is made for.
NAMES = {"$longtake_venv": ".venv", "$longtake_root/": "", "$longtake_root": ".", '"$python"': "python"}
SETTING_UP = re.compile(r'-m venv|"\$\{pip\[@\]\}" install|-m pip install')


def steps(shell: str) -> list[list[str]]:
    """What a script does to make the environment: the arguments of ``venv`` and of each ``pip install``."""
    shell = shell.replace('"${pip[@]}" install', ".venv/bin/python -m pip install")
    found = []
    for line in shell.splitlines():
        if re.search(r"-m (venv|pip install)", line):
            for old, new in NAMES.items():
                line = line.replace(old, new)
            found.append([re.sub(r"^(\.venv/bin/)?python\d*$", "python", word) for word in shlex.split(line)])
    return found


def made_by_setup() -> list[list[str]]:
    script = (ROOT / "scripts" / "setup.sh").read_text()
    (body,) = re.findall(r"^install_venv\(\) \{\n(.*?)^\}", script, re.S | re.M)
    return steps("\n".join(line for line in body.splitlines() if "local pip" not in line))


def made_by_docker(dockerfile: str) -> list[list[str]]:
    runs = [argument for name, argument in instructions(dockerfile) if name == "RUN"]
    return steps("\n".join(part.strip() for run in runs for part in run.split("&&")))


def test_the_image_is_made_by_the_steps_of_the_setup_script() -> None:
    assert len(made_by_setup()) == 5
    assert made_by_docker(DOCKERFILE) == made_by_setup()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--requirement requirements.lock", "--requirement requirements.txt"),
        ("install --no-deps --editable .", "install --editable ."),
        ('RUN .venv/bin/python -m pip install "$(grep', 'RUN .venv/bin/python -m pip install torch "$(grep'),
    ],
)
def test_another_step_is_noticed(old: str, new: str) -> None:
    changed = DOCKERFILE.replace(old, new)
    assert changed != DOCKERFILE
    assert made_by_docker(changed) != made_by_setup()


def hadolint(path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["hadolint", "--no-color", str(path)], capture_output=True, text=True, check=False)


def test_the_dockerfile_is_clean(tmp_path: Path) -> None:
    found = hadolint(ROOT / "Dockerfile")
    assert found.returncode == 0, found.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.replace("python:3.11.15-slim-trixie", "python"))
    assert "DL3006" in hadolint(wrong).stdout  # the linter lints


def test_every_image_is_exact_and_every_target_runs_as_nobody() -> None:
    targets: dict[str, list[tuple[str, str]]] = {}
    for name, argument in instructions(DOCKERFILE):
        if name == "FROM":
            source, _, target = argument.partition(" AS ")
            targets[target] = list(targets.get(source, []))
            assert source in targets or source in IMAGES["dockerfile"], source
        else:
            targets[target].append((name, argument))
    assert {"cpu", "cuda"} < set(targets)
    for target in ("cpu", "cuda"):
        assert [argument for name, argument in targets[target] if name == "USER"][-1] == "10001:10001"
        assert targets[target][-1][0] == "USER"


def test_what_the_package_is_made_of_is_copied_and_nothing_else() -> None:
    import tomllib

    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    needed = {name.split(".")[0] for name in declared["packages"]} | {f"{name}.py" for name in declared["py-modules"]}
    assert kept == needed | {"LICENSE", "README.md", "pyproject.toml", "requirements.lock", "examples"}
    assert all((ROOT / name).exists() for name in kept)


# -- before a pod goes

NODE = "0123456789abcdef" * 3


class Fleet:
    """Generators of two nodes, as the gateway tells of them."""

    def __init__(self, late: bool = False) -> None:
        self.drained: list[str] = []
        self.late = late

    async def generators(self) -> list[dict[str, Any]]:
        here, there = f"restore-store-{NODE[:12]}", "restore-store-ffffffffffff"
        return [{"generator": name, "store": s} for name, s in (("a", here), ("b", there), ("c", here))]

    async def drain(self, generator: str) -> dict[str, Any]:
        if self.late:
            await asyncio.Event().wait()
        self.drained.append(generator)
        stayed = {"take-3": "no place"} if generator == "c" else {}
        return {"moved": {"take-1": "b"}, "parked": {}, "stayed": stayed, "ending": []}


def test_a_pod_that_goes_empties_its_own_generators_and_names_what_stays() -> None:
    fleet = Fleet()
    assert asyncio.run(drain.empty(fleet, NODE, 10.0)) == {"take-3": "no place"}
    assert sorted(fleet.drained) == ["a", "c"]


def test_a_pod_does_not_wait_for_longer_than_it_was_told() -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(drain.empty(Fleet(late=True), NODE, 0.01))


def test_a_pod_knows_its_node_by_its_raylet(tmp_path: Path) -> None:
    def run(number: int, *arguments: str) -> None:
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes("\0".join(arguments).encode() + b"\0")

    run(1, "bash", "-c", "ray start")
    with pytest.raises(LookupError, match="0 raylets run here"):
        drain.own_node(tmp_path)
    (tmp_path / "2").mkdir()  # has just ended
    run(3, "raylet", "--raylet_socket_name=x", f"--node_id={NODE}")
    run(4, "python", "dashboard/agent.py", f"--node-id={NODE}")
    assert drain.own_node(tmp_path) == NODE
    run(5, "raylet", "--node_id=ffff")
    with pytest.raises(LookupError, match="2 raylets run here"):
        drain.own_node(tmp_path)


def test_the_script_says_what_ray_and_the_service_say() -> None:
    import inspect

    from ray._private import services

    from actors import remote

    assert f'f"{drain.FLAG}{{node_id}}"' in inspect.getsource(services.start_raylet)
    assert drain.STORE == remote.STORE
    assert f"get_node_id()[:{drain.SHOWN}]" in inspect.getsource(remote.store_name)


# -- Redis, as its manifest starts it


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server was found")
    stateful = next(m for m in documents(K8S / "base" / "redis.yaml") if m["kind"] == "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (script,) = container["args"]
    for folder in ("tmp", "data"):
        (tmp_path / folder).mkdir()
        script = re.sub(rf"(?<=[ >])/{folder}\b", f"{tmp_path}/{folder}", script)
    assert str(tmp_path / "data") in script
    assert script.count(str(tmp_path / "tmp")) == 2
    script = script.replace("--maxmemory-policy", f"--bind 127.0.0.1 --port {port} --maxmemory-policy")
    environment = {"REDIS_PASSWORD": "0f" * 16, "MAXMEMORY": "64mb", "PATH": "/usr/bin:/bin"}
    command = [*container["command"], script]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


def test_redis_asks_for_its_password_keeps_what_it_was_given_and_ends_when_told(
    started: tuple["subprocess.Popen[bytes]", int], tmp_path: Path
) -> None:
    process, port = started
    client = redis.Redis(port=port, password="0f" * 16)
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            break
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port).ping()
    found = client.config_get("*")
    assert (found["appendonly"], found["appendfsync"], found["save"]) == ("yes", "always", "")
    assert found["maxmemory-policy"] == "noeviction"
    client.set("booked", "yes")
    assert "0f0f" not in Path(f"/proc/{process.pid}/cmdline").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert any(b"booked" in path.read_bytes() for path in (tmp_path / "data").rglob("*.aof"))
    assert (tmp_path / "tmp" / "redis.conf").stat().st_mode & 0o077 == 0
    client.close()
