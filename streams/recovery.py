"""A stream that lost its generator, from its books, its footing and its records: bit for bit, or computed anew.

Keys and values that the store has are taken as they are; what it has not is encoded from clean latents; a chunk of
which neither is left is given up, and the stream goes on without it.
"""

from dataclasses import replace

import torch

from cache.plan import Encoding
from cache.spec import TYPES, AttentionType
from cache.state import Plain
from cache.tiers import KeyValues
from errors import LongtakeError, RecordLost
from streams.durability import Footing, everything, published_shelf, shelves, subject_shelf
from streams.engine import Engine
from streams.making import Chunk
from streams.session import Origin, Session


def recover(engine: Engine, books: Plain, footing: Footing) -> Session:
    """Open the stream that another engine lost; its records are this stream's too, until ``forget_lost``.

    Args:
        books: as ``cache.state.dump`` gave them after the newest commit that was acknowledged.

    Raises:
        PoolExhausted: no room; nothing was changed.
        LongtakeError: the books are of another configuration; the records are as before.
    """
    manager = engine.new_manager(books)
    session = Session(manager.session, footing.seed, manager, engine.pool.open(engine.places), {})
    engine.adopt(session)
    try:
        session.prompts = {key: engine.prompt(text) for key, text in footing.prompts.items()}
        session.prompt_of = {c: key for first, last, key in footing.prompt_of for c in range(first, last + 1)}
        tokens = {AttentionType(t): torch.tensor(chosen) for t, chosen in footing.subject_tokens.items()}
        session.subject_tokens = {t: chosen for t, chosen in tokens.items() if manager.ledgers[t].subject is not None}
        for there, here in zip(shelves(footing.stream), shelves(session.id), strict=True):
            engine.tier.adopt(there, here)
        _fetch_latents(engine, session)
        missing = _fetch_pages(engine, session)
        _encode(engine, session, missing)
        session.check_pages()
    except (LongtakeError, RuntimeError, KeyError, ValueError, TypeError):
        engine.close(session)
        raise
    return session


def forget_lost(engine: Engine, stream: str) -> None:
    """The books have a recovered stream's new name: nobody asks for its records under the old one any more."""
    for name in everything(stream):
        engine.tier.close(name)


def published(engine: Engine, session: Session, count: int) -> list[Chunk]:
    """At most the ``count`` newest published chunks that the store still has, without a gap, in media order."""
    seconds = engine.backbone.geometry.seconds
    found: list[Chunk] = []
    for index in reversed(range(max(0, session.manager.next_chunk - count), session.manager.next_chunk)):
        try:
            latents = engine.tier.latents(published_shelf(session.id), index)
        except RecordLost:
            break
        drift = session.manager.books.drift_scores.get(index, 0.0)
        found.insert(0, Chunk(index, latents.scene, latents.video, latents.audio, index * seconds, seconds, drift))
    return found


def _fetch_latents(engine: Engine, session: Session) -> None:
    manager, prompts = session.manager, session.prompt_of
    for chunk in sorted({*manager.kept(), *manager.subject_chunks()}):
        try:
            latents = engine.tier.latents(session.id, chunk)
            session.retained[chunk] = replace(latents, prompt=prompts.get(chunk, latents.prompt))
        except RecordLost as error:
            if chunk in manager.subject_chunks():
                manager.drop_subject(str(error))
                session.subject_tokens.clear()
            engine.executor.give_up(session, chunk, str(error))
    # Another chunk's loss may have taken the subject with it, and with it the need for its source.
    session.retained = {c: x for c, x in session.retained.items() if c in {*manager.kept(), *manager.subject_chunks()}}


def _fetch_pages(engine: Engine, session: Session) -> dict[int, list[AttentionType]]:
    """Fill the pages that the store can fill; returns the chunks and types that are left."""
    missing: dict[int, list[AttentionType]] = {}
    for t in TYPES:
        for chunk, entry in session.manager.ledgers[t].entries.items():
            page = engine.pool.claim(session.lease, t, entry.place)
            payload = _known(engine, session, session.id, chunk, t, page)
            if payload is None:
                engine.pool.release(session.lease, t, entry.place)
                missing.setdefault(chunk, []).append(t)
            else:
                _write(engine, session, t, chunk, page, entry.slot, payload)
    return missing


def _known(
    engine: Engine, session: Session, shelf: str, chunk: int, type: AttentionType, page: int
) -> KeyValues | None:
    """Keys and values that the books know of, if the store has them; in ``page`` already, perhaps."""
    if type not in engine.tier.holds(shelf, chunk).types:
        return None
    try:
        payload = engine.tier.fetch(shelf, chunk, type, engine.paging.room(type, page))
    except RecordLost:
        return None
    return payload if payload.written <= session.manager.recorder.noted else None


def _write(
    engine: Engine, session: Session, type: AttentionType, chunk: int | None, page: int, slot: int, payload: KeyValues
) -> None:
    packed = engine.paging.put(type, page, payload)
    if payload.slot != slot:
        session.origins[type, chunk] = Origin(engine.paging.put_keys(type, page, packed), payload.slot)
        engine.executor.rotate(type, page, payload.slot, slot)


def _encode(engine: Engine, session: Session, missing: dict[int, list[AttentionType]]) -> None:
    """Subject anchor first, then what is missing, in media order: none sees what is still to be encoded."""
    manager = session.manager
    anew = False
    for t in TYPES:
        subject = manager.ledgers[t].subject
        if subject is not None:
            page = engine.pool.claim(session.lease, t, 0)
            payload = _known(engine, session, subject_shelf(session.id), 0, t, page)
            # Exact pages have tokens that nobody reads beside an anchor, which must not get into the scales of codes.
            if payload is None or payload.pages != engine.paging.format(t):
                engine.pool.release(session.lease, t, 0)
                anew = True
            else:
                _write(engine, session, t, None, page, subject.slot, payload)
    if anew:
        engine.executor.encode_subject(session)
    for chunk in sorted(missing, key=lambda c: manager.positions.slots.get(c, 0)):
        engine.executor.encode_planned(session, Encoding(chunk, tuple(missing[chunk])))
