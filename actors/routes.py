"""Where a process sends its requests: the generator of each session, and the generators that there are."""

import threading
from collections import OrderedDict

KNOWN = 4096  # sessions whose generator is remembered


class Routes:
    """Written by the router of a process, and read by what asks and is asked there; from any thread.

    ``listed``: generators that requests are sent to, as Serve said last; none before it said so.
    """

    def __init__(self, known: int = KNOWN) -> None:
        self.listed: frozenset[str] = frozenset()
        self._most, self._known, self._lock = known, OrderedDict[str, str](), threading.Lock()

    def home(self, session: str) -> str | None:
        """The generator that had ``session`` when it was last found."""
        with self._lock:
            return self._known.get(session)

    def found(self, session: str, home: str) -> None:
        """``session`` is in ``home``; whoever was not asked for longest is forgotten where there are too many."""
        with self._lock:
            self._known[session] = home
            self._known.move_to_end(session)
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def forget(self, session: str) -> None:
        """``session`` was not where it was thought to be, or moves; unknown ones are no error."""
        with self._lock:
            self._known.pop(session, None)


ROUTES = Routes()  # one a process: Serve makes routers by the name of their class, and gives them to nobody
