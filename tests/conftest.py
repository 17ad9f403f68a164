"""One thread, so that sums are made in one order; no deadlines, since a test's first example warms up."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
