"""What holds of every overlay: rights, secrets, doors, and times and sizes that must fit each other."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from settings import Settings, load
from tests.manifests import K8S, OVERLAYS, ROOT, Manifest, Pod, documents, one, overlay, pods, rendered

FOLDERS = [*(f"overlays/{name}" for name in OVERLAYS), "model"]
DOORS = {8000}  # what may be reached from outside
RAY, REDIS = "Ray", "Redis"
SIZES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "mb": 2**20, "gb": 2**30}


def size(text: str) -> int:
    """Bytes of a size as Kubernetes, Redis or Ray write it."""
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti|mb|gb)?", text)
    assert found is not None, text
    return int(found[1]) * SIZES.get(found[2] or "", 1)


def settings_of(manifests: list[Manifest]) -> Settings:
    config = yaml.safe_load(one(manifests, "RayService")["spec"]["serveConfigV2"])
    return load(config["applications"][0]["args"]["settings"], {})


def seconds_of(manifests: list[Manifest], name: str) -> float:
    (pod, *_) = [pod for pod in pods(manifests) if pod.ray]
    return float(environment(pod)[name]["value"])


def environment(pod: Pod) -> dict[str, dict[str, Any]]:
    return {e["name"]: e for e in pod.spec["containers"][0].get("env", [])}


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Pod, dict[str, Any]]]:
    """All containers, and the autoscaler's, which KubeRay puts beside the head's."""
    for pod in pods(manifests):
        for container in pod.containers:
            yield f"{pod.name}/{container['name']}", pod, container
        if pod.ray == "headgroup":
            yield "autoscaler", pod, one(manifests, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]


# -- rights


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_container_runs_without_root_and_rights_on_a_read_only_file_system(folder: str) -> None:
    for name, pod, container in containers(rendered(K8S / folder)):
        own = container["securityContext"]
        assert own == {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }, name
        person = pod.spec["securityContext"]
        assert person["runAsNonRoot"], name
        assert min(person["runAsUser"], person["runAsGroup"], person["fsGroup"]) > 0, name
        for shared in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            assert not pod.spec.get(shared), name
        assert not [v for v in pod.spec["volumes"] if "hostPath" in v], name
        assert not [p for p in container.get("ports", []) if "hostPort" in p], name


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_written_is_a_volume(folder: str) -> None:
    manifests = rendered(K8S / folder)
    for name, pod, container in containers(manifests):
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        volumes = {v["name"] for v in pod.spec["volumes"]} | pod.claims
        assert {m["name"] for m in mounts.values()} <= volumes, name
        written = {"/tmp", "/data"} if pod.name == "longtake-redis" else {"/tmp", "/home/longtake"}
        if pod.ray:
            written |= {"/tmp/ray"} | ({"/dev/shm"} if name != "autoscaler" else set())
        if pod.ray == "generators":
            disk = settings_of(manifests).service.restore.disk
            written.add(next(m for m in mounts if disk.startswith(m + "/")))
        if pod.name == "longtake-model":
            written.add("/models")
        assert written <= set(mounts), name
        for path in written:
            assert not mounts[path].get("readOnly"), (name, path)


@pytest.mark.parametrize("folder", FOLDERS)
def test_nobody_gets_a_token_of_kubernetes_but_the_autoscaler(folder: str) -> None:
    manifests = rendered(K8S / folder)
    assert not [m for m in manifests if m["kind"] in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")]
    for pod in pods(manifests):
        if pod.ray == "headgroup":  # KubeRay's own account, for the autoscaler
            assert "serviceAccountName" not in pod.spec
        else:
            assert pod.spec["automountServiceAccountToken"] is False, pod.name
    for account in (m for m in manifests if m["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


# -- secrets


def test_no_secret_is_in_the_repository() -> None:
    for path in K8S.rglob("*.yaml"):
        for manifest in documents(path):
            assert not isinstance(manifest, dict) or manifest.get("kind") != "Secret", path


@pytest.mark.parametrize("folder", FOLDERS)
def test_secrets_are_references(folder: str) -> None:
    manifests = rendered(K8S / folder)
    for name, _, container in containers(manifests):
        for variable in container.get("env", []):
            if re.search(r"PASSWORD|TOKEN|KEY|SECRET|ADMIN", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], (name, variable["name"])
            elif "://" in variable.get("value", ""):
                assert not re.search(r"://[^/@]*:(?!\$\()[^/@]+@", variable["value"]), name
    if folder != "model":
        config = one(manifests, "RayService")["spec"]
        assert not re.search(r"://[^/\s]*@", config["serveConfigV2"])
        assert "keys" not in yaml.safe_load(config["serveConfigV2"])["applications"][0]["args"]["settings"]["service"]
        cluster = config["rayClusterConfig"]
        assert cluster["authOptions"] == {"mode": "token", "secretName": "longtake-ray-token"}


def _references(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if "secretKeyRef" in value and not value["secretKeyRef"].get("optional"):
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if "secretName" in value and "mode" in value:
            yield value["secretName"], "auth_token"  # the key that KubeRay reads
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def test_the_readme_makes_every_secret_that_is_referred_to() -> None:
    text = (K8S / "README.md").read_text().replace("\\\n", " ")
    made = {
        (name, key)
        for name, rest in re.findall(r"create secret generic (\S+)(.*)", text)
        for key in re.findall(r"--from-literal=(\w+)=", rest)
    }
    wanted = {found for folder in FOLDERS for found in _references(rendered(K8S / folder))}
    assert wanted
    assert wanted <= made


@pytest.mark.parametrize("folder", FOLDERS)
def test_services_beside_it_do_not_become_settings(folder: str) -> None:
    """A service ``longtake-x`` is ``LONGTAKE_X_PORT`` in the environment of every pod, unless that is turned off."""
    for pod in pods(rendered(K8S / folder)):
        assert pod.spec["enableServiceLinks"] is False, pod.name


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_settings_load_with_the_variables_of_the_pods_which_are_the_same_in_all(name: str) -> None:
    manifests = overlay(name)
    ray = [environment(pod) for pod in pods(manifests) if pod.ray]
    assert ray[0] == ray[1] == ray[2]
    given = {
        "LONGTAKE_SERVICE__JOURNAL__NAME": "longtake-x7k2p",
        "LONGTAKE_SERVICE__LIMITS__KEYS": "[viewer-key-0123456789]",
        "LONGTAKE_SERVICE__LIMITS__ADMINS": "[admin-key-0123456789]",
    }
    own = {n: e.get("value", given.get(n)) for n, e in ray[0].items() if n.startswith("LONGTAKE_")}
    plain = yaml.safe_load(one(manifests, "RayService")["spec"]["serveConfigV2"])["applications"][0]["args"]["settings"]
    found = load(plain, {n: v for n, v in own.items() if v is not None}).service
    assert set(given) < set(own)
    assert found.journal.kind == "redis"
    assert found.journal.name == "longtake-x7k2p"
    assert found.limits.keys == ("viewer-key-0123456789",)
    assert found.store_key == "env:STORE_KEY"
    assert "STORE_KEY" in ray[0]
    # Two clusters of one service write to two journals, and keep Ray's tables apart.
    assert "ray.io/cluster" in ray[0]["LONGTAKE_SERVICE__JOURNAL__NAME"]["valueFrom"]["fieldRef"]["fieldPath"]
    options = one(manifests, "RayService")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert "externalStorageNamespace" not in options


# -- doors


class Network:
    """What the policies of a namespace let through; see the API's reference of NetworkPolicy."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.pods = {pod.name: pod.labels for pod in pods(manifests)}
        self.policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]

    def callers(self, pod: str, port: int) -> set[str]:
        """Who may reach a port of a pod: names of own pods, ``namespace/…``, or ``everybody``."""
        found: set[str] = set()
        chosen = [p for p in self.policies if "Ingress" in p["policyTypes"] and self.selects(p["podSelector"], pod)]
        if not chosen:
            return {"everybody"}
        for rule in (rule for policy in chosen for rule in policy.get("ingress", [])):
            if self.open(rule, port):
                found |= {who for peer in rule.get("from", [{}]) for who in self.peers(peer)}
        return found

    def denied_outward(self, pod: str) -> bool:
        """Whether there is a policy for what a pod sends."""
        return any("Egress" in p["policyTypes"] and self.selects(p["podSelector"], pod) for p in self.policies)

    def selects(self, selector: Any, pod: str) -> bool:
        assert set(selector) <= {"matchLabels"}
        return selector.get("matchLabels", {}).items() <= self.pods[pod].items()

    def open(self, rule: Any, port: int) -> bool:
        return "ports" not in rule or any(p["port"] == port and p["protocol"] == "TCP" for p in rule["ports"])

    def peers(self, peer: Any) -> set[str]:
        if not peer or "ipBlock" in peer:
            return {"everybody"}
        if "namespaceSelector" in peer:
            return {f"namespace/{peer['namespaceSelector']['matchLabels']['kubernetes.io/metadata.name']}"}
        return {name for name in self.pods if self.selects(peer["podSelector"], name)}


