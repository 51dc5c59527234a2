"""One torch thread per test process, and hypothesis without deadlines (the machine is shared).

Where there is no GPU, Triton's kernels run in Triton's interpreter, which must be chosen before Triton is imported.
"""

import os

import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Ray's workers have niceness 15 by default: beside another cluster's nothing of theirs would come in time.
os.environ.setdefault("RAY_worker_niceness", "0")
torch.set_num_threads(1)
settings.register_profile("longtake", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("longtake")
