"""The planner: ranks once, then brings four ledgers, positions and store in line, in one transaction."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from cache.books import Books
from cache.drift import Rung
from cache.keep_set import Role, select
from cache.plan import Encoding, Eviction, Plan, Restoration
from cache.policies.base import Policy, View
from cache.positions import Move
from cache.spec import TYPES, AttentionType, Modality
from cache.tiers import Holdings

MEMORY_ROLES = (Role.SCENE_SINK, Role.SCENE_ANCHOR, Role.RESTORED)
AUDIO = tuple(t for t in TYPES if t.keyed_by is Modality.AUDIO)
# Audio first: a chunk comes back to a video-keyed ledger only if the audio-keyed ones have it.
AUDIO_FIRST = (*AUDIO, *(t for t in TYPES if t.keyed_by is Modality.VIDEO))
Wanted = Mapping[AttentionType, Mapping[int, Role]]


def encoding(books: Books, chunk: int) -> Encoding:
    """Encode ``chunk`` for every type that holds it."""
    return Encoding(chunk, tuple(t for t in TYPES if chunk in books.ledgers[t].entries))


def view(books: Books, rung: Rung) -> View:
    """What the policy may look at now."""
    return View(
        newest=books.next_chunk - 1,
        held=Counter(chunk for ledger in books.ledgers.values() for chunk in ledger.entries),
        scene=books.scenes.current,
        recent_across_cut=books.scenes.config.recent_across_cut,
        drift=books.drift_scores,
        mass={c: m.total / m.exposure for c, m in books.mass.items()},
        rung=rung,
        drifted_above=books.config.drift.raise_threshold,
    )


def replan(books: Books, policy: Policy, holdings: Holdings, rung: Rung) -> Plan:
    """Rank once, then bring all four ledgers, the positions and the store in line, in one transaction."""
    seen = view(books, rung)
    ranking = policy.rank(seen)
    remembered = policy.remembered(books.scenes)
    selected = {budget: select(ranking, budget) for budget in {ledger.budget for ledger in books.ledgers.values()}}
    wanted = {t: selected[ledger.budget] for t, ledger in books.ledgers.items()}
    rebuilds = books.config.positions.move == "rebuild"  # stored keys are of no use at another position then
    evictions: list[Eviction] = []
    for t in TYPES:
        entries = books.ledgers[t].entries
        for chunk in [c for c in entries if c not in wanted[t]]:
            books.log.add(seen.newest, "evict", policy.explain(chunk, seen), chunk, t)
            evictions += books.evict((t,), chunk, offload=chunk in remembered and not rebuilds)
        for chunk, entry in entries.items():
            entry.role = wanted[t][chunk]
    arrivals, rebuild = _admit(books, holdings, wanted, remembered)
    kept = books.kept()
    running_from = min(ranking[Role.RECENT], default=books.next_chunk)
    has_subject = any(ledger.subject is not None for ledger in books.ledgers.values())
    ended = books.positions.place(kept, running_from, has_subject)
    if ended:
        books.log.add(
            seen.newest, "epoch", f"{books.positions.epoch}: memory begins at distance {books.positions.reach}"
        )
    whole = ended and rebuilds
    encoded = kept if whole else sorted(rebuild)
    moves = _settle(books, {*arrivals, *((t, c) for c, types in rebuild.items() for t in types)})
    return Plan(
        chunk=seen.newest,
        evictions=tuple(evictions),
        restorations=tuple(
            Restoration(t, c, books.ledgers[t].entries[c].place, books.positions.slots[c], wanted[t][c])
            for t, c in arrivals
        ),
        moves={} if rebuilds else moves,
        encode_subject=rebuilds and has_subject and (whole or bool(moves)),
        encode=tuple(encoding(books, c) if whole else Encoding(c, tuple(rebuild[c])) for c in encoded),
        forget=_forget(books, kept, remembered) if evictions or not seen.newest % 16 else (),
        epoch_ended=ended,
    )


def returning(books: Books, policy: Policy, rung: Rung, name: str) -> list[tuple[int, AttentionType]]:
    """What a return to scene ``name`` would bring back now, most wanted first: by role, and audio before video.

    Nothing if there is no such scene, or if it is on air.
    """
    scene = books.scenes.scenes.get(name)
    if scene is None or name == books.scenes.current_name:
        return []
    entered = replace(scene, entered_at=books.next_chunk, returning=list(scene.last), visits=scene.visits + 1)
    ranking, remembered = policy.rank(replace(view(books, rung), scene=entered)), policy.remembered(books.scenes)
    wanted = {t: select(ranking, ledger.budget) for t, ledger in books.ledgers.items()}
    return [
        (chunk, t)
        for role in MEMORY_ROLES
        for chunk in ranking[role]
        for t in AUDIO_FIRST
        if wanted[t].get(chunk) is role and chunk not in books.ledgers[t].entries and chunk in remembered
    ]


def _admit(
    books: Books, holdings: Holdings, wanted: Wanted, remembered: set[int]
) -> tuple[list[tuple[AttentionType, int]], dict[int, list[AttentionType]]]:
    """Open places for wanted chunks that the store can give back.

    Returns the arrivals with keys and values, and the chunks to encode from their latents with the types to write.
    """
    found: dict[int, list[AttentionType]] = {}
    latents_only: set[int] = set()
    for t in AUDIO_FIRST:
        entries = books.ledgers[t].entries
        missing = [c for c, r in wanted[t].items() if r in MEMORY_ROLES and c not in entries and c in remembered]
        for chunk in sorted(missing):
            if (t, chunk) in books.lost or any((a, chunk) in books.waiting for a in (t, *AUDIO)):
                continue
            held = holdings.holds(books.session, chunk)
            whole = t in held.types and books.config.positions.move == "relocate"
            heard = t.keyed_by is Modality.AUDIO or all(chunk in books.ledgers[a].entries for a in AUDIO)
            if not heard or not (whole or held.latents or _retained(books, chunk)):
                books.lost.add((t, chunk))
                books.log.add(books.next_chunk, "not restored", "the store has lost it", chunk, t)
                continue
            books.ledgers[t].admit(chunk, wanted[t][chunk], books.positions.slots.get(chunk, 0))
            found.setdefault(chunk, []).append(t)
            if not whole:
                latents_only.add(chunk)
            how = "keys and values" if whole else "encoded from latents"
            books.log.add(books.next_chunk, "restore", f"{wanted[t][chunk]}, {how}", chunk, t)
    arrivals = [(t, c) for c, types in found.items() if c not in latents_only for t in types]
    return arrivals, {c: types for c, types in found.items() if c in latents_only}


def _retained(books: Books, chunk: int) -> bool:
    """Whether the session has the latents of ``chunk``: it was kept until this plan, or the subject comes from it.

    Ledgers may not be asked here, as they know arrivals already, whose latents nobody need have.
    """
    return chunk in books.positions.slots or chunk in books.subject_chunks()


def _settle(books: Books, arriving: set[tuple[AttentionType, int]]) -> dict[AttentionType, tuple[Move, ...]]:
    """Book every entry at its position; returns what must be rotated (arrivals are encoded as they come in)."""
    slots = books.positions.slots
    moves: dict[AttentionType, tuple[Move, ...]] = {}
    for t, ledger in books.ledgers.items():
        found: list[Move] = []
        subject = ledger.subject
        if subject is not None and books.positions.subject is not None and subject.slot != books.positions.subject:
            found.append(Move(None, subject.slot, books.positions.subject))
            subject.slot = books.positions.subject
        for chunk, entry in ledger.entries.items():
            if entry.slot != slots[chunk]:
                if (t, chunk) not in arriving:
                    found.append(Move(chunk, entry.slot, slots[chunk]))
                entry.slot = slots[chunk]
        if found:
            moves[t] = tuple(found)
    return moves


def _forget(books: Books, kept: list[int], remembered: set[int]) -> tuple[int, ...]:
    """Drop scores of evicted chunks, and name the records that nobody can ask for again."""
    books.drift_scores = {c: score for c, score in books.drift_scores.items() if c in kept}
    books.mass = {c: mass for c, mass in books.mass.items() if c in kept}
    books.lost = {(t, c) for t, c in books.lost if c in remembered}
    books.waiting = {(t, c) for t, c in books.waiting if c in remembered}
    gone = books.stored - remembered - books.subject_chunks() - set(kept)
    books.stored -= gone
    return tuple(sorted(gone))
