"""The alerts. Each has a paragraph of its own in ``docs/runbook.md``, which its ``runbook_url`` leads to."""

from dataclasses import dataclass
from typing import Literal

from monitoring.dashboards import CREATE
from monitoring.queries import CLUSTER, Scope, or_none, share

RECENT = Scope("", "5m")
EVER = "10m"


@dataclass(frozen=True)
class Alert:
    """Something that a person should know.

    Args:
        severity: ``critical``: viewers see it now, or something acknowledged is at stake. ``warning``: before long.
        value: what is measured; there is one wherever the service runs.
        when: the comparison that makes it fire.
        held: how long it must be so.
        says: one sentence, without figures.
        panel: dashboard and panel that show it.
        needs: what must be there for it to have a value, if that is not so everywhere.
    """

    name: str
    severity: Literal["critical", "warning"]
    value: str
    when: str
    held: str
    says: str
    panel: tuple[str, str]
    needs: str = ""

    @property
    def expression(self) -> str:
        """What Prometheus evaluates."""
        return f"({self.value}) {self.when}"


def everywhere(expression: str, *by: str) -> str:
    """The sum of a cluster, by tags: several clusters may report to one Prometheus."""
    return RECENT.total(expression, CLUSTER, *by)


def rate(name: str, *by: str, **where: str) -> str:
    """Of a cluster, per second."""
    return everywhere(RECENT.rate(name, **where), *by)


def now(name: str, *by: str, **where: str) -> str:
    """Of a cluster, as it is."""
    return everywhere(RECENT.now(name, **where), *by)


def grown(name: str, *by: str, **where: str) -> str:
    """Of a cluster, in the last ten minutes."""
    return everywhere(RECENT.grown(name, EVER, **where), *by)


SESSIONS = now("sessions")
STREAMS = (
    Alert(
        "LongtakeGone",
        "critical",
        f"count({RECENT.now('sessions')}) or vector(0)",
        "< 1",
        "2m",
        "No generator reports.",
        ("streams", "Sessions by state"),
    ),
    Alert(
        "LongtakeStreamsStalled",
        "critical",
        now("stalled"),
        "> 0",
        "1m",
        "Viewers have run dry and wait for a chunk.",
        ("streams", "Starting and stalled"),
    ),
    Alert(
        "LongtakeDeadlinesMissed",
        "warning",
        share(rate("deadline_misses"), rate("chunks")),
        "> 0.01",
        "5m",
        "More than one chunk in a hundred comes after a viewer has run dry.",
        ("streams", "Deadline misses"),
    ),
    Alert(
        "LongtakeFirstFrameSlow",
        "warning",
        RECENT.quantile_over(0.95, "first_chunk_seconds", EVER, CLUSTER),
        "> 3",
        "10m",
        "One session in twenty waits more than three seconds for its first frame.",
        ("streams", "Time to first frame"),
    ),
    Alert(
        "LongtakeSessionsFailed",
        "warning",
        everywhere(f"max_over_time({RECENT.now('sessions', state='failed')}[{EVER}])"),
        "> 0",
        "0m",
        "Sessions have failed.",
        ("streams", "Sessions by state"),
    ),
    Alert(
        "LongtakePlacesTaken",
        "warning",
        or_none(rate("requests", call=CREATE, outcome="429"), SESSIONS),
        "> 0",
        "10m",
        "Sessions are refused because every place is taken.",
        ("streams", "Sessions asked for"),
    ),
    Alert(
        "LongtakeCallsFail",
        "warning",
        share(rate("requests", outcome="500|502|503|504"), rate("requests")),
        "> 0.01",
        "5m",
        "More than one call in a hundred fails.",
        ("streams", "Calls"),
    ),
    Alert(
        "LongtakeViewersStall",
        "warning",
        f"{or_none(grown('viewer_stalls'), now('viewers'))} / clamp_min({now('viewers')}, 1)",
        "> 0.2",
        "10m",
        "Many viewers acknowledge nothing for too long.",
        ("viewers", "Viewers that stalled, in ten minutes"),
    ),
)

