"""One torch thread per test process, and hypothesis without deadlines (the machine is shared)."""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("longtake", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("longtake")
