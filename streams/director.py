"""The director: a script of scenes with durations becomes directives, each before the chunk from which it holds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from errors import ScriptError
from streams.stream import Stream

LONGEST_S, LONGEST_TEXT = 10**9, 64  # thirty years; numbers of thousands of digits are refused before they are one
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True)
class Shot:
    """One entry of a script: a new scene with its prompt, or a return to an earlier one.

    Args:
        duration: seconds of media, as a number or as ``90s``, ``5m``, ``1h30m``.
        name: of a new scene; by default ``scene-1``, ``scene-2`` and so on.
        prompt: what to show and hear in a new scene.
        subject: what to keep an eye on, for the segmenter; by default nothing is harvested.
        return_to: name of the scene to return to.
    """

    duration: float | str
    name: str = ""
    prompt: str = ""
    subject: str = ""
    return_to: str = ""

    def __post_init__(self) -> None:
        _seconds(self.duration)
        if bool(self.prompt.strip()) == bool(self.return_to):
            given = f"prompt {self.prompt!r} and return-to {self.return_to!r}"
            raise ScriptError(f"{given}; expected a prompt for a new scene or the name of a scene to return to")

    @property
    def seconds(self) -> Fraction:
        """Duration in seconds."""
        return _seconds(self.duration)


@dataclass(frozen=True)
class Script:
    """Scenes in the order in which they are shown."""

    scenes: tuple[Shot, ...]

    def __post_init__(self) -> None:
        if not self.scenes:
            raise ScriptError("the script has no scenes; expected at least one with a prompt and a duration")
        on_air = ""
        known: list[str] = []
        for i, shot in enumerate(self.scenes):
            where = f"scene {i + 1} of the script"
            if not shot.return_to:
                on_air = self.name(i)
                if on_air in known:
                    raise ScriptError(f"{where}: scene {on_air!r} exists already; return-to it, or name this one anew")
                known.append(on_air)
                continue
            if shot.return_to not in known:
                listed = ", ".join(map(repr, known)) or "none"
                raise ScriptError(f"{where}: return-to {shot.return_to!r}, but no such scene exists by then: {listed}")
            if shot.return_to == on_air:
                raise ScriptError(f"{where}: return-to {on_air!r}, which is on air; lengthen the scene before instead")
            on_air = shot.return_to

    def name(self, index: int) -> str:
        """The scene that shot ``index`` shows."""
        shot = self.scenes[index]
        return shot.return_to or shot.name or f"scene-{index + 1}"

    def chunks(self, seconds: Fraction) -> list[int]:
        """First chunk of every shot, each of which has one or more, and last the length of the take in chunks.

        Borders are rounded to whole chunks from the exact times, so that rounding never adds up.
        """
        borders, time = [0], Fraction(0)
        for shot in self.scenes:
            time += shot.seconds
            borders.append(max(borders[-1] + 1, round(time / seconds)))
        return borders

    @property
    def seconds(self) -> Fraction:
        """Duration of the whole."""
        return sum((shot.seconds for shot in self.scenes), Fraction(0))


@dataclass
class Director:
    """Gives a stream the directives of a script. ``before`` is called once before every chunk."""

    script: Script
    chunk_seconds: Fraction
    borders: Sequence[int] = field(init=False)
    shot: int = 0

    def __post_init__(self) -> None:
        self.borders = self.script.chunks(self.chunk_seconds)

    @property
    def total(self) -> int:
        """Chunks of the whole take."""
        return self.borders[-1]

    @property
    def opening(self) -> Shot:
        """The first shot; its prompt opens the stream."""
        return self.script.scenes[0]

    @property
    def subject(self) -> str:
        """Description of the subject of the scene on air, or nothing."""
        name = self.script.name(self.shot)
        described = (s.subject for i, s in enumerate(self.script.scenes) if self.script.name(i) == name and s.subject)
        return next(described, "")

    def announced(self, chunk: int, lead: int) -> str:
        """The scene that is returned to next, if that is in at most ``lead`` chunks from ``chunk``."""
        for border, shot in zip(self.borders, self.script.scenes, strict=False):
            if chunk < border <= chunk + lead and shot.return_to:
                return shot.return_to
        return ""

    def before(self, chunk: int, stream: Stream) -> None:
        """Direct ``stream`` if a shot begins with ``chunk``; announce a return that comes soon."""
        self._direct(chunk, stream)
        scene = self.announced(chunk, stream.engine.config.restore.lead)
        if scene:
            stream.announce(scene)

    def _direct(self, chunk: int, stream: Stream) -> None:
        if chunk == 0 or chunk not in self.borders[:-1]:
            return
        self.shot = self.borders.index(chunk)
        shot = self.script.scenes[self.shot]
        if shot.return_to:
            stream.return_to(shot.return_to)
        else:
            stream.cut(self.script.name(self.shot), shot.prompt, keep_subject=False)


def _seconds(duration: float | str) -> Fraction:
    """Seconds of ``12.5``, ``"90s"``, ``"1h30m"``; raises ``ScriptError`` for anything else, and for nothing at all."""
    if isinstance(duration, str):
        match = _DURATION.fullmatch(duration.strip()) if len(duration) <= LONGEST_TEXT else None
        parts = [Fraction(part or 0) for part in match.groups()] if match else []
        seconds = 3600 * parts[0] + 60 * parts[1] + parts[2] if parts else Fraction(0)
    else:
        seconds = Fraction(duration).limit_denominator(10**6) if 0 < duration < float("inf") else Fraction(0)
    if not 0 < seconds <= LONGEST_S:
        raise ScriptError(
            f"duration is {str(duration)[:LONGEST_TEXT]!r}; expected seconds such as 12.5, '90s', '5m' or '1h30m', "
            f"and at most {LONGEST_S:,}"
        )
    return seconds
