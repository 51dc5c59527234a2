"""What the service tells of itself: metrics as declared, logs as JSON lines, spans that reach a collector."""

import json
import logging
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from actors.gauges import gpu
from actors.live import Live, State
from actors.metrics import METRICS, Tally
from actors.pace import Pace
from actors.restore_store import RestoreStore, metric_of
from actors.telemetry import JsonLines, Telemetry
from actors.worker import Direction
from errors import ConfigError
from tests.service import generator, run, served, until
from tests.test_generator import BALL, RING, take


def test_a_take_is_counted_in_chunks_phases_batches_decisions_and_bytes() -> None:
    async def test() -> None:
        meter = Tally()
        async with generator(Pace(lead=2), meter=meter) as made:
            await made.create("a", BALL)
            await take(made, "a", 4)
            await made.control("a", Direction("cut", RING.prompt, "yellow"))
            await take(made, "a", 8, after=3)
            await until(lambda: made.sessions["a"].next_chunk == 14)
            await made.loop.measure()
            assert meter.counts["chunks",] == 14
            for phase in ("compute", "encode", "ledger", "total"):
                assert meter.counts["chunk_seconds", phase] == 14 + (phase == "ledger")  # a control is booked too
                assert 0 < meter.sums["chunk_seconds", phase] < 120
            assert meter.sums["chunk_seconds", "total"] >= meter.sums["chunk_seconds", "compute"]
            assert (meter.counts["batch_sessions",], meter.sums["batch_sessions",]) == (14, 14)
            assert meter.counts["first_chunk_seconds",] == 1
            assert meter.counts["media_seconds",] == pytest.approx(14 * made.seconds)
            assert meter.counts["step_seconds",] == pytest.approx(meter.sums["chunk_seconds", "compute"])
            assert (meter.gauges["starting",], meter.gauges["stalled",]) == (0, 0)
            assert not [key for key in meter.gauges if key[0] == "gpu_bytes"]  # it runs on a CPU
            assert meter.counts["ledger_entries", "booked"] == 15
            assert meter.counts["decisions", "evict", "video_self"] > 0
            assert meter.counts["decisions", "cut", ""] == 1
            assert meter.gauges["sessions", "running"] == 1
            assert meter.gauges["repair_rung", "none"] == 1
            held = sum(value for key, value in meter.gauges.items() if key[0] == "cache_bytes")
            assert held == meter.gauges["pool_bytes", "held"] > 0

    run(test)


def test_a_session_is_starting_until_its_first_chunk_is_published_and_while_it_runs() -> None:
    async def test() -> None:
        meter = Tally()
        async with generator(Pace(lead=2), meter=meter) as made:
            starting = []
            await made.create("a", BALL)
            for state in (State.PAUSED, State.RUNNING):
                made.sessions["a"].enter(state, made.clock())
                made.sessions["a"].shown = False
                await made.loop.measure()
                starting.append(meter.gauges["starting",])
            await take(made, "a", 3)
            await made.loop.measure()
            assert [*starting, meter.gauges["starting",]] == [0, 1, 0]

    run(test)


