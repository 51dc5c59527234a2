"""What things cost in a simulated cluster, and where each number is from."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import REPOSITORY
from scaling.measuring import fitted
from streams.migration import AT_A_TIME

SERVE = "bench/results/serve.json"
BATCHED = 8  # sessions of the batched rate in that file
STATE_CHUNKS, CHUNK_BYTES = 15, 0.88e9  # the default keep-set, of chunks of 0.64 s of LTX-2 at 512 × 768
STATE_BYTES = STATE_CHUNKS * CHUNK_BYTES
WAIT_S = 0.32  # what a round waits for the steps in progress
LEFT = 2  # chunks that are copied while a session stands still
CALLS_S = 0.3  # of the processes that take part; assumed, and measured for the model that ships by ``bench.moving``
PROCESS_S, FIRST_S, WEIGHTS_BYTES, DISK_BYTES_S = 6.0, 4.0, 38e9, 7e9
HOST_BYTES_S, NETWORK_BYTES_S = 55e9, 12.5e9
AWAY_MOVE_S = 2 * STATE_BYTES / HOST_BYTES_S + STATE_BYTES / NETWORK_BYTES_S  # put away and fetched: all of it
STORE_BYTES_S = 4.06e9  # to the restore store by shared memory, verified: bench/results/transfer.json, 256 MiB


@dataclass(frozen=True)
class Costs:
    """Seconds, places and money; a GPU's numbers follow from ``solo_s`` and ``base_share``.

    Args:
        chunk_s: media time of a chunk.
        solo_s: a step with one session of cost 1.
        base_share: share of that which a step takes whoever is in it.
        places: sessions that a GPU has memory for.
        start_s: from asking for a GPU to its first step.
        copy_s: how long a session that moves is copied ahead while it goes on.
        copy_step_s: what that adds to every step of the generator that it leaves and of the one that it goes to.
        move_s: how long it stands still then.
        near_s, far_s: how long one that was put away takes to come back, where it was and elsewhere.
        away_s: how long one is idle before it is put away.
        lead: chunks that viewers may have ahead.
        sources: where each number is from.
    """

    chunk_s: float = 0.64
    solo_s: float = 0.15
    base_share: float = 0.7
    places: int = 16
    start_s: float = PROCESS_S + WEIGHTS_BYTES / DISK_BYTES_S + FIRST_S
    copy_s: float = STATE_CHUNKS / AT_A_TIME * WAIT_S
    copy_step_s: float = AT_A_TIME * CHUNK_BYTES / HOST_BYTES_S
    move_s: float = CALLS_S + LEFT * CHUNK_BYTES * (2 / HOST_BYTES_S + 1 / NETWORK_BYTES_S)
    near_s: float = STATE_BYTES / HOST_BYTES_S
    far_s: float = STATE_BYTES / HOST_BYTES_S + STATE_BYTES / NETWORK_BYTES_S
    away_s: float = 10.0
    lead: int = 4
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def base_s(self) -> float:
        """A step, whoever is in it."""
        return self.solo_s * self.base_share

    @property
    def each_s(self) -> float:
        """What a session of cost 1 adds."""
        return self.solo_s - self.base_s

    def plain(self) -> dict[str, Any]:
        """For the report, rounded."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


SOURCES = {
    "chunk_s": "the generation unit of MaineCoon, arXiv 2606.17800",
    "solo_s": "assumed: a few-step model, 4.3 times real time for one session; MaineCoon on one H100: 0.34 s",
    "places": "assumed: about 200 GB beside the weights, 13 GB of keys and values a session",
    "start_s": "6 s for Ray to start a replica (measured), 38 GB of weights from NVMe, 4 s to the first step; on nodes "
    "that are there already",
    "copy_s": "computed: 15 chunks one by one (streams/migration.py), each waiting for a step of half a chunk",
    "copy_step_s": "computed: a chunk from or to pinned host memory at 55 GB/s before every step; nothing overlaps",
    "move_s": f"computed: the {LEFT} chunks that are left to host memory, over 100 Gb/s, from host memory, one after "
    "the other, and calls",
    "near_s": "computed: 13 GB from pinned host memory at 55 GB/s",
    "far_s": "computed: over 100 Gb/s first",
    "away_s": "assumed; the service's default is 60 s",
    "lead": "the service's default (actors/pace.py)",
}


def measured(file: Path | None) -> Costs:
    """The costs, with the shape of the step as this repository measured it, and with what ``file`` (JSON) says.

    Raises ``SystemExit`` for a key that there is not.
    """
    sources = dict(SOURCES)
    found = Costs()
    results = REPOSITORY / SERVE
    if results.is_file():
        rates = json.loads(results.read_text())["figures"]["throughput"]
        one, many = (float(np.median(rates[batch])) for batch in ("1", "16"))
        base, each = fitted({1: 1 / one, BATCHED: BATCHED / many})
        found = replace(found, base_share=round(base / (base + each), 3))
        sources["base_share"] = f"measured: {SERVE}, chunks a second of 8 sessions one by one and in one batch"
    if file is not None:
        given = json.loads(file.read_text())
        wrong = set(given) - {f.name for f in fields(Costs)} | {"sources"} & set(given)
        if wrong:
            raise SystemExit(f"{file}: {', '.join(sorted(wrong))}; expected keys of Costs")
        found = replace(found, **given)
        sources |= dict.fromkeys(given, f"given: {file.name}")
    return replace(found, sources=sources)