RAY_PODS = {"headgroup", "gateways", "generators"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_viewers_come_in_and_only_to_the_gateways_port(name: str) -> None:
    network = Network(overlay(name))
    monitoring, operator, ingress = "namespace/monitoring", "namespace/kuberay-system", "namespace/ingress-nginx"
    for pod in RAY_PODS:
        for port in (6379, 10001, 52365, 30000, 8404):
            assert network.callers(pod, port) == RAY_PODS, (pod, port)
        for port in (8080, 9101):
            assert network.callers(pod, port) == {*RAY_PODS, monitoring}
    assert network.callers("headgroup", 8265) == {*RAY_PODS, operator}
    assert network.callers("headgroup", 8000) == {*RAY_PODS, operator}
    for worker in ("gateways", "generators"):
        assert network.callers(worker, 8265) == RAY_PODS
        assert network.callers(worker, 8000) == {*RAY_PODS, ingress}
    assert network.callers("longtake-redis", 6379) == RAY_PODS
    assert network.callers("longtake-redis", 16379) == set()


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_goes_out_that_was_not_named(name: str) -> None:
    manifests = overlay(name)
    network = Network(manifests)
    open_ended = {}
    for policy in (m for m in manifests if m["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            if "to" not in rule:
                ports = {p["port"] for p in rule["ports"]}
                open_ended[policy["metadata"]["name"]] = ports, policy["spec"]["podSelector"]["matchLabels"]
    assert all(network.denied_outward(pod) for pod in network.pods)
    (name, (ports, labels)) = open_ended.popitem()
    assert not open_ended
    assert (name, ports, labels["ray.io/node-type"]) == ("longtake-autoscaler", {443, 6443}, "head")


def test_a_door_that_stands_open_is_found() -> None:
    """The check above can fail: a policy that lets everybody in, or none at all."""
    manifests = overlay("cpu-demo")
    door = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 8265, "protocol": "TCP"}]}]}
    assert "everybody" in Network([*manifests, {"kind": "NetworkPolicy", "spec": door}]).callers("headgroup", 8265)
    without = Network([m for m in manifests if m["kind"] != "NetworkPolicy"])
    assert without.callers("headgroup", 8265) == {"everybody"}
    assert not without.denied_outward("headgroup")


