"""compile=: one step, or all tasks with all their steps, traced once and compiled with its derivative.

`_choice` says what is to be compiled, `_lower` finds the plain tensors below ``vmap``, `_fingerprint`
tells when a function is still the same, `_trace` runs it without numbers, `_compiled` compiles it and
keeps it in a `_table`; `_loop` is `unroll` over compiled steps, `_steps` these steps with their
derivative, `_map` is `map_tasks` as one graph, and `_gradient` that graph with its gradient.
"""

from metaopt.compiled._choice import (
    Compile,
    Way,
    as_compile,
    compiling,
    count_steps,
    current_compile,
)
from metaopt.compiled._compiled import compile_report, forget_compiled, owner
from metaopt.compiled._loop import Loop
from metaopt.compiled._map import Flat, mapped_by

__all__ = [
    "Compile",
    "Flat",
    "Loop",
    "Way",
    "as_compile",
    "compile_report",
    "compiling",
    "count_steps",
    "current_compile",
    "forget_compiled",
    "mapped_by",
    "owner",
]
