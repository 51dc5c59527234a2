"""One torch thread per test process, and hypothesis without deadlines (the machine is shared).

Where there is no GPU, Triton's kernels run in Triton's interpreter, which must be chosen before Triton is imported.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Ray's workers have niceness 15 by default: beside another cluster's nothing of theirs would come in time.
os.environ.setdefault("RAY_worker_niceness", "0")
torch.set_num_threads(1)
settings.register_profile("longtake", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("longtake")

# Files that take a minute or more, those that begin clusters and mostly wait beside those that compute: two processes
# (``pytest -n 2 --dist loadfile``) take files in this order, and neither is left with a long one in the end.
LONGEST = (
    "test_serve", "test_long_take", "test_serve_endurance", "test_kernels_engine", "test_precopy", "test_replay",
    "test_losses", "test_kernels_ahead_of_time", "test_invariants", "test_recovery", "test_scaling_ray",
    "test_movement", "test_handover", "test_cluster", "test_returns", "test_transfer_ray", "test_generate", "test_web",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
