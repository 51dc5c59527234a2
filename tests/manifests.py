"""The manifests of ``k8s/``: read, rendered, and validated without a cluster."""

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
CRDS = ROOT.parent / "shared" / "kuberay"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
KUBERNETES = "1.37"
IMAGES: dict[str, list[str]] = yaml.safe_load((K8S / "images.yaml").read_text())

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    """What a YAML file holds."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def resources(folder: Path) -> Iterator[Manifest]:
    """The manifests that a kustomization lists, before any patch."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    for entry in kustomization.get("resources", []):
        path = folder / entry
        yield from resources(path) if path.is_dir() else documents(path)


@cache
def _rendered(folder: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl was found: overlays are rendered by `kubectl kustomize`")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(folder: Path) -> list[Manifest]:
    """What ``kubectl apply --kustomize`` would apply; skips the test where there is no kubectl."""
    return [found for found in yaml.safe_load_all(_rendered(folder)) if found]


def overlay(name: str) -> list[Manifest]:
    """An overlay, rendered."""
    return rendered(K8S / "overlays" / name)


def one(manifests: list[Manifest], kind: str, name: str = "longtake") -> Manifest:
    """The one manifest of a kind and name."""
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


# -- validation


class Strict(BaseModel):
    """No field that is not named, in camel case, and no conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


Seconds = Annotated[str, Field(pattern=r"^\d+(ms|s|m|h)$")]


class Metadata(Strict):
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Selector(Strict):
    match_labels: dict[str, str]


class Endpoint(Strict):
    port: str
    path: str = "/metrics"
    interval: Seconds
    scrape_timeout: Seconds


class PodMonitorSpec(Strict):
    selector: Selector
    pod_target_labels: list[str] = []
    pod_metrics_endpoints: Annotated[list[Endpoint], Field(min_length=1)]


class PodMonitor(Strict):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class Alert(Strict):
    alert: str
    expr: str
    for_: Annotated[Seconds | None, Field(alias="for")] = None
    keep_firing_for: Annotated[Seconds | None, Field(alias="keep_firing_for")] = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Record(Strict):
    record: str
    expr: str
    labels: dict[str, str] = {}


class RuleGroup(Strict):
    name: str
    interval: Seconds | None = None
    rules: Annotated[list[Alert | Record], Field(min_length=1)]


class RuleSpec(Strict):
    groups: Annotated[list[RuleGroup], Field(min_length=1)]


class PrometheusRule(Strict):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: RuleSpec


_MONITORING: TypeAdapter[Any] = TypeAdapter(Annotated[PodMonitor | PrometheusRule, Field(discriminator="kind")])


@cache
def crd(plural: str) -> Any:
    """The schema of KubeRay's v1 that takes no field but those that it names; skips where it is not to be had."""
    path = CRDS / f"ray.io_{plural}.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's custom resource definitions are not at {CRDS}")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    return _closed(version["schema"]["openAPIV3Schema"])


def _closed(schema: Any) -> Any:
    """A schema of Kubernetes as one of JSON schema that refuses unknown fields."""
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        found |= {"type": ["integer", "string"]}
        found.pop("anyOf", None)
    if "properties" in schema:
        found["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        found["items"] = _closed(schema["items"])
    return found


def _defaulted(value: Any, schema: Any) -> Any:
    """The value with the schema's defaults, which the API server puts in before it looks at what is required."""
    if isinstance(value, dict):
        known = schema.get("properties", {})
        missing = {n: copy.deepcopy(s["default"]) for n, s in known.items() if n not in value and "default" in s}
        other = schema.get("additionalProperties", {})
        other = other if isinstance(other, dict) else {}
        return {n: _defaulted(v, known.get(n, other)) for n, v in {**missing, **value}.items()}
    if isinstance(value, list):
        return [_defaulted(v, schema.get("items", {})) for v in value]
    return value


def validate(manifest: Manifest) -> None:
    """Raises ``Invalid`` for what an API server would not take, or take without a field."""
    group = manifest["apiVersion"].partition("/")[0]
    try:
        _choices(manifest)
        if group == "ray.io":
            schema = crd(f"{manifest['kind'].lower()}s")
            body = {key: value for key, value in manifest.items() if key != "metadata"}
            jsonschema.Draft202012Validator(schema).validate(_defaulted(body, schema))
            _as_pods(manifest)
        elif group == "monitoring.coreos.com":
            _MONITORING.validate_python(manifest)
        else:
            _core(json.dumps(manifest))
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError, ValueError) as error:
        raise Invalid(f"{manifest['kind']} {manifest['metadata']['name']}: {error}") from error


