"""A session as the generator's event loop sees it: its state, its viewers, and the media they may still ask for."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from actors.pace import Pace, Viewer, deadline, has_room, slowest
from actors.reel import Piece
from errors import NoCapacity
from streams.durability import UNBOOKED


class State(StrEnum):
    """Where a session is in its life. From ``paused`` it can come back, from the last three it cannot."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


IN_FLIGHT = UNBOOKED  # chunks of a session that are stepped and not yet published, at most
OVER = {State.FINISHED, State.FAILED, State.STOPPED}


@dataclass
class Watching:
    """A viewer, and the event that something changed for it."""

    viewer: Viewer
    news: asyncio.Event = field(default_factory=asyncio.Event)
    dropped: str = ""


@dataclass
class Live:
    """One session; only the event loop touches it.

    Args:
        base: newest chunk that was acknowledged by a viewer that left.
        held: paused by a person, so that only a person resumes it; otherwise a viewer's return does.
        since: when it came into its present state, or when its last viewer left.
        pieces: the newest media, at most ``pace.kept``.
        looking: whether the segmenter is at work for it.
        blind: why the segmenter saw nothing when it last looked.
        made: index of the chunk to be stepped next; those before it that are not published yet are ``in_flight``.
        ended: whether its last chunk has been stepped.
        moving: it is being handed over, and must not be brought back meanwhile.
        moved: another generator has it now.
        directing: held by the direction that is being carried out: they take effect in the order in which they came.
        turning: held while it is put away or brought back for whoever asked; the step loop never waits for it.
        tried_at: when it was last to be brought back though nobody asked.
        stepped_at: when it was last stepped; of those that are due at the same time, who waits longest is served.
    """

    id: str
    pace: Pace
    seconds: float
    since: float
    owner: str = ""
    state: State = State.RUNNING
    reason: str = ""
    held: bool = False
    base: int = -1
    next_chunk: int = 0
    header: bytes = b""
    mime: str = ""
    looking: bool = False
    blind: str = ""
    in_flight: int = 0
    ended: bool = False
    moving: bool = False
    moved: bool = False
    publishing: "asyncio.Task[None] | None" = None
    directing: asyncio.Lock = field(default_factory=asyncio.Lock)
    turning: asyncio.Lock = field(default_factory=asyncio.Lock)
    tried_at: float = float("-inf")
    shown: bool = False
    stepped_at: float = float("-inf")
    misses: int = 0
    watching: dict[str, Watching] = field(default_factory=dict)
    pieces: deque[Piece] = field(default_factory=deque)

    @property
    def viewers(self) -> list[Viewer]:
        """All viewers."""
        return [w.viewer for w in self.watching.values()]

    @property
    def due(self) -> bool:
        """Whether its next chunk may be made now."""
        return self.goes_on and self.in_flight < IN_FLIGHT

    @property
    def goes_on(self) -> bool:
        """Whether its next chunk may be made, now or when those before it are published."""
        running = self.state is State.RUNNING and not self.ended
        return running and has_room(self.made, self.base, self.viewers, self.pace)

    @property
    def waits(self) -> bool:
        """Whether it is put away, and nothing but that keeps its viewers from their next chunk."""
        away = self.state is State.PAUSED and not (self.held or self.moving or self.ended or self.turning.locked())
        return away and bool(self.watching) and has_room(self.made, self.base, self.viewers, self.pace)

    def owes(self, now: float) -> bool:
        """Whether a viewer has run dry and waits for a chunk that is being made, or may be."""
        coming = self.made > self.next_chunk or self.goes_on
        return self.state is State.RUNNING and coming and now > deadline(self.next_chunk, self.viewers, self.seconds)

    @property
    def deadline(self) -> float:
        """When its next chunk is wanted."""
        return deadline(self.made, self.viewers, self.seconds)

    def enter(self, state: State, now: float, reason: str = "", held: bool = False) -> None:
        """Come into another state; viewers are told."""
        self.state, self.since, self.reason, self.held = state, now, reason, held
        self.tell()

    def tell(self) -> None:
        """Wake everybody who watches."""
        for watching in self.watching.values():
            watching.news.set()

    def __post_init__(self) -> None:
        self.created, self.made = self.since, self.next_chunk

    def publish(self, piece: Piece, now: float) -> bool:
        """Add the newest piece; the oldest goes if there are too many. Returns whether it came too late."""
        late = now > deadline(piece.index, self.viewers, self.seconds)
        self.misses += late
        self.pieces.append(piece)
        self.next_chunk = piece.index + 1
        while len(self.pieces) > self.pace.kept:
            self.pieces.popleft()
        self.tell()
        return late

    def attach(self, name: str, after: int | None, from_key: bool, credits: int, now: float) -> tuple[Watching, int]:
        """A viewer comes, or comes back; returns it and how many chunks after ``after`` it will miss.

        Args:
            after: newest chunk that the viewer has, ``None`` for one that wants the newest picture.
            from_key: it cannot go on in the midst of a group of pictures, as a player that was loaded anew.

        Raises:
            NoCapacity: too many viewers.
        """
        if len(self.watching) >= self.pace.viewers and name not in self.watching:
            raise NoCapacity(f"{self.id} has {len(self.watching)} viewers; expected at most {self.pace.viewers}")
        begin = self._begin(after, from_key)
        missed = 0 if after is None else max(0, begin - after - 1)
        self.watching[name] = Watching(Viewer(begin - 1, min(credits, self.pace.kept), now))
        return self.watching[name], missed

    def _begin(self, after: int | None, from_key: bool) -> int:
        """The chunk that a viewer begins with."""
        kept = list(self.pieces)
        if not kept:
            return self.next_chunk
        wanted = kept[-1].index if after is None else after + 1
        if after is not None and not from_key and wanted >= kept[0].index:
            return min(wanted, self.next_chunk)
        keys = [piece.index for piece in kept if piece.key]
        before = [index for index in keys if index <= wanted]
        return before[-1] if before else (keys[0] if keys else self.next_chunk)

    def detach(self, name: str, now: float) -> None:
        """A viewer has gone; unknown ones are no error."""
        gone = self.watching.pop(name, None)
        if gone is not None:
            gone.dropped = gone.dropped or "the viewer has left"  # ends its messages, if they are still waited for
            gone.news.set()
            self.base = max(self.base, gone.viewer.acked)
            if not self.watching:
                self.since = now

    def stalled(self, now: float) -> list[str]:
        """Viewers that keep others or the session waiting for longer than ``pace.patience_s``."""
        if self.state is State.FINISHED:
            return [name for name, w in self.watching.items() if now - w.viewer.heard > self.pace.patience_s]
        if self.state is not State.RUNNING or self.due:
            return []
        return [
            name
            for name, w in self.watching.items()
            if now - w.viewer.heard > self.pace.patience_s and self.made > w.viewer.acked + self.pace.lead
        ]

    def wanted(self, newest: int) -> list[Piece]:
        """Media that some viewer has not acknowledged, and at least so many of the newest."""
        behind = slowest(self.viewers)
        acked = self.base if behind is None else behind.acked
        return [p for p in self.pieces if p.index > acked or p.index >= self.next_chunk - newest]

    def take(self, watching: Watching) -> list[Piece]:
        """What may be sent to a viewer now; booked as sent."""
        viewer = watching.viewer
        ready = [p for p in self.pieces if viewer.sent < p.index <= viewer.window]
        if ready:
            viewer.sent = ready[-1].index
        return ready
