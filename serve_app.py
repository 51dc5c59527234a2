"""The composition root: settings become plain objects, these become deployments, and those the application.

serve run serve_app:app
serve run serve_app:app settings=longtake.yaml
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

import web
from actors import serving
from actors.deployments import GeneratorReplica, SegmenterReplica, gateway_builder
from actors.remote import DIRECTORY, NAMESPACE, Around
from actors.worker import Worker
from settings import ServiceSettings, Settings, build_segmenter, build_worker, load, read_key

NAME, GENERATOR = "longtake", "generator"


class Arguments(BaseModel):
    """Arguments of the application; ``settings``: path of a YAML file, or what such a file holds."""

    settings: str | dict[str, Any] | None = None


def app(arguments: Arguments) -> Application:
    """The application that ``serve run`` and ``serve deploy`` take."""
    given = arguments.settings
    return application(load(Path(given) if isinstance(given, str) else given))


def __getattr__(name: str) -> Any:
    """``serve_app:built``, for ``serve build``, which takes no arguments: settings by environment variables alone."""
    if name == "built":
        return application(load())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def deploy_config(settings: str | dict[str, Any] | None, host: str, port: int) -> dict[str, Any]:
    """What ``serve deploy`` takes, for these settings; KubeRay's ``serveConfigV2`` is the same.

    Replicas and ``user_config`` stand in it, so that a change of these alone is carried out while sessions run.

    Raises:
        ConfigError: the settings are wrong.
    """
    service = load(Path(settings) if isinstance(settings, str) else settings).service
    own: dict[str, Any] = {
        "name": NAME,
        "route_prefix": "/",
        "import_path": "serve_app:app",
        "args": {} if settings is None else {"settings": settings},
        "deployments": [
            {"name": "gateway", "num_replicas": service.gateways},
            {"name": GENERATOR, **_replicas(service), "user_config": _user_config(service)},
        ],
    }
    return {"http_options": {"host": host, "port": port}, "applications": [own]}


def _replicas(service: ServiceSettings) -> dict[str, Any]:
    """How many generators Serve keeps, and how long one that it stops may take to give its sessions away."""
    rules = service.rules
    found: dict[str, Any] = {"graceful_shutdown_timeout_s": service.leave_s}
    if rules.most == rules.least:
        return found | {"num_replicas": rules.least}
    bounds = {"min_replicas": rules.least, "max_replicas": rules.most}
    at_once = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0, "look_back_period_s": 11.0}  # the rules wait
    policy = {"policy": {"policy_function": "actors.autoscaling:generators_wanted"}}
    return found | {"autoscaling_config": {**bounds, **at_once, **policy}}


def _user_config(service: ServiceSettings) -> dict[str, Any]:
    return {"pace": asdict(service.pace), "rules": asdict(service.rules)}


def application(settings: Settings, build: Callable[..., Worker] = build_worker) -> Application:
    """Generators behind gateways, by these settings; ``build(settings, vault, tier)`` makes what a generator has."""
    service = settings.service
    router = RequestRouterConfig.model_validate(
        {
            "request_router_class": "actors.router.SessionRouter",
            "request_router_kwargs": {"directory": DIRECTORY, "namespace": NAMESPACE},
        }
    )
    generator: Any = serve.deployment(
        GeneratorReplica,
        name=GENERATOR,
        **_replicas(service),
        ray_actor_options={
            "num_cpus": service.cpus,
            "num_gpus": service.gpus,
            "resources": dict(service.generator_resources),
        },
        # Every viewer is one request that lasts; who may watch is for the pace to say.
        max_ongoing_requests=100 + settings.engine.sessions * (service.pace.viewers + 4),
        request_router_config=router,
        user_config=_user_config(service),
    )
    folder = Path(web.__file__).parent
    pages = gateway_builder(GENERATOR, service.limits, folder, service.telemetry, service.books_resources)
    gateway: Any = serve.deployment(
        serve.ingress(pages)(),
        name="gateway",
        num_replicas=service.gateways,
        ray_actor_options={"num_cpus": service.gateway_cpus, "resources": dict(service.gateway_resources)},
        max_ongoing_requests=10_000,
    )
    build_one = partial(build, settings)
    named = {f.name: getattr(service, f.name) for f in fields(Around)}
    around = Around(**named | {"store_key": read_key(service.store_key)})
    generators = generator.bind(build_one, around, _segmenters(settings))
    bound: Application = gateway.bind(generators)
    return bound


def _segmenters(settings: Settings) -> Application | None:
    service = settings.service
    if settings.segmenter.kind == "none":
        return None
    segmenter: Any = serve.deployment(
        SegmenterReplica,
        name="segmenter",
        num_replicas=service.segmenters,
        ray_actor_options={
            "num_cpus": 0,
            "num_gpus": service.segmenter_gpus,
            "resources": dict(service.segmenter_resources),
        },
        max_ongoing_requests=2,
        max_queued_requests=64,  # beyond it a glimpse is refused: the anchor waits, the stream does not
    )
    bound: Application = segmenter.bind(partial(build_segmenter, settings), service.telemetry)
    return bound


def run(settings: Settings, host: str, port: int, ready: Callable[[], None]) -> None:
    """Serve until Ctrl-C: in the Ray cluster that runs here, or in one that is begun for it and ends with it."""
    serving.forever(application(settings), NAME, host, port, ready)
