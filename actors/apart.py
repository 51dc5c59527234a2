"""Calls of a deployment as requests of their own, whatever request asks for them.

Serve 2.60 gives all calls that are made within one request the internal id of that request, and its routers know those
that wait by this id: of two that wait at once, by one viewer's socket say, only one is ever found a replica. The other
stays for good, with the task that routes it, and a router has two tasks a replica. An empty context has no request, so
each call is given an id. Serve then cancels none of them with the request, so whoever is cancelled cancels what it
waits for.
"""

import asyncio
from collections.abc import Generator
from contextvars import Context
from typing import Any


class Asked:
    """An answer that is on its way; whoever waits for it and is cancelled gives the call up."""

    def __init__(self, response: Any) -> None:
        self.response = response

    async def _settled(self) -> Any:
        try:
            return await self.response
        except asyncio.CancelledError:
            self.response.cancel()
            raise

    def __await__(self) -> Generator[Any, None, Any]:
        return self._settled().__await__()


class Method:
    """A method of a deployment; ``streams``: its answer is iterated over instead of waited for."""

    def __init__(self, method: Any, streams: bool) -> None:
        self.method, self.streams = method, streams

    def remote(self, *arguments: Any) -> Any:
        """Call it."""
        response = Context().run(self.method.remote, *arguments)
        return response if self.streams else Asked(response)


class Apart:
    """A deployment's handle whose calls are requests of their own; see the module."""

    def __init__(self, handle: Any, streams: bool = False) -> None:
        self.handle, self.streams = handle, streams

    def options(self, stream: bool = False, **options: Any) -> "Apart":
        """The same deployment, asked in another way."""
        return Apart(self.handle.options(stream=stream, **options), stream)

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self.handle, name), self.streams)