def test_a_session_owes_a_chunk_if_a_viewer_has_run_dry_and_it_has_not_been_made() -> None:
    live = Live("a", Pace(lead=2), seconds=1.0, since=0.0)
    viewer = live.attach("b", -1, False, 4, now=0.0)[0].viewer
    assert not live.owes(100.0)  # it does not play: it takes what comes
    viewer.acknowledge(-1, 4, 0.5, 0.0, live.pace)
    assert (live.owes(0.4), live.owes(0.6)) == (False, True)
    live.made, live.next_chunk = 2, 1
    assert (live.owes(1.4), live.owes(1.6)) == (False, True)  # the second is on its way
    live.next_chunk = 2
    assert not live.owes(100.0)  # the viewer has all that may be made before it says that it got it
    live.made, live.next_chunk = 0, 0
    live.enter(State.PAUSED, 1.0)
    assert not live.owes(100.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_memory_of_a_gpu_is_told() -> None:
    held = torch.zeros(1 << 20, device="cuda")
    told = {tags["what"]: value for _, tags, value in gpu(held.device)}
    assert 4 << 20 <= told["allocated"] <= told["reserved"] <= told["used"] <= told["capacity"]


def test_what_a_store_has_failed_at_is_told_from_the_beginning() -> None:
    """Prometheus sees a change of a value, but none where there was no value before."""
    store = RestoreStore(1 << 20, 1 << 20)
    told = defaultdict(dict)
    for name, value in store.statistics().items():
        told[metric_of(name)][name] = value
    assert told["store_misses"] == {f"misses_{why}": 0 for why in ("absent", "damaged", "foreign", "io")}
    assert told["store_hits"] == {f"hits_{where}": 0 for where in ("host", "queue", "disk")}
    assert told["store_transfers_failed"] == {"transfer_failed_unverified": 0, "transfer_failed_failed": 0}


def test_a_metric_that_is_not_declared_or_lacks_a_tag_is_refused() -> None:
    with pytest.raises(KeyError):
        Tally().add("chunk")
    with pytest.raises(ValueError, match=r"decisions is a counter with tags \('action', 'type'\)"):
        Tally().add("decisions", action="evict")
    with pytest.raises(ValueError, match="chunks is a counter"):
        Tally().set("chunks", 1)
    for name, metric in METRICS.items():
        assert name == metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram")


def test_gateways_count_requests_by_route_and_outcome_and_open_sockets() -> None:
    async def test() -> None:
        meter = Tally()
        async with served(meter=meter) as (_, client, _url):
            session = (await client.create(BALL.prompt))["session"]
            async with client.watch(session) as watch:
                async for _message in watch:
                    break
                assert meter.gauges["sockets",] == 1
            await until(lambda: meter.gauges["sockets",] == 0)
            await client.stop(session)
            counted = {key[1:]: n for key, n in meter.counts.items() if key[0] == "requests"}
            assert counted["POST /v1/sessions", "201"] == 1
            assert counted["DELETE /v1/sessions/{session}", "200"] == 1

    run(test)


def test_a_log_line_is_one_object_with_session_and_chunk() -> None:
    record = logging.makeLogRecord({"msg": "session %s", "args": ("begins",), "levelname": "INFO", "created": 0.5})
    record.session, record.chunk, record.reason = "take-1", 7, 'a "quoted"\nreason'
    line = JsonLines().format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert (said["event"], said["session"], said["chunk"]) == ("session begins", "take-1", 7)
    assert said["time"].startswith("1970-01-01T00:00:00.")


Spans = list[tuple[str, str, str, str]]  # process, name, trace, parent


class Collector(BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    spans: Spans

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in request.resource_spans:
            process = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                self.spans += [(process, s.name, s.trace_id.hex(), s.parent_span_id.hex()) for s in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[tuple[str, Spans]]:
    """A collector on a port of its own: its URL, and the spans that reach it."""
    handler = type("Handler", (Collector,), {"spans": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", handler.spans
    finally:
        server.shutdown()
        server.server_close()


TRACED = """
import sys
from opentelemetry import trace
from actors.telemetry import Telemetry, begin, carrier, span
begin(Telemetry(traces=sys.argv[1]), sys.argv[2])
with span("outer"):
    carried = carrier()
with span("inner", carried, session="take-1"):
    pass
trace.get_tracer_provider().shutdown()
"""


def test_spans_reach_a_collector_in_the_trace_that_was_carried_over() -> None:
    with collecting() as (url, spans):
        subprocess.run([sys.executable, "-c", TRACED, url, "generator"], check=True, timeout=60)
    (_, outer, trace, root), (process, inner, same, parent) = sorted(spans, key=lambda s: s[1], reverse=True)
    assert (outer, inner, process) == ("outer", "inner", "longtake-generator")
    assert (trace, root) == (same, "")
    assert parent


def test_a_collector_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.traces is 'collector:4318'"):
        Telemetry(traces="collector:4318")
