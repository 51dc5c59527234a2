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
from settings import Settings, build_segmenter, build_worker, load

NAME, GENERATOR = "longtake", "generator"


class Arguments(BaseModel):
    """Arguments of the application; ``settings``: path of a YAML file."""

    settings: str | None = None


def app(arguments: Arguments) -> Application:
    """The application that ``serve run``, ``serve build`` and ``serve deploy`` take."""
    return application(load(Path(arguments.settings) if arguments.settings else None))


def application(settings: Settings) -> Application:
    """Generators behind gateways, by these settings."""
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
        num_replicas=service.generators,
        ray_actor_options={"num_cpus": service.cpus, "num_gpus": service.gpus},
        # Every viewer is one request that lasts; who may watch is for the pace to say.
        max_ongoing_requests=100 + settings.engine.sessions * (service.pace.viewers + 4),
        request_router_config=router,
        user_config={"pace": asdict(service.pace)},
    )
    build = gateway_builder(GENERATOR, NAME, service.limits, Path(web.__file__).parent, service.telemetry)
    gateway: Any = serve.deployment(
        serve.ingress(build)(),
        name="gateway",
        num_replicas=service.gateways,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000,
    )
    build_one = partial(build_worker, settings)
    around = Around(**{f.name: getattr(service, f.name) for f in fields(Around)})
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
        ray_actor_options={"num_cpus": 0, "num_gpus": service.segmenter_gpus},
        max_ongoing_requests=2,
        max_queued_requests=64,  # beyond it a glimpse is refused: the anchor waits, the stream does not
    )
    bound: Application = segmenter.bind(partial(build_segmenter, settings), service.telemetry)
    return bound


def run(settings: Settings, host: str, port: int, ready: Callable[[], None]) -> None:
    """Serve until Ctrl-C: in the Ray cluster that runs here, or in one that is begun for it and ends with it."""
    serving.forever(application(settings), NAME, host, port, ready)
