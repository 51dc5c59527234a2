"""What the restore stores of other nodes have of a session that comes here. For the compute thread."""

import logging
from collections.abc import Sequence
from typing import cast

from actors.worker import Site, Stocked, Worker
from cache.tiers import RestoreTier
from errors import RecordLost, ServiceError
from streams.durability import everything, shelves

LANDING_S = 5.0
LOG = logging.getLogger("longtake.generator")


def snapshot(worker: Worker, session: str) -> bytes:
    """The stream of a session that is put away, from this node's vault or another's. Raises ``RecordLost``."""
    try:
        return worker.vault.take(session)
    except RecordLost as error:
        for site in worker.others():
            try:
                return site.vault.take(session)
            except (RecordLost, ServiceError):
                continue
        raise error


def drop_snapshot(worker: Worker, session: str) -> None:
    """Forget a session that is put away, wherever it is."""
    worker.vault.drop(session)
    for site in worker.others():
        site.vault.drop(session)


def shelter(worker: Worker, session: str) -> None:
    """Have a session that is put away in this node's vault. Raises ``RecordLost`` and ``NoCapacity``."""
    worker.vault.put(session, snapshot(worker, session))
    for site in worker.others():
        site.vault.drop(session)


def gather(worker: Worker, stream: str) -> None:
    """Bring what other stores have of a stream and this node's lacks, a chunk at a time; what is lost is lost."""
    others = worker.others()
    if not others:
        return
    for shelf in shelves(stream):
        _gather_shelf(worker.engine.tier, others, shelf)


def _gather_shelf(tier: RestoreTier, others: Sequence[Site], shelf: str) -> None:
    chunks_of(cast(Stocked, tier), shelf)  # from now on it knows what it has
    for site in others:
        for chunk in chunks_of(site.tier, shelf):
            there, here = site.tier.holds(shelf, chunk), tier.holds(shelf, chunk)
            try:
                if there.latents and not here.latents:
                    tier.keep_latents(shelf, chunk, site.tier.latents(shelf, chunk))
                for kind in there.types - here.types:
                    tier.offload(shelf, chunk, kind, site.tier.fetch(shelf, chunk, kind))
                tier.landed().result(LANDING_S)
            except (RecordLost, TimeoutError) as error:
                LOG.warning("a record stayed elsewhere", extra={"chunk": chunk, "reason": str(error)})


def chunks_of(tier: Stocked, shelf: str) -> list[int]:
    """Chunks of which a store has a record, none if it does not answer; from then on it knows what it has."""
    try:
        return tier.chunks(shelf)
    except RecordLost:
        return []


def clear(worker: Worker, stream: str) -> None:
    """What other stores have of a stream that goes on under another name."""
    for site in worker.others():
        for shelf in everything(stream):
            site.tier.close(shelf)
