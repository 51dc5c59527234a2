"""Every metric of the service, declared once: what is exported, what tests count, and what dashboards are made of."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal, Protocol

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.64, 1.0, 2.0, 5.0, 10.0, 30.0)
BOOKED = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)  # seconds


@dataclass(frozen=True)
class Metric:
    """One metric; ``name`` without the prefix that all have."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


PREFIX = "longtake_"
METRICS = {
    metric.name: metric
    for metric in (
        Metric("sessions", "gauge", "Sessions of this generator, by state", ("state",)),
        Metric("starting", "gauge", "Sessions of which no chunk has been published yet"),
        Metric("stalled", "gauge", "Sessions that a viewer has run dry of, and that owe it a chunk"),
        Metric("viewers", "gauge", "Viewers of this generator's sessions"),
        Metric("unpublished", "gauge", "Sessions with chunks that are stepped and not published yet"),
        Metric("chunks", "counter", "Chunks published"),
        Metric("media_seconds", "counter", "Seconds of media published"),
        Metric("step_seconds", "counter", "Seconds that the model computed; a histogram's sum is Ray's estimate"),
        Metric(
            "chunk_seconds",
            "histogram",
            "Seconds of a step by phase: compute (the model, for the whole batch), encode, ledger, total",
            ("phase",),
            SECONDS,
        ),
        Metric("batch_sessions", "histogram", "Sessions in a step", (), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)),
        Metric("deadline_misses", "counter", "Chunks published after a viewer had run dry"),
        Metric("first_chunk_seconds", "histogram", "Seconds from a session's creation to its first chunk", (), SECONDS),
        Metric("viewer_stalls", "counter", "Viewers that acknowledged nothing for too long", ("outcome",)),
        Metric("drift_score", "histogram", "Drift of published chunks", (), (0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 10)),
        Metric("repair_rung", "gauge", "Sessions on each rung of the repair ladder", ("rung",)),
        Metric("decisions", "counter", "Decisions of cache managers: evict, restore, epoch, ...", ("action", "type")),
        Metric("cache_bytes", "gauge", "Bytes of kept chunks, by attention type and role", ("type", "role")),
        Metric("pool_bytes", "gauge", "Bytes of the memory pool: held and capacity", ("what",)),
        Metric(
            "gpu_bytes", "gauge", "Bytes of a generator's GPU: allocated, reserved, used (by all), capacity", ("what",)
        ),
        Metric("ledger_entries", "counter", "Commits by what the ledger service said", ("verdict",)),
        Metric("journal_down", "gauge", "1 while a shard of the ledger service cannot write its journal", ("shard",)),
        Metric("journal_unwritten", "gauge", "Sessions of a shard that are to be written to its journal", ("shard",)),
        Metric("journal_bytes", "gauge", "Bytes of a shard's journal: live, held", ("shard", "what")),
        Metric("journal_troubles", "gauge", "Of a shard's journal: failures, damaged, lost", ("shard", "what")),
        Metric(
            "commit_seconds",
            "histogram",
            "Seconds of a shard for a call that books, its journal included",
            ("shard",),
            BOOKED,
        ),
        Metric("undurable", "counter", "Commits that were booked before the restore store had what must survive"),
        Metric("takeovers", "counter", "Sessions taken over from other generators"),
        Metric("restores", "gauge", "Chunks that came back, or did not, by tier and verdict", ("tier", "verdict")),
        Metric(
            "restore_seconds",
            "gauge",
            "Seconds that plans were predicted to take to bring chunks back, and took",
            ("what",),
        ),
        Metric(
            "prefetched",
            "gauge",
            "Records by what became of their prefetch: hits, late, misses, refused, dropped",
            ("outcome",),
        ),
        Metric("staging_bytes", "gauge", "Bytes prefetched or on their way: held and budget", ("what",)),
        Metric("store_refused", "gauge", "Payloads that were not kept because too much was on its way to the store"),
        Metric("store_unmirrored", "gauge", "Steps whose latents the mirror had not taken in time, or that had none"),
        Metric("store_failures", "gauge", "Calls that the restore store did not answer"),
        Metric(
            "transfer_bytes",
            "gauge",
            "Bytes to and from the restore store, by the way they went",
            ("direction", "path"),
        ),
        Metric("transfer_inline", "gauge", "Payloads that went within calls although there are slots", ("reason",)),
        Metric(
            "transfer_failures",
            "gauge",
            "Transfers that failed: unverified, recycled, gone, pending, failed",
            ("what",),
        ),
        Metric("transfer_slots", "gauge", "Slots of the transport: free, leased, held, grave", ("use",)),
        Metric("transfer_graveyard_bytes", "gauge", "Bytes not used because a lost transfer may still touch them"),
        Metric("store_bytes", "gauge", "Bytes of the restore store by tier: records, vault, budgets", ("node", "what")),
        Metric("store_dropped", "gauge", "Records that had to make room in the restore store", ("node", "what")),
        Metric("store_hits", "gauge", "Fetches answered by the restore store, by tier", ("node", "what")),
        Metric("store_misses", "gauge", "Fetches not answered: absent, damaged, foreign, io", ("node", "what")),
        Metric("store_degraded", "gauge", "If the store's disk fails, how often, what is unerased", ("node", "what")),
        Metric(
            "store_transfers_failed",
            "gauge",
            "Transfers that failed at the store: unverified, failed",
            ("node", "what"),
        ),
        Metric("store_removed", "gauge", "Files that were no records when the disk was opened", ("node", "what")),
        Metric("requests", "counter", "Calls of gateways", ("call", "outcome")),
        Metric("sockets", "gauge", "Open sockets of viewers at this gateway"),
    )
}


class Meter(Protocol):
    """Takes values of ``METRICS``; every tag must be given."""

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        """Add to a counter."""
        ...

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Put a value into a histogram."""
        ...


class Tally:
    """A meter that keeps counts, newest gauges, and counts and sums of histograms, for one process."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.gauges: dict[tuple[str, ...], float] = {}
        self.sums: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        """See ``Meter``."""
        self.counts[self._key(name, "counter", tags)] += value  # type: ignore[assignment]

    def set(self, name: str, value: float, **tags: str) -> None:
        """See ``Meter``."""
        self.gauges[self._key(name, "gauge", tags)] = value

    def observe(self, name: str, value: float, **tags: str) -> None:
        """See ``Meter``."""
        key = self._key(name, "histogram", tags)
        self.counts[key] += 1
        self.sums[key] += value

    @staticmethod
    def _key(name: str, kind: str, tags: dict[str, str]) -> tuple[str, ...]:
        metric = METRICS[name]
        if metric.kind != kind or set(tags) != set(metric.tags):
            raise ValueError(f"{name} is a {metric.kind} with tags {metric.tags}; got a {kind} with {tuple(tags)}")
        return (name, *(tags[tag] for tag in metric.tags))
