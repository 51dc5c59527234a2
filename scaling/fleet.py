"""How many generators there are to be: more before slack is gone, less by draining whoever is missed least."""

import math
from dataclasses import dataclass

from scaling.rules import Rules
from scaling.snapshot import Generator, Snapshot

HALF = 0.5  # of ``Fleet.busy``: with shorter steps it is not for the generators that chunks are late


@dataclass(frozen=True)
class Resized:
    """What is to become of the fleet.

    Args:
        add: generators to be started.
        drain: those that get no more sessions, and whose sessions go elsewhere.
        reopen: those that were drained and are wanted again, before others are started.
        remove: those that are drained and empty, and may be ended.
    """

    add: int = 0
    drain: tuple[str, ...] = ()
    reopen: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


def resize(snapshot: Snapshot, rules: Rules) -> Resized:
    """More generators, or less, or neither; never more than ``most``, never less than ``least`` or than is needed."""
    fleet, open_, coming = rules.fleet, snapshot.open, len(snapshot.open) + snapshot.starting
    drained = [g for g in snapshot.generators if g.draining]
    wanted = max(rules.least, min(rules.most, needed(snapshot, fleet.busy, fleet.full, fleet.start_s)))
    if wanted <= coming and _late(snapshot, rules):
        wanted = min(rules.most, coming + 1)
    if wanted > coming and (snapshot.since_out_s >= fleet.out_s or coming < rules.least):
        reopen = tuple(g.name for g in sorted(drained, key=_missed)[::-1][: wanted - coming])
        room = rules.most - len(snapshot.generators) - snapshot.starting
        return Resized(max(0, min(wanted - coming - len(reopen), room)), (), reopen, _empty(drained, reopen))
    calm = max(rules.least, needed(snapshot, fleet.calm, fleet.empty, fleet.start_s))
    many = min(len(open_) - calm, max(1, int(len(open_) * fleet.share)))
    quiet = min(snapshot.since_in_s, snapshot.since_out_s) >= fleet.in_s and not snapshot.starting
    if many > 0 and quiet and not _late(snapshot, rules):
        going = tuple(g.name for g in sorted(open_, key=_missed)[:many])
        return Resized(0, going, (), _empty(drained))
    return Resized(remove=_empty(drained))


def needed(snapshot: Snapshot, busy: float, full: float, ahead_s: float) -> int:
    """Generators with which a step takes at most ``busy`` of a chunk's time, and ``full`` of the places are taken.

    Load is what there is, what waits, and what will have come in ``ahead_s``. Sessions are not divisible: of seven on
    two generators one has four.
    """
    sessions = [s for g in snapshot.generators for s in g.sessions] + list(snapshot.waiting)
    promised = sum(g.promised for g in snapshot.generators)
    active = [s.load_s for s in sessions if s.load_s > 0]
    if not snapshot.generators:
        return 1 if sessions else 0
    places = min(g.places for g in snapshot.generators)
    by_places = math.ceil((len(sessions) + promised) / (places * full) - 1e-9)
    if not active:
        return by_places
    mean = sum(active) / len(active)
    load = sum(active) + promised * mean + max(0.0, snapshot.growth) * ahead_s
    room = busy * snapshot.chunk_s - max(g.base_s for g in snapshot.generators)
    together = max(1, int(room / mean + 1e-9))  # sessions in a step; one has to be, however slow
    return max(by_places, math.ceil(load / mean / together - 1e-9))


def _late(snapshot: Snapshot, rules: Rules) -> bool:
    """Whether chunks come too close to their deadlines, and what was asked for has had the time to help.

    Not where steps are short: there it is a viewer's own network that is late, which no generator helps.
    """
    waits = snapshot.starting or snapshot.since_out_s < rules.fleet.start_s
    busy = [g for g in snapshot.open if g.latency_s >= HALF * rules.fleet.busy * snapshot.chunk_s]
    slack = min((g.slack_s for g in busy), default=math.inf)
    return slack < rules.fleet.slack * snapshot.chunk_s and not waits


def _missed(generator: Generator) -> tuple[int, float, int, str]:
    return generator.leaves, generator.latency_s, len(generator.sessions), generator.name


def _empty(drained: list[Generator], but: tuple[str, ...] = ()) -> tuple[str, ...]:
    return tuple(g.name for g in drained if not g.sessions and not g.promised and g.name not in but)
