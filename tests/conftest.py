"""One torch thread per test process, and hypothesis without deadlines (the machine is shared).

Where there is no GPU, Triton's kernels run in Triton's interpreter, which must be chosen before Triton is imported.
"""

import gc
import os
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Ray's workers have niceness 15 by default: beside another cluster's nothing of theirs would come in time.
os.environ.setdefault("RAY_worker_niceness", "0")
torch.set_num_threads(1)
settings.register_profile("longtake", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.register_profile("interpreted", settings.get_profile("longtake"), max_examples=4)
INTERPRETED = os.environ.get("TEST_IMPL") == "triton"
settings.load_profile("interpreted" if INTERPRETED else "longtake")

# Files that take a minute or more, those that begin clusters and mostly wait beside those that compute: two processes
# (``pytest -n 2 --dist loadfile``) take files in this order, and neither is left with a long one in the end.
LONGEST = (
    "test_serve", "test_long_take", "test_serve_endurance", "test_kernels_engine", "test_precopy", "test_replay",
    "test_losses", "test_kernels_ahead_of_time", "test_invariants", "test_recovery", "test_scaling_ray",
    "test_movement", "test_handover", "test_cluster", "test_returns", "test_transfer_ray", "test_generate", "test_web",
)  # fmt: skip


# What is run with ``TEST_IMPL=triton``: every file whose tests have an engine keep, evict, move and bring back chunks.
CACHE = (
    "test_kernels_engine", "test_block_causal", "test_budgets", "test_drift", "test_policies", "test_subject",
    "test_store", "test_scenes", "test_pages", "test_replay", "test_invariants", "test_returns", "test_snapshot",
    "test_sampler", "test_landing", "test_staging", "test_tiered_store", "test_backbone", "test_positions",
    "test_takefile", "test_recovery", "test_migration",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first."""
    rank = {name: place for place, name in enumerate(CACHE if INTERPRETED else LONGEST)}
    if INTERPRETED:
        items[:] = few(item for item in items if item.path.stem in CACHE)
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def heap_as_it_was() -> None:
    """What there is before a file is no garbage of its tests: who collects that looks through it no more."""
    gc.collect()
    gc.freeze()


def few(items: Iterable[pytest.Item], most: int = 3) -> list[pytest.Item]:
    """Of each test the first variants: in the interpreter all would take hours."""
    kept: Counter[str] = Counter()
    found = []
    for item in items:
        kept[name := item.nodeid.partition("[")[0]] += 1
        if kept[name] <= most:
            found.append(item)
    return found
