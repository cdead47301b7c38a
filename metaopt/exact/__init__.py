"""Right derivatives where torch.func has wrong ones, and draws that do not depend on how tasks are mapped.

`exact` is a ``TorchFunctionMode`` with one table: the function torch would call, what is called in its
place, and when. Every entry that stands for a fault of torch names its issue and has a test that fails
on the day torch is mended.
"""

from metaopt.exact._levels import batched, mapped, plain_level, transformed
from metaopt.exact._mode import exact, paused, rewrites
from metaopt.exact._norms import Statistics, collecting
from metaopt.exact._random import advance, current_draws, seeded, task_keys, tasks_from, unseeded

__all__ = [
    "Statistics",
    "advance",
    "batched",
    "collecting",
    "current_draws",
    "exact",
    "mapped",
    "paused",
    "plain_level",
    "rewrites",
    "seeded",
    "task_keys",
    "tasks_from",
    "transformed",
    "unseeded",
]