GENERATORS = (
    Alert(
        "LongtakeGeneratorBusy",
        "warning",
        rate("step_seconds", "replica"),
        "> 0.9",
        "10m",
        "A generator computes nearly all the time and has no slack left.",
        ("generator", "Time the model computes"),
    ),
    Alert(
        "LongtakeGpuMemoryTight",
        "warning",
        f"{now('gpu_bytes', 'replica', what='used')} / {now('gpu_bytes', 'replica', what='capacity')}",
        "> 0.97",
        "5m",
        "A GPU's memory is nearly used up.",
        ("generator", "GPU memory"),
        needs="a GPU",
    ),
    Alert(
        "LongtakeDriftPersists",
        "warning",
        f"{now('repair_rung', rung='drop_drifted_recent|reestablish_scene')} / {now('sessions', state='running')}",
        "> 0.25",
        "10m",
        "Many sessions stay on the upper rungs of the repair ladder.",
        ("cache", "Repair rungs"),
    ),
    Alert(
        "LongtakeMemoryLost",
        "warning",
        or_none(grown("restores", verdict="lost"), SESSIONS),
        "> 0",
        "0m",
        "A scene returned without some of its memory.",
        ("cache", "Restores in ten minutes"),
    ),
)

DAMAGED = "misses_damaged|misses_foreign"
STORE = (
    Alert(
        "LongtakeStoreDegraded",
        "critical",
        RECENT.total(RECENT.now("store_degraded", what="degraded"), CLUSTER, "node"),
        "> 0",
        "1m",
        "A restore store works without its disk.",
        ("store", "Disk"),
    ),
    Alert(
        "LongtakeVerificationFailed",
        "warning",
        f"{grown('store_misses', what=DAMAGED)} + {grown('transfer_failures', what='unverified')}"
        f" + {grown('store_transfers_failed', what='transfer_failed_unverified')}",
        "> 0",
        "0m",
        "What was read or came over was not what had been written; it was not used.",
        ("store", "Verification failures in ten minutes"),
    ),
    Alert(
        "LongtakeLatentsDropped",
        "warning",
        grown("store_dropped", "node", what="dropped_latents|dropped_disk_latents"),
        "> 0",
        "0m",
        "A restore store is full, and chunks left it for good.",
        ("store", "Records that made room, in ten minutes"),
    ),
    Alert(
        "LongtakeStoreSilent",
        "warning",
        f"{grown('store_failures')} + {grown('store_refused')}",
        "> 10",
        "5m",
        "A restore store does not answer, or is too slow for what is sent to it.",
        ("store", "Not kept, in ten minutes"),
    ),
    Alert(
        "LongtakeTransfersBuried",
        "warning",
        now("transfer_graveyard_bytes"),
        "> 0",
        "10m",
        "Slots of the transport cannot be used because lost transfers may still touch them.",
        ("store", "Bytes in the grave"),
    ),
)

LEDGER = (
    Alert(
        "LongtakeCommitsSlow",
        "warning",
        RECENT.quantile(0.99, "commit_seconds", CLUSTER, "shard"),
        "> 0.1",
        "10m",
        "A shard of the ledger service takes more than a tenth of a second to book.",
        ("ledger", "Commit latency at the shard"),
    ),
    Alert(
        "LongtakeJournalDown",
        "critical",
        now("journal_down", "shard"),
        "> 0",
        "1m",
        "A shard cannot write its journal, and its streams stand still.",
        ("ledger", "Journal down"),
    ),
    Alert(
        "LongtakeJournalBehind",
        "warning",
        now("journal_unwritten", "shard"),
        "> 0",
        "5m",
        "Books of sessions are not in the journal.",
        ("ledger", "Journal lag"),
    ),
    Alert(
        "LongtakeJournalDamaged",
        "critical",
        grown("journal_troubles", "shard", what="damaged|lost"),
        "> 0",
        "0m",
        "A journal was damaged, or books in it could not be taken up.",
        ("ledger", "Journal troubles in ten minutes"),
    ),
    Alert(
        "LongtakeCommitsUndurable",
        "warning",
        share(rate("undurable"), rate("ledger_entries")),
        "> 0.01",
        "5m",
        "Commits are booked before the restore store has what must survive a generator.",
        ("ledger", "Undurable commits"),
    ),
)

GROUPS = {"streams": STREAMS, "generators": GENERATORS, "store": STORE, "ledger": LEDGER}
ALL = tuple(alert for group in GROUPS.values() for alert in group)
