"""Returns that are to come, and chunks of past ones that are late: what is prefetched, and what is asked for again."""

from dataclasses import dataclass

from cache.plan import Plan
from cache.planner import returning
from cache.policies.base import Policy
from cache.staging import Staging
from streams.arrivals import Fetcher
from streams.executor import Executor
from streams.session import Session
from streams.slack import RestoreConfig

GRACE = 2  # chunks that an announced return may come late


@dataclass
class Returns:
    """Of all streams of one engine; between two chunks of a session only.

    ``loads``: whether keys and values are of use at another position.
    """

    config: RestoreConfig
    policy: Policy
    staging: Staging
    fetcher: Fetcher
    executor: Executor
    loads: bool

    def announce(self, session: Session, scene: str) -> bool:
        """Prefetch what a return to ``scene`` would bring back now, latents first; whether nothing is left to wait for.

        So it is for a scene that there is none of.
        """
        manager = session.manager
        wanted = returning(manager.books, self.policy, manager.drift.rung, scene)
        if not self.config.lead or not wanted:
            return True
        held = {chunk: self.staging.holds(session.id, chunk) for chunk, _ in wanted}
        latents = [(c, None) for c, h in held.items() if h.latents and c not in session.retained]
        key_values = [(c, t) for c, t in wanted if self.loads and t in held[c].types]
        self.staging.prefetch(session.id, [*latents, *key_values])
        session.announced_until = manager.next_chunk + self.config.lead + GRACE
        return all(parcel.answer.done() for chunk in held for parcel in self.staging.coming(session.id, chunk))

    def tend(self, session: Session) -> Plan | None:
        """Before a chunk: drop what was announced and did not come; what was postponed and is here makes a plan."""
        if session.announced_until is not None and session.manager.next_chunk > session.announced_until:
            session.announced_until = None
            self.staging.expire(session.id)
        if not session.manager.waiting:
            return None
        ready, hopeless = self.fetcher.tend(session)
        for chunk in hopeless:
            self.staging.release(session.id, chunk)
            self.executor.give_up(session, chunk, f"not back within {self.config.patience_s:g} s")
        return session.manager.welcome(ready) if ready else None
