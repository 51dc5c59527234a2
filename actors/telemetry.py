"""What leaves a process about itself besides metrics: logs as JSON lines, spans to a collector."""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from opentelemetry import propagate, trace

from errors import ConfigError

LOG = logging.getLogger("longtake")
TRACER = trace.get_tracer("longtake")
Carrier = Mapping[str, str]
OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


@dataclass(frozen=True)
class Telemetry:
    """What is told of, and to whom.

    Args:
        log_level: least level that is logged.
        log_format: ``json`` (one object a line, with ``session`` and ``chunk`` where there are any) or ``text``.
        traces: URL of an OpenTelemetry collector that takes spans over HTTP, as ``http://collector:4318/v1/traces``;
            without one no spans are made.
    """

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    traces: str = ""

    def __post_init__(self) -> None:
        if self.traces and not self.traces.startswith(("http://", "https://")):
            raise ConfigError(f"telemetry.traces is {self.traces!r}; expected an http(s) URL or nothing")


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, event, and whatever was said besides."""

    def format(self, record: logging.LogRecord) -> str:
        said = {name: value for name, value in vars(record).items() if name not in OWN}
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **said,
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def begin(told: Telemetry, process: str) -> None:
    """Set this process's logs and spans up; once per process, again is no error."""
    LOG.setLevel(told.log_level.upper())
    if not LOG.handlers:
        handler = logging.StreamHandler(sys.stderr)
        text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        handler.setFormatter(JsonLines() if told.log_format == "json" else text)
        LOG.addHandler(handler)
        LOG.propagate = False
    if told.traces:
        _begin_spans(told.traces, process)


def _begin_spans(endpoint: str, process: str) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(resource=Resource.create({"service.name": f"longtake-{process}"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        trace.set_tracer_provider(provider)


def carrier() -> dict[str, str]:
    """The present span, for another process."""
    carried: dict[str, str] = {}
    propagate.inject(carried)
    return carried


@contextmanager
def span(name: str, carried: Carrier | None = None, **said: Any) -> Iterator[None]:
    """A span, in the trace that came with ``carried`` or the present one."""
    within = propagate.extract(carried) if carried else None
    with TRACER.start_as_current_span(name, context=within, attributes=said):
        yield
