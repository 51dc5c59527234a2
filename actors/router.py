"""Requests go to the generator that has the session, on Serve's public request-router API."""

import asyncio
import logging
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from actors import routes  # not what is in it: Serve pickles this module by value, and objects would be others then

FIND_S = 1.0  # how long the directory is waited for before it is asked again
LOG = logging.getLogger("longtake.gateway")


class SessionRouter(RequestRouter):
    """Looks each session up in the directory once, and again when its generator has gone or does not have it any more.

    A generator tells the directory of itself before Serve tells the routers, and dies before the directory notices: a
    request for one that is not among the candidates waits, as long as the directory believes in it. After that it goes
    to any replica, which answers that it does not know the session. The keywords ``directory`` and ``namespace`` name
    the directory's actor.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve with the router's keywords."""
        self._name, self._namespace = kwargs["directory"], kwargs["namespace"]
        self._directory: Any = None
        self._candidates: set[str] = set()
        self._stopping: set[str] = set()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve when the candidates change; the directory is told who is no longer one, or is one again.

        A replica gets no word of being stopped, and lives on for ``graceful_shutdown_timeout_s``: the directory has it
        give its sessions away in that time.
        """
        super().update_replicas(replicas)
        now = {replica.replica_id.unique_id for replica in replicas}
        routes.ROUTES.listed = frozenset(now)
        gone, back = self._candidates - now, self._stopping & now
        self._candidates, self._stopping = now, (self._stopping | gone) - back
        try:
            for name in gone:
                self._actor().stops.remote(name)
            for name in back:
                self._actor().goes_on.remote(name)
        except ValueError:  # the service is being taken down, and the directory is gone already
            LOG.warning("there is no session directory to tell of replicas")

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The one replica that has the session, or all of them for a request of no session."""
        session = "" if pending_request is None else pending_request.metadata.session_id
        if not session or not candidate_replicas:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        home = routes.ROUTES.home(session)
        assert pending_request is not None
        pending_request.routing_context.should_backoff = True  # if none is found, or the directory says nothing
        if home not in by_name:
            try:
                home = await self._find(session)
            except (TimeoutError, RayError, ValueError) as error:  # whatever is raised here, Serve forgets the request
                self._directory = None
                said = {"session": session, "reason": repr(error)}
                LOG.warning("the session directory does not answer", extra=said)
                return []
        if home is None:
            return [candidate_replicas]
        if home not in by_name:
            return []
        routes.ROUTES.found(session, home)
        return [[by_name[home]]]

    async def _find(self, session: str) -> str | None:
        routes.ROUTES.forget(session)
        async with asyncio.timeout(FIND_S):
            found: str | None = await self._actor().find.remote(session)
            return found

    def _actor(self) -> Any:
        if self._directory is None:
            self._directory = ray.get_actor(self._name, self._namespace)
        return self._directory