@pytest.mark.parametrize("folder", FOLDERS)
def test_dashboard_and_client_port_are_in_no_service_and_no_ingress(folder: str) -> None:
    manifests = rendered(K8S / folder)
    for service in (m for m in manifests if m["kind"] == "Service"):
        assert service["spec"]["selector"] == {"app.kubernetes.io/name": "longtake-redis"}
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    for ingress in (m for m in manifests if m["kind"] == "Ingress"):
        assert ingress["spec"]["tls"]
        assert "defaultBackend" not in ingress["spec"]
        backends = [path["backend"]["service"] for r in ingress["spec"]["rules"] for path in r["http"]["paths"]]
        assert {b["name"] for b in backends} == {"longtake-serve-svc"}
        assert {b["port"]["number"] for b in backends} == DOORS
    for cluster in (m["spec"]["rayClusterConfig"] for m in manifests if m["kind"] == "RayService"):
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert not cluster["headGroupSpec"].get("enableIngress")


# -- times


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_has_the_time_to_be_drained(name: str) -> None:
    manifests = overlay(name)
    by_group = {pod.ray: pod.spec for pod in pods(manifests) if pod.ray}
    generator, gateway = by_group["generators"], by_group["gateways"]
    command = generator["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python", "/etc/longtake/drain.py", "--seconds"]
    assert generator["terminationGracePeriodSeconds"] >= float(command[3]) + 30
    pause = gateway["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert gateway["terminationGracePeriodSeconds"] >= pause + 30
    script = one(manifests, "ConfigMap", "longtake-scripts")["data"]
    assert script == {"drain.py": (K8S / "base" / "drain.py").read_text()}
    (scripts,) = [v for v in generator["volumes"] if v["name"] == "scripts"]
    assert scripts["configMap"]["name"] == "longtake-scripts"


@pytest.mark.parametrize("name", OVERLAYS)
def test_haproxy_and_the_ingress_let_a_socket_live_as_long_as_the_longest_session(name: str) -> None:
    manifests = overlay(name)
    longest = settings_of(manifests).service.pace.away_s
    assert seconds_of(manifests, "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S") >= longest
    for pod in pods(manifests):
        if pod.ray:
            for switch in ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"):
                assert environment(pod)[switch]["value"] == "1"
    for ingress in (m for m in manifests if m["kind"] == "Ingress"):
        for which in ("read", "send"):
            time = ingress["metadata"]["annotations"][f"nginx.ingress.kubernetes.io/proxy-{which}-timeout"]
            assert float(time) >= longest


# -- what Ray and its operator are told


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_cluster_is_what_the_operator_can_work_with(name: str) -> None:
    service = one(overlay(name), "RayService")["spec"]
    cluster = service["rayClusterConfig"]
    (ray,) = re.findall(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.M)
    assert cluster["rayVersion"] == ray
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    assert service["excludeHeadPodFromServeSvc"] is True
    assert service["upgradeStrategy"] == {"type": "NewCluster"}
    assert service["rayClusterDeletionDelaySeconds"] >= 3600
    for pod in (p for p in pods(overlay(name)) if p.ray):
        (container,) = pod.spec["containers"]
        assert "restartPolicy" not in pod.spec  # the autoscaler of version 2 wants its own
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            assert probe not in container  # the operator's
        assert {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "RAY_AUTH_TOKEN"}.isdisjoint(environment(pod))  # the operator's
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert (ports["serve"], ports["metrics"], ports["haproxy"]) == (8000, 8080, 9101)
    for group in cluster["workerGroupSpecs"]:
        # One place for resources, or the operator refuses it.
        assert {"num-cpus", "num-gpus", "memory", "resources"}.isdisjoint(group["rayStartParams"])
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_two_ways_of_fault_tolerance_are_told_apart() -> None:
    def store(name: str) -> Any:
        return one(overlay(name), "RayService")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]

    assert store("cpu-demo")["backend"] == "redis"
    embedded = store("cpu-demo-rocksdb")
    assert embedded["backend"] == "rocksdb"
    assert not [key for key in embedded if key.startswith("redis")]  # the operator refuses both


