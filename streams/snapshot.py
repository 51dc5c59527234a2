"""A stream as bytes, and back: all that the next chunk depends on, so that resuming equals not pausing."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cache.pool import Lease
from cache.records import parse_latents, parse_record, parse_tensor, plain_latents, plain_record, plain_tensor
from cache.spec import TYPES, AttentionType
from cache.state import dump
from errors import LongtakeError, SnapshotCorrupt, SnapshotError, SnapshotMismatch
from kernels.copies import Landing
from models.prompt import Prompt
from streams.durability import shelves
from streams.engine import Engine
from streams.session import Origin, Session
from wire import seal, unseal

KIND, VERSION = "snapshot", 5
Plain = dict[str, Any]
# What comes of a snapshot that is whole under its checksum and lies: anybody can seal one.
LIES = (LongtakeError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


def save(engine: Engine, session: Session) -> bytes:
    """The stream between two chunks: books, pages, latents, prompts, and its records in the restore store."""
    engine.require(session)
    pages: Plain = {}
    for t in TYPES:
        table = session.lease.tables[t]
        pages[t.value] = [[place, plain_tensor(engine.paging.pack(t, page))] for place, page in sorted(table.items())]
    payload = bare(engine, session) | {
        "pages": pages,
        "origins": [[t.value, chunk, o.slot, plain_tensor(o.keys)] for (t, chunk), o in session.origins.items()],
        "records": [
            {chunk: plain_record(record) for chunk, record in engine.tier.records(name).items()}
            for name in shelves(session.id)
        ],
    }
    return seal(KIND, VERSION, payload)


def bare(engine: Engine, session: Session) -> Plain:
    """All of a stream between two chunks but its pages and what the restore store has of it; a few megabytes."""
    return {
        "model": engine.backbone.fingerprint,
        "cache": _cache_identity(engine),
        "seed": session.seed,
        "manager": dump(session.manager),
        "prompts": [[p.text, plain_tensor(p.video), plain_tensor(p.audio)] for p in session.prompts.values()],
        "retained": {chunk: plain_latents(latents) for chunk, latents in session.retained.items()},
        "prompt_of": session.prompt_of,
        "subject_tokens": {t.value: tokens.tolist() for t, tokens in session.subject_tokens.items()},
    }


def resume(engine: Engine, data: bytes) -> Session:
    """Open the stream that ``save`` wrote, in this engine; it goes on bit-equal to the one that was saved.

    Raises:
        SnapshotCorrupt: the bytes are damaged, truncated or no snapshot.
        SnapshotMismatch: of another model, release or cache configuration.
        PoolExhausted: no room; nothing was changed.
    """
    payload = unseal(data, KIND, VERSION)
    with told_as_corrupt("the snapshot is sealed but does not hold what a stream needs"):
        session = parsed(engine, payload)
        pages = [(t, place, parse_tensor(plain)) for t in TYPES for place, plain in payload["pages"][t.value]]
        records = [
            (name, int(chunk), parse_record(plain))
            for name, kept in zip(shelves(session.id), payload["records"], strict=True)
            for chunk, plain in kept.items()
        ]
        for t, chunk, slot, keys in payload["origins"]:
            session.origins[AttentionType(t), chunk] = Origin(Landing([parse_tensor(keys)]), slot)
    session.lease = engine.pool.open(engine.places)
    engine.adopt(session)
    try:
        for t, place, packed in pages:
            page = engine.pool.claim(session.lease, t, place)
            engine.paging.unpack(t, page, packed)
        session.check_pages()
        for name, chunk, record in records:
            if record.latents is not None:
                engine.tier.keep_latents(name, chunk, record.latents)
            for t, payload_of_type in record.key_values.items():
                engine.tier.offload(name, chunk, t, payload_of_type)
    except LIES as error:
        engine.close(session)
        raise SnapshotCorrupt(f"the pages in the snapshot are not those in its books: {error!r}") from error
    return session


def parsed(engine: Engine, payload: Plain, name: str = "") -> Session:
    """The stream of what ``bare`` gave, under a fresh name, perhaps ``name``, with an empty lease; nothing is changed.

    Raises ``SnapshotMismatch``, and one of ``LIES`` if the payload does not hold what it should.
    """
    _check_identity(engine, payload)
    manager = engine.new_manager(payload["manager"], name)
    prompts = [Prompt(text, parse_tensor(video), parse_tensor(audio)) for text, video, audio in payload["prompts"]]
    for prompt in prompts:
        engine.backbone.check_prompt(prompt)
    session = Session(manager.session, int(payload["seed"]), manager, Lease(-1), {p.key: p for p in prompts})
    session.retained = {chunk: parse_latents(plain) for chunk, plain in payload["retained"].items()}
    tokens = {AttentionType(t): torch.tensor(chosen) for t, chosen in payload["subject_tokens"].items()}
    session.subject_tokens, session.prompt_of = tokens, dict(payload["prompt_of"])
    return session


@contextmanager
def told_as_corrupt(what: str) -> Iterator[None]:
    """What comes of sealed bytes that lie is a ``SnapshotCorrupt``."""
    try:
        yield
    except SnapshotError:
        raise
    except LIES as error:
        raise SnapshotCorrupt(f"{what}: {error!r}") from error


def _check_identity(engine: Engine, payload: Plain) -> None:
    if payload["model"] != engine.backbone.fingerprint:
        raise SnapshotMismatch(
            f"the snapshot is of model {payload['model']}, this engine serves {engine.backbone.fingerprint} "
            "(weights, configuration or chunk geometry differ); resume it on the model that it was made with"
        )
    mine, there = _cache_identity(engine), payload["cache"]
    differing = [name for name in {**mine, **there} if mine.get(name) != there.get(name)]
    if differing:
        details = "; ".join(f"{n}: {there.get(n)} there, {mine.get(n)} here" for n in differing)
        raise SnapshotMismatch(f"the snapshot was made under another configuration: {details}")


def identity(engine: Engine) -> str:
    """The same for two engines exactly if one goes on with what the other put away."""
    told = repr((engine.backbone.fingerprint, sorted(_cache_identity(engine).items())))
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _cache_identity(engine: Engine) -> dict[str, str]:
    config = engine.config
    codes = {t.value: spec.pages for t, spec in engine.specs.items() if spec.pages != "exact"}
    return {
        **({"pages": repr(codes)} if codes else {}),
        "policy": repr(engine.policy),
        "positions": repr(config.cache.positions),
        "scenes": repr(config.cache.scenes),
        "drift": repr(config.cache.drift),
        "mass_decay": repr(config.cache.mass_decay),
        "schedule": repr((config.schedule, config.first_schedule)),
        "dtype": str(engine.backbone.dtype),
    }