# What the API server takes where the published schemas say no more than that it is a text.
CHOICES = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "policyTypes": {"Ingress", "Egress"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "medium": {"", "Memory", "HugePages"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "operator": {"Exists", "Equal", "In", "NotIn", "DoesNotExist"},
    "pathType": {"Exact", "Prefix", "ImplementationSpecific"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
}
UPGRADES = {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}  # of a RayService; the operator's own check


def _choices(value: Any) -> None:
    if isinstance(value, list):
        for inner in value:
            _choices(inner)
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        _choices(inner)
        chosen = [inner] if isinstance(inner, str) else inner
        if key in CHOICES and isinstance(chosen, list) and not set(chosen) <= CHOICES[key]:
            raise ValueError(f"{key} is {inner!r}; expected of {sorted(CHOICES[key])}")
        if key == "upgradeStrategy" and inner["type"] not in UPGRADES:
            raise ValueError(f"upgradeStrategy is {inner!r}; expected of {sorted(UPGRADES)}")


def _as_pods(manifest: Manifest) -> None:
    """Pod templates inside a RayService once more, as pods of the core API."""
    for pod in pods([manifest]):
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name}, "spec": pod.spec}
        _core(json.dumps(body))


@cache  # the same manifest is in several overlays, and the schemas are read for each
def _core(manifest: str) -> None:
    kubernetes_validate.validate(json.loads(manifest), KUBERNETES, strict=True)


class Invalid(Exception):
    """A manifest that is not valid."""


# -- what is in them


@dataclass(frozen=True)
class Pod:
    """A pod template and where it is from; ``ray``: the group of a RayService; ``claims``: volumes made beside it."""

    name: str
    labels: dict[str, str]
    spec: dict[str, Any]
    ray: str = ""
    claims: frozenset[str] = frozenset()

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of them, those that begin first too."""
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]


def pods(manifests: list[Manifest]) -> list[Pod]:
    """All pod templates, and those of the Ray groups with the labels that KubeRay puts on."""
    found = []
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind in ("StatefulSet", "Deployment", "DaemonSet", "Job"):
            template = spec["template"]
            claims = frozenset(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", []))
            name = manifest["metadata"]["name"]
            found.append(Pod(name, template["metadata"]["labels"], template["spec"], claims=claims))
        elif kind == "RayService":
            cluster = spec["rayClusterConfig"]
            found.append(_ray_pod("headgroup", "head", cluster["headGroupSpec"]["template"]))
            for group in cluster["workerGroupSpecs"]:
                found.append(_ray_pod(group["groupName"], "worker", group["template"]))
    return found


def _ray_pod(group: str, role: str, template: dict[str, Any]) -> Pod:
    own = {"ray.io/is-ray-node": "yes", "ray.io/node-type": role, "ray.io/group": group}
    return Pod(group, {**template["metadata"]["labels"], **own}, template["spec"], group)


def images(manifests: list[Manifest]) -> set[str]:
    """Every image that is named anywhere."""

    def named(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "image" and isinstance(inner, str):
                    yield inner
                yield from named(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from named(inner)

    return {image for manifest in manifests for image in named(manifest)}


def check_images(manifests: list[Manifest]) -> None:
    """Raises ``Invalid`` for an image that ``k8s/images.yaml`` does not have."""
    unknown = images(manifests) - set(IMAGES["pods"])
    if unknown:
        raise Invalid(f"images that are not in k8s/images.yaml: {', '.join(sorted(unknown))}")
