"""Meta-learning algorithms, each a function of one task for `map_tasks`."""

from metaopt.algorithms._maml import maml

__all__ = ["maml"]
