"""What belongs to one stream: its books, its pages, its prompts and the clean latents of the chunks it keeps."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cache.manager import CacheManager
from cache.pool import Lease
from cache.spec import AttentionType
from cache.tiers import Latents
from errors import IntegrityError, TransactionError
from kernels.attention import BlockTable
from kernels.copies import Landing
from models.prompt import Prompt


@dataclass(frozen=True)
class Origin:
    """Keys as they were first written, in host memory or on their way there, and the slot they are encoded for.

    Copied from a GPU they stay in pinned memory, from which every later move copies them back.
    """

    landing: Landing
    slot: int

    @property
    def keys(self) -> torch.Tensor:
        """[layers, tokens, width], or of pages of codes [layers, bytes], see ``Paging``; in host memory."""
        return self.landing.wait()[0]

    @property
    def near(self) -> torch.Tensor:
        """``keys``, on the device still if they are on their way."""
        return self.landing.near()[0]


@dataclass
class Ahead:
    """What of a stream that is to move has been copied ahead of it.

    Args:
        written: when each page was copied, by type and chunk (``None``: the subject anchor); as every time here in
            operations on the books.
        renewed: when a chunk was last evicted or written anew since copying began.
    """

    written: dict[tuple[AttentionType, int | None], int] = field(default_factory=dict)
    renewed: dict[int | None, int] = field(default_factory=dict)


@dataclass(eq=False)
class Session:
    """State of one stream inside an engine. Weights and pool are the engine's.

    Args:
        retained: clean latents of the chunks that are kept (a few hundred kB each); evicted ones go to the store.
        origins: unrounded source of every key that was ever moved, by type and chunk (``None``: the subject anchor);
            at most the memory of the keep-set, half of its bytes, never on the device.
        prompt_of: key of the prompt that each chunk is encoded under, for all that is kept or stored.
        forgetting: by plan, chunks that the store is still to forget; of a few plans at most.
        failure: what kept a plan from being carried out; the stream is over but for its ``close``.
        subject_tokens: token indices of the subject anchor in its source chunk, by attention type.
        tries: how often each chunk that is waited for was postponed.
        announced_until: chunk by which an announced return should have come.
        ahead: what was copied ahead, if the stream is to move.
    """

    id: str
    seed: int
    manager: CacheManager
    lease: Lease
    prompts: dict[str, Prompt]
    retained: dict[int, Latents] = field(default_factory=dict)
    subject_tokens: dict[AttentionType, torch.Tensor] = field(default_factory=dict)
    origins: dict[tuple[AttentionType, int | None], Origin] = field(default_factory=dict)
    prompt_of: dict[int, str] = field(default_factory=dict)
    forgetting: deque[tuple[int, ...]] = field(default_factory=deque)
    failure: Exception | None = None
    tries: dict[int, int] = field(default_factory=dict)
    announced_until: int | None = None
    ahead: Ahead | None = None

    def renew(self, type: AttentionType, chunk: int | None) -> None:
        """What is at a chunk's place goes, or is written anew: nothing that was made of it holds any more."""
        self.origins.pop((type, chunk), None)
        if self.ahead is not None:
            self.ahead.written.pop((type, chunk), None)
            self.ahead.renewed[chunk] = self.manager.recorder.noted

    def settle(self) -> None:
        """Let go of what has landed of keys on their way to host memory: a device has room for pages only."""
        for origin in self.origins.values():
            origin.landing.here()

    @property
    def prompt(self) -> Prompt:
        """The prompt of the scene on air."""
        return self.prompts[self.manager.scenes.current.prompt]

    def page(self, type: AttentionType, place: int) -> int:
        """The memory slot behind a place."""
        return self.lease.tables[type][place]

    def staged(self, type: AttentionType) -> int:
        """The place of the chunk in progress; raises ``TransactionError`` between two chunks."""
        place = self.manager.ledgers[type].staged
        if place is None:
            raise TransactionError(f"{type}: no chunk of {self.id} is in progress; begin first")
        return place

    def block_table(self, type: AttentionType, places: Sequence[int], see_subject: bool) -> BlockTable:
        """What a chunk reads: the subject anchor, which is right-aligned in its page, and then ``places`` in order."""
        pages = tuple(self.page(type, place) for place in places)
        ledger = self.manager.ledgers[type]
        if ledger.subject is None or not see_subject:
            return BlockTable(pages)
        return BlockTable((self.page(type, 0), *pages), ledger.spec.tokens_per_chunk - ledger.subject.tokens)

    def check_pages(self) -> None:
        """Raise ``IntegrityError`` unless exactly the places in the books have pages and latents are retained."""
        for t, ledger in self.manager.ledgers.items():
            booked = set(ledger.places()) | ({0} if ledger.subject is not None else set())
            if booked != set(self.lease.tables[t]):
                raise IntegrityError(f"{t}: books know places {sorted(booked)}, pages {sorted(self.lease.tables[t])}")
        for t, chunk in self.origins:
            ledger = self.manager.ledgers[t]
            if chunk not in ledger.entries and not (chunk is None and ledger.subject is not None):
                raise IntegrityError(f"{t}: origin of {chunk} kept, which the books have not")
        needed = {*self.manager.kept(), *self.manager.subject_chunks()}
        if needed != set(self.retained):
            raise IntegrityError(f"latents of {sorted(self.retained)} retained; expected {sorted(needed)}")

    def forget_prompts(self) -> None:
        """Drop prompts that no scene and no kept or stored chunk refers to."""
        used = {scene.prompt for scene in self.manager.scenes.scenes.values()} | set(self.prompt_of.values())
        self.prompts = {key: prompt for key, prompt in self.prompts.items() if key in used}