@pytest.mark.parametrize("name", OVERLAYS)
def test_monitors_find_pods_and_their_ports(name: str) -> None:
    manifests = overlay(name)
    for monitor in (m for m in manifests if m["kind"] == "PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [pod for pod in pods(manifests) if wanted <= pod.labels.items()]
        assert found
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for pod in found:
                assert endpoint["port"] in {port["name"] for port in pod.spec["containers"][0]["ports"]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_budget_for_disruptions_never_forbids_them_for_good(name: str) -> None:
    manifests = overlay(name)
    least = {
        group["groupName"]: group["minReplicas"]
        for group in one(manifests, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    }
    budgets = {m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "PodDisruptionBudget"}
    for group, replicas in least.items():
        budget = budgets[f"longtake-{group}"]
        assert 0 < budget["minAvailable"] < replicas
        assert "maxUnavailable" not in budget  # of no use for pods without a controller of Kubernetes' own
        chosen = [p.ray for p in pods(manifests) if budget["selector"]["matchLabels"].items() <= p.labels.items()]
        assert chosen == [group]
    assert budgets["longtake-redis"]["minAvailable"] == 1  # on purpose: see the manifest


# -- sizes


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_the_settings_ask_for_is_there(name: str) -> None:
    manifests = overlay(name)
    service = settings_of(manifests).service
    for group in _groups(manifests):
        spec = group["template"]["spec"]
        volumes = {v["name"]: v for v in spec["volumes"]}
        memory = size(spec["containers"][0]["resources"]["limits"]["memory"])
        shm, objects = (
            size(volumes["shared-mem"]["emptyDir"]["sizeLimit"]),
            int(group["rayStartParams"]["object-store-memory"]),
        )
        assert objects + (32 << 20) <= shm < memory // 2
        if group.get("groupName") != "generators":
            continue
        disk = volumes["restore"]
        room = size(
            disk["emptyDir"]["sizeLimit"]
            if "emptyDir" in disk
            else disk["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]
        )
        assert service.restore.disk_bytes + service.restore.behind_bytes <= room
        held = service.host_bytes + service.vault_bytes + service.staging.slots * service.staging.slot_bytes
        held += service.restore.behind_bytes + service.restore.buffer_bytes + shm
        assert held + (1 << 30) <= memory


@pytest.mark.parametrize("name", OVERLAYS)
def test_redis_has_room_to_write_its_file_anew(name: str) -> None:
    (container,) = one(overlay(name), "StatefulSet", "longtake-redis")["spec"]["template"]["spec"]["containers"]
    (most,) = [e["value"] for e in container["env"] if e["name"] == "MAXMEMORY"]
    assert size(most) * 4 <= size(container["resources"]["limits"]["memory"]) * 3


@pytest.mark.parametrize("name", [n for n in OVERLAYS if n.startswith("gpu")])
def test_generators_have_the_gpus_that_the_settings_ask_for(name: str) -> None:
    manifests = overlay(name)
    service = settings_of(manifests).service
    (group,) = [g for g in _groups(manifests) if g.get("groupName") == "generators"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == str(int(service.gpus))
    assert group["resources"]["GPU"] == str(int(service.gpus))
    assert group["template"]["spec"]["containers"][0]["image"].endswith("-cuda")


def _groups(manifests: list[Manifest]) -> list[Any]:
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
