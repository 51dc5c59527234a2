"""What belongs to one stream: its books, its pages, its prompts and the clean latents of the chunks it keeps."""

from dataclasses import dataclass, field

import torch

from cache.manager import CacheManager
from cache.pool import Lease
from cache.spec import AttentionType
from cache.tiers import Latents
from errors import IntegrityError
from kernels.attention import BlockTable
from models.prompt import Prompt


@dataclass(eq=False)
class Session:
    """State of one stream inside an engine. Weights and pool are the engine's.

    Args:
        retained: clean latents of the chunks that are kept (a few hundred kB each); evicted ones go to the store.
        subject_tokens: token indices of the subject anchor in its source chunk, by attention type.
    """

    id: str
    seed: int
    manager: CacheManager
    lease: Lease
    prompts: dict[str, Prompt]
    retained: dict[int, Latents] = field(default_factory=dict)
    subject_tokens: dict[AttentionType, torch.Tensor] = field(default_factory=dict)

    @property
    def prompt(self) -> Prompt:
        """The prompt of the scene on air."""
        return self.prompts[self.manager.scenes.current.prompt]

    def check_pages(self) -> None:
        """Raise ``IntegrityError`` unless exactly the places in the books have pages and latents are retained."""
        for t, ledger in self.manager.ledgers.items():
            booked = set(ledger.places()) | ({0} if ledger.subject is not None else set())
            if booked != set(self.lease.tables[t]):
                raise IntegrityError(f"{t}: books know places {sorted(booked)}, pages {sorted(self.lease.tables[t])}")
        needed = {*self.manager.kept(), *self.manager.subject_chunks()}
        if needed != set(self.retained):
            raise IntegrityError(f"latents of {sorted(self.retained)} retained; expected {sorted(needed)}")

    def forget_prompts(self) -> None:
        """Drop prompts that no scene and no retained chunk refers to."""
        used = {scene.prompt for scene in self.manager.scenes.scenes.values()}
        used |= {latents.prompt for latents in self.retained.values()}
        self.prompts = {key: prompt for key, prompt in self.prompts.items() if key in used}


def block_table(pages: tuple[int, ...], subject_page: int | None, skip_tokens: int) -> BlockTable:
    """A row's table: the subject anchor, right-aligned in its page, stands first."""
    return BlockTable(pages) if subject_page is None else BlockTable((subject_page, *pages), skip_tokens)
