"""Scenes: named stretches of a stream, each with its own sink, anchors, last chunks and reference statistics."""

from dataclasses import dataclass, field

from cache.drift import Reference
from errors import ConfigError, SceneExists, StreamError, UnknownScene


@dataclass(frozen=True)
class SceneConfig:
    """What a scene remembers. The numbers are our own design.

    Args:
        max_scenes: scenes remembered; beyond it the one that was left longest ago is forgotten.
        sink_chunks: first chunks of a scene that become its sink.
        anchor_every: chunks between two candidates for a scene anchor.
        anchors: anchors remembered per scene; the spread over the scene's history is kept as even as it can be.
        last_chunks: chunks before leaving that are brought back on return.
        recent_across_cut: recent chunks of the scene that was left which stay visible after a cut.
    """

    max_scenes: int = 32
    sink_chunks: int = 1
    anchor_every: int = 6
    anchors: int = 2
    last_chunks: int = 3
    recent_across_cut: int = 2

    def __post_init__(self) -> None:
        if self.max_scenes < 2:
            raise ConfigError(f"max_scenes is {self.max_scenes}; expected at least 2, the one left and the one entered")
        if self.anchor_every < 1:
            raise ConfigError(f"anchor_every is {self.anchor_every}; expected at least 1 chunk")
        for name in ("sink_chunks", "anchors", "last_chunks", "recent_across_cut"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more chunks")


@dataclass
class Scene:
    """One scene of one stream. Chunk lists are in media order."""

    name: str
    prompt: str
    entered_at: int
    sink: list[int] = field(default_factory=list)
    anchors: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    returning: list[int] = field(default_factory=list)
    reference: dict[str, Reference] = field(default_factory=dict)
    visits: int = 1

    @property
    def memory(self) -> set[int]:
        """Every chunk that this scene may ask for again."""
        return {*self.sink, *self.anchors, *self.last, *self.returning}


@dataclass
class SceneBook:
    """The scenes of one stream. Mutated by ``cut``, ``return_to``, ``book`` and ``consider_anchor``."""

    config: SceneConfig
    scenes: dict[str, Scene] = field(default_factory=dict)
    current_name: str = ""

    @property
    def current(self) -> Scene:
        """The scene on air."""
        return self.scenes[self.current_name]

    def cut(self, name: str, prompt: str, at_chunk: int) -> list[Scene]:
        """Enter a new scene before ``at_chunk``; returns the scenes that had to be forgotten (at most one)."""
        if not name:
            raise StreamError("the scene's name is empty; expected a name that a return can use")
        if name in self.scenes:
            raise SceneExists(f"scene {name!r} exists since chunk {self.scenes[name].entered_at}; return to it instead")
        self._leave()
        self.scenes[name] = Scene(name, prompt, at_chunk)
        self.current_name = name
        if len(self.scenes) <= self.config.max_scenes:
            return []
        return [self.scenes.pop(next(iter(self.scenes)))]

    def return_to(self, name: str, at_chunk: int) -> Scene:
        """Enter a known scene again before ``at_chunk``; its last chunks become those to restore."""
        if name not in self.scenes:
            known = ", ".join(repr(s) for s in self.scenes)
            raise UnknownScene(f"no scene {name!r} in this stream; known: {known}")
        if name == self.current_name:
            raise StreamError(f"scene {name!r} is on air already; a return needs a cut in between")
        self._leave()
        scene = self.scenes[name]
        scene.returning = list(scene.last)
        scene.entered_at = at_chunk
        scene.visits += 1
        self.current_name = name
        return scene

    def _leave(self) -> None:
        """Put the scene on air last, so that the first is the one that was left longest ago."""
        if self.current_name:
            self.scenes[self.current_name] = self.scenes.pop(self.current_name)

    def book(self, chunk: int) -> None:
        """Enter a committed chunk in the books of the scene on air."""
        scene, config = self.current, self.config
        if len(scene.sink) < config.sink_chunks:
            scene.sink.append(chunk)
        scene.last.append(chunk)
        del scene.last[: max(0, len(scene.last) - config.last_chunks)]

    def consider_anchor(self, chunk: int) -> None:
        """Make a chunk that leaves the recent window an anchor of the scene on air, if one is due.

        Only then: an anchor that still were a recent chunk would take two budgets and free one place too many, and the
        read would no longer be one range of places.
        """
        scene, config = self.current, self.config
        latest = max([scene.entered_at - 1, *scene.sink, *scene.anchors])
        if not config.anchors or chunk < scene.entered_at or chunk - latest < config.anchor_every:
            return
        scene.anchors.append(chunk)
        if len(scene.anchors) > config.anchors:
            scene.anchors.remove(crowded(scene.anchors))

    def remembered(self) -> set[int]:
        """Every chunk that some scene may ask for again; all others may be forgotten for good."""
        return set().union(*(scene.memory for scene in self.scenes.values()))


def crowded(anchors: list[int]) -> int:
    """The anchor with the nearest neighbours, which the spread over time misses least; never the newest.

    With anchors at even distances the second oldest goes first, so that old and new stay both represented.
    """
    if len(anchors) < 3:
        return anchors[0]
    inner = range(1, len(anchors) - 1)
    return anchors[min(inner, key=lambda i: anchors[i + 1] - anchors[i - 1])]
