"""Manifests: each is what its API takes, what is generated is up to date, and what is wrong is caught."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

from ray.serve.schema import ServeDeploySchema  # noqa: E402

import serve_app  # noqa: E402
from k8s import serve_config  # noqa: E402
from settings import load  # noqa: E402
from tests.manifests import (  # noqa: E402
    IMAGES,
    K8S,
    OVERLAYS,
    ROOT,
    Invalid,
    Manifest,
    check_images,
    documents,
    one,
    overlay,
    rendered,
    resources,
    validate,
)

FOLDERS = [*(f"overlays/{name}" for name in OVERLAYS), "model"]
SETTINGS = serve_config.settings_files()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LONGTAKE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_manifest_of_every_overlay_is_valid(folder: str) -> None:
    found = rendered(K8S / folder)
    check_images(found)
    for manifest in found:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "longtake"
        if manifest["kind"] != "RayService":
            validate(manifest)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_ray_service_of_every_overlay_is_valid(name: str) -> None:
    validate(one(overlay(name), "RayService"))


@pytest.mark.parametrize("folder", ["base", "base/podmonitors", "components/ingress", "components/monitoring", "model"])
def test_every_manifest_is_valid_before_it_is_patched(folder: str) -> None:
    found = list(resources(K8S / folder))
    assert found
    check_images(found)
    for manifest in sorted(found, key=lambda m: str(m["kind"]) == "RayService"):  # its schema may not be there
        validate(manifest)


def test_every_file_is_part_of_a_kustomization() -> None:
    used = {K8S / "images.yaml", *SETTINGS}
    for path in K8S.rglob("kustomization.yaml"):
        (kustomization,) = documents(path)
        used.add(path)
        used |= {(path.parent / entry).resolve() for entry in kustomization.get("resources", [])}
        used |= {(path.parent / patch["path"]).resolve() for patch in kustomization.get("patches", [])}
    left = {path for path in K8S.rglob("*.yaml") if path not in used and "monitoring" not in path.parts[-2]}
    assert not left


# -- what is wrong is caught


def _changed(path: str, value: Any, kind: str = "RayService", name: str = "longtake") -> Manifest:
    """A manifest of the base with something put at a path."""
    manifest = copy.deepcopy(one(list(resources(K8S / "base")), kind, name))
    at: Any = manifest
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in parents:
        at = at[key]
    at[last] = value
    return manifest


GROUP = "spec/rayClusterConfig/workerGroupSpecs/0"
CONTAINER = f"{GROUP}/template/spec/containers/0"


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (_changed("spec/rayClusterConfig/gcsFaultToleranceOptions/backend", "reddis"), "'reddis' is not one of"),
        (_changed("spec/rayClusterConfig/autoscalerOptions/upscalingMode", "Quick"), "'Quick' is not one of"),
        (_changed("spec/rayClusterConfig/authOptions/mode", "tokens"), "'tokens' is not one of"),
        (_changed(f"{CONTAINER}/imagePullPolicy", "Sometimes"), "Sometimes"),
        (_changed("spec/serveConfig", "applications: []"), "serveConfig"),
        (_changed("spec/rayClusterConfig/enableInTreeAutoscalling", True), "enableInTreeAutoscalling"),
        (_changed(f"{GROUP}/maxReplica", 3), "maxReplica"),
        (_changed(f"{CONTAINER}/securityContext/readOnlyRootFileSystem", True), "readOnlyRootFileSystem"),
        (_changed(f"{CONTAINER}/lifecycle/preStop/sleep", {"secs": 5}), "secs"),
        (_changed(f"{GROUP}/minReplicas", "two"), "'two' is not of type 'integer'"),
        (_changed("spec/minAvailabel", 1, "PodDisruptionBudget", "longtake-redis"), "minAvailabel"),
        (_changed("spec/policyTypes", ["Inward"], "NetworkPolicy", "longtake-deny"), "Inward"),
        (_changed("spec/upgradeStrategy/type", "BlueGreen"), "BlueGreen"),
        (_changed("spec/template/spec/containers/0/image", 7, "StatefulSet", "longtake-redis"), "7"),
        (_changed("spec/replicas", "one", "StatefulSet", "longtake-redis"), "one"),
    ],
)
def test_a_wrong_enum_a_misspelt_field_and_a_wrong_type_are_caught(manifest: Manifest, said: str) -> None:
    with pytest.raises(Invalid, match=re.escape(said)):
        validate(manifest)


def test_what_is_required_is_missed() -> None:
    manifest = _changed(f"{GROUP}/groupName", "gateways")
    del manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
    with pytest.raises(Invalid, match="'template' is a required property"):
        validate(manifest)
    del manifest["spec"]["rayClusterConfig"]
    with pytest.raises(Invalid, match="'rayClusterConfig' is a required property"):
        validate(manifest)


@pytest.mark.parametrize(
    ("field", "value"),
    [("podMetricsEndpoints", []), ("podMetricEndpoints", [{"port": "metrics"}]), ("selector", {"matchLabel": {}})],
)
def test_a_wrong_monitor_is_caught(field: str, value: Any) -> None:
    (manifest, _) = copy.deepcopy(documents(K8S / "base/podmonitors/podmonitors.yaml"))
    validate(manifest)
    manifest["spec"][field] = value
    with pytest.raises(Invalid, match=field):
        validate(manifest)


def test_a_wrong_rule_is_caught() -> None:
    alert = {"alert": "Stalled", "expr": "up == 0", "for": "5m", "labels": {"severity": "page"}}
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "longtake"},
        "spec": {"groups": [{"name": "streams", "rules": [alert]}]},
    }
    validate(rule)
    for wrong in ({"fro": "5m"}, {"for": "5 minutes"}, {"expr": None}):
        groups = [{"name": "streams", "rules": [{**alert, **wrong}]}]
        with pytest.raises(Invalid):
            validate({**rule, "spec": {"groups": groups}})


@pytest.mark.parametrize(
    "image", ["longtake:latest", "longtake", "longtake:0.1.1-cpu", "redis:8.4-alpine", "busybox:1"]
)
def test_an_image_that_is_not_in_the_list_is_caught(image: str) -> None:
    for path in (f"{CONTAINER}/image", "spec/rayClusterConfig/autoscalerOptions/image"):
        with pytest.raises(Invalid, match=re.escape(image)):
            check_images([_changed(path, image)])


def test_the_list_of_images_has_exact_versions_and_no_other() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    for image in (*IMAGES["pods"], *IMAGES["dockerfile"]):
        assert re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", image), image
    ours = {image for image in IMAGES["pods"] if image.startswith("longtake:")}
    assert ours == {f"longtake:{version[1]}-cpu", f"longtake:{version[1]}-cuda"}


# -- what is generated


@pytest.mark.parametrize("file", SETTINGS, ids=lambda path: path.parent.name)
def test_the_serve_config_is_what_the_application_makes_of_the_settings(file: Path) -> None:
    committed = file.with_name("serve.yaml").read_text()
    assert committed == serve_config.patch(file), "run python -m k8s.serve_config"
    assert yaml.safe_load(committed)["spec"]["serveConfigV2"] == serve_config.serve_config(file)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_serve_config_is_valid_and_builds_the_application(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_KEY", "0f" * 32)
    spec = one(overlay(name), "RayService")["spec"]
    schema = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (own,) = schema.applications
    assert (own.import_path, own.route_prefix, schema.http_options.port) == ("serve_app:app", "/", 8000)
    found = load(own.args["settings"], {})
    for deployment in _deployments(serve_app.application(found)):
        _has_a_place(deployment, spec["rayClusterConfig"])


def _deployments(application: Any) -> list[Any]:
    own = application._bound_deployment  # Ray has no public name for it
    inner = [a for a in (*own.init_args, *own.init_kwargs.values()) if type(a) is type(application)]
    return [own, *(found for a in inner for found in _deployments(a))]


def _has_a_place(deployment: Any, cluster: Any) -> None:
    """There is one group that has what a replica takes, and it may have as many pods as there are replicas."""
    options = deployment.ray_actor_options
    wanted = {"CPU": options.get("num_cpus", 0), "GPU": options.get("num_gpus", 0), **options.get("resources", {})}
    assert options["resources"], f"{deployment.name} may be put on the head"
    groups = {
        group["groupName"]: min(
            float(group["resources"].get(name, 0)) // amount for name, amount in wanted.items() if amount
        )
        for group in cluster["workerGroupSpecs"]
    }
    (name,) = [name for name, room in groups.items() if room >= 1]
    assert name == ("gateways" if deployment.name == "gateway" else "generators")
    (group,) = [group for group in cluster["workerGroupSpecs"] if group["groupName"] == name]
    assert deployment.num_replicas <= groups[name] * group["minReplicas"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_books_have_a_place_that_is_not_the_head_and_not_a_gpu(name: str) -> None:
    spec = one(overlay(name), "RayService")["spec"]
    plain = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"]["settings"]
    service = load(plain, {}).service
    actors = service.ledgers + 1  # and the session directory
    for resource, amount in service.books_resources.items():
        groups = [g for g in spec["rayClusterConfig"]["workerGroupSpecs"] if resource in g["resources"]]
        assert [g["groupName"] for g in groups] == ["gateways"]
        assert actors * amount <= float(groups[0]["resources"][resource])  # on one pod, if the others are away
    assert service.books_resources
