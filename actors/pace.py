"""When a session's next chunk is due: a bounded lead over its slowest viewer, and that viewer's clock as deadline.

Times are seconds of a monotonic clock, chunks are counted by their index. All numbers here are our own design.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from errors import BadMessage, ConfigError


@dataclass(frozen=True)
class Pace:
    """How far generation runs ahead, and how long it waits.

    Args:
        lead: chunks that may be made beyond the last one that the slowest viewer acknowledged; also how many chunks a
            control comes late at most.
        patience_s: how long a session waits for a viewer that acknowledges nothing before it is paused.
        idle_s: how long a session without viewers is kept in the pool before it is paused.
        away_s: how long a session that is put away is kept while nobody watches; then it is stopped.
        linger_s: how long a finished take can still be watched before it is closed.
        batch: most sessions in one step.
        kept: chunks of media that are kept for viewers that come back; at least ``lead``.
        viewers: most viewers of one session.
    """

    lead: int = 4
    patience_s: float = 30.0
    idle_s: float = 60.0
    away_s: float = 86_400.0
    linger_s: float = 60.0
    batch: int = 16
    kept: int = 48
    viewers: int = 16

    def __post_init__(self) -> None:
        for name in ("lead", "batch", "viewers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pace.{name} is {getattr(self, name)}; expected at least 1")
        if self.kept < self.lead:
            raise ConfigError(f"pace.kept is {self.kept}; expected at least pace.lead, which is {self.lead}")
        for name in ("patience_s", "idle_s", "away_s", "linger_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"pace.{name} is {getattr(self, name)}; expected more than 0 seconds")


@dataclass
class Viewer:
    """One viewer of one session, by what it has acknowledged.

    Args:
        acked: newest chunk that it has; what it begins after.
        credits: chunks beyond ``acked`` that it is willing to take.
        buffered: seconds of media that it had not yet played when it last said so; ``None`` for one that does not play
            and takes what comes (a file).
        heard: when it last acknowledged something.
        sent: newest chunk that was sent to it.
    """

    acked: int
    credits: int
    heard: float
    buffered: float | None = None
    sent: int = -1

    def __post_init__(self) -> None:
        self.sent = self.acked

    def acknowledge(self, chunk: int, credits: int, buffered: float | None, now: float, pace: Pace) -> bool:
        """Take an acknowledgement; returns whether it says more than the one before.

        Raises:
            BadMessage: of a chunk that was never sent or is older than the last, or more credits than are given; the
                viewer is as before.
        """
        if not self.acked <= chunk <= self.sent:
            raise BadMessage(f"ack of chunk {chunk}; expected one of {self.acked} to {self.sent}, which were sent")
        if not 0 <= credits <= pace.kept:
            raise BadMessage(f"ack with {credits} credits; expected 0 to {pace.kept}")
        if buffered is not None and not 0 <= buffered < float("inf"):
            raise BadMessage(f"ack with {buffered} s buffered; expected seconds, 0 or more")
        more = chunk > self.acked or credits > self.credits
        if more:
            self.heard = now
        self.acked, self.credits, self.buffered = chunk, credits, buffered
        return more

    @property
    def window(self) -> int:
        """Newest chunk that may be sent."""
        return self.acked + self.credits

    def runs_dry(self, chunk: int, seconds: float) -> float:
        """When it will want ``chunk`` to play on; ``seconds`` is the duration of a chunk."""
        if self.buffered is None:
            return float("inf")
        return self.heard + self.buffered + (chunk - self.acked - 1) * seconds


def slowest(viewers: Iterable[Viewer]) -> Viewer | None:
    """The viewer that the others wait for."""
    return min(viewers, key=lambda viewer: (viewer.acked, viewer.heard), default=None)


def has_room(next_chunk: int, base: int, viewers: Iterable[Viewer], pace: Pace) -> bool:
    """Whether ``next_chunk`` is within the lead; ``base``: newest chunk that was acknowledged when nobody watches."""
    last = slowest(viewers)
    return next_chunk <= (base if last is None else last.acked) + pace.lead


def deadline(next_chunk: int, viewers: Iterable[Viewer], seconds: float) -> float:
    """When the first of the viewers runs dry without ``next_chunk``; infinite if nobody plays."""
    return min((viewer.runs_dry(next_chunk, seconds) for viewer in viewers), default=float("inf"))
