"""Pytree algebra: arithmetic on nested dicts, lists and NamedTuples of tensors.

The only file that imports optree. Trees are flattened and unflattened here and nowhere else,
because optree sorts dictionary keys where torch keeps insertion order: leaves in one order must
never meet a structure in the other.

>>> a = {"w": torch.ones(2), "b": torch.zeros(1)}
>>> add(a, scale(a, 2.0))["w"]
tensor([3., 3.])
>>> paths(a)
["['b']", "['w']"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from metaopt.errors import StructureError

__all__ = [
    "add",
    "axis_size",
    "broadcast_prefix",
    "check_parameters",
    "check_same",
    "describe",
    "detach",
    "flatten",
    "global_norm",
    "index",
    "leaves",
    "map",
    "map_unzip",
    "none_rows",
    "paths",
    "rows",
    "scale",
    "size",
    "spread",
    "stack",
    "structure",
    "sub",
    "unflatten",
    "unstack",
    "vdot",
    "zeros_like",
]

Tree = Any
Structure = optree.PyTreeSpec


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves, in the order of `flatten`."""
    return optree.tree_leaves(tree)


def flatten(tree: Tree) -> tuple[list[Any], Structure]:
    """Return the leaves and the structure: nested containers, dictionary keys sorted."""
    return optree.tree_flatten(tree)


def structure(tree: Tree) -> Structure:
    """Return the structure alone; two of them compare with ==."""
    return optree.tree_structure(tree)


def unflatten(structure: Structure, leaves: Iterable[Any]) -> Tree:
    """Return the tree of ``structure`` with these leaves, in the order of `flatten`."""
    return optree.tree_unflatten(structure, leaves)


def paths(tree: Tree) -> list[str]:
    """Return the path of every leaf, as one would write it in Python: ``query['y']``."""
    accessors = optree.tree_structure(tree).accessors()
    return [accessor.codify("").removeprefix(".") for accessor in accessors]


def check_same(where: str, tree: Tree, like: Tree, shapes: bool = False) -> None:
    """Raise `StructureError` unless ``tree`` has the structure (and the shapes) of ``like``.

    The message names the first path at which the two differ. optree's own map passes a shorter
    tree through in silence, so that every public door compares first.
    """
    if optree.tree_structure(tree) != optree.tree_structure(like):
        ours, theirs = paths(tree), paths(like)
        missing = [path for path in theirs if path not in ours]
        extra = [path for path in ours if path not in theirs]
        if missing or extra:
            got = f"none at {missing[0]}" if missing else f"one more at {extra[0]}"
        else:
            got = f"containers of another type: {optree.tree_structure(tree)}"
        expected = f"a tree with the {len(theirs)} leaves of its counterpart"
        raise StructureError(where, expected, got, remedy="Give both the same structure.")
    if shapes:
        for i, (leaf, other) in enumerate(zip(leaves(tree), leaves(like), strict=True)):
            if leaf.shape != other.shape:
                raise StructureError(
                    where,
                    f"shape {list(other.shape)}",
                    f"{list(leaf.shape)}",
                    at=paths(tree)[i] or "the leaf",
                    remedy="Give both the same shapes.",
                )


def check_parameters(where: str, tree: Tree, real: bool = False) -> None:
    """Raise `StructureError` unless every leaf is a floating-point tensor, complex where not ``real``."""
    found, structure = optree.tree_flatten(tree, none_is_leaf=True)
    for i, leaf in enumerate(found):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or (leaf.is_complex() and not real)):
            continue
        accessor = structure.accessors()[i]
        got = str(leaf.dtype) if isinstance(leaf, Tensor) else type(leaf).__name__
        raise StructureError(
            where,
            "a real floating-point tensor" if real else "a floating-point tensor",
            "None" if leaf is None else got,
            at=accessor.codify("").removeprefix(".") or "the root",
            remedy="Keep what is not optimised out of params: pass it in the batch or close over it.",
        )


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``fn`` leaf by leaf; every tree of ``rest`` must have the structure of ``tree``."""
    for position, other in enumerate(rest, 1):
        check_same(f"tree.map(trees[{position}])", other, tree)
    return optree.tree_map(fn, tree, *rest)


def map_unzip(fn: Callable[..., tuple[Any, ...]], tree: Tree, *columns: Sequence[Any]) -> Any:
    """Apply ``fn(leaf, *row) -> tuple`` leaf by leaf and return a tuple of trees.

    ``columns`` hold one entry a leaf, as `leaves` and `spread` give them: an optimizer's rule is
    one function of one leaf, and its new parameters and moments come back as separate trees.
    """
    found, structure = optree.tree_flatten(tree)
    rows = [fn(*row) for row in zip(found, *columns, strict=True)]
    return tuple(optree.tree_unflatten(structure, column) for column in zip(*rows, strict=True))


def spread(where: str, value: Any, tree: Tree) -> list[Any]:
    """Return ``value`` once per leaf of ``tree``: a number or 0-d tensor is repeated, a tree is not.

    Raises: StructureError if ``value`` is neither a scalar nor shaped like ``tree``.
    """
    structure = optree.tree_structure(tree)
    scalar = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)
    if scalar and not (isinstance(value, Tensor) and structure.is_leaf()):
        return [value] * structure.num_leaves
    if isinstance(value, Tensor) and not structure.is_leaf():
        raise StructureError(
            where,
            "a number, a 0-d tensor or a tree shaped like params",
            f"a tensor of shape {list(value.shape)}",
            remedy="Pass one value per leaf as a tree, or per_step_hparams=True for one per step.",
        )
    check_same(where, value, tree)
    return leaves(value)


def rows(structure: Structure, tree: Tree) -> list[Any] | None:
    """Return what ``tree`` holds at every leaf of ``structure``, a leaf or a subtree; None if they differ."""
    try:
        return structure.flatten_up_to(tree)
    except ValueError:
        return None


def none_rows(structure: Structure, tree: Tree) -> list[Any] | None:
    """As `rows` for a tree in which a leaf may be None; None if anything else differs."""
    found, own = optree.tree_flatten(tree, none_is_leaf=True)
    holes = optree.tree_unflatten(structure, [0] * structure.num_leaves)
    return found if own == optree.tree_structure(holes, none_is_leaf=True) else None


def broadcast_prefix(where: str, prefix: Tree, tree: Tree) -> list[Any]:
    """Return the entries of ``prefix``, None among them, once for every leaf of ``tree`` they cover."""
    try:
        entries = optree.broadcast_prefix(prefix, tree, none_is_leaf=True)
    except ValueError as error:
        expected = "a prefix of the tree it describes"
        raise StructureError(where, expected, str(prefix)) from error
    found = optree.tree_leaves(tree, none_is_leaf=True)  # a None of the tree has no leaf elsewhere
    return [entry for entry, leaf in zip(entries, found, strict=True) if leaf is not None]


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack equal trees along a new leading axis: ``[T]`` episodes become one with a task axis.

    Raises: StructureError if there is none, or if the trees or their shapes differ.
    """
    if not trees:
        raise StructureError("tree.stack(trees)", "at least one tree", "an empty sequence")
    for position, other in enumerate(trees):
        check_same(f"tree.stack(trees[{position}])", other, trees[0], shapes=True)
    return optree.tree_map(lambda *xs: torch.stack(xs), *trees)


def index(tree: Tree, i: int | slice | Tensor) -> Tree:
    """Return ``leaf[i]`` for every leaf: the i-th task of a stacked episode, or a slice of tasks."""
    return optree.tree_map(lambda x: x[i], tree)


def unstack(tree: Tree) -> list[Tree]:
    """Undo `stack`: one tree for every position of the leading axis."""
    return [index(tree, i) for i in range(axis_size("tree.unstack(tree)", tree))]


def axis_size(where: str, tree: Tree, axis: int = 0, noun: str = "entries", remedy: str = "") -> int:
    """Return the length of ``axis``, which all leaves share; `StructureError` where they do not."""
    size = -1
    for i, leaf in enumerate(leaves(tree)):
        if not isinstance(leaf, Tensor) or leaf.ndim <= axis:
            got = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise StructureError(where, f"a tensor with an axis {axis}", got, paths(tree)[i], remedy)
        if size >= 0 and size != leaf.shape[axis]:  # no `in`: shapes may be symbolic under compile
            expected = f"{size} {noun} on axis {axis} of every leaf"
            raise StructureError(where, expected, str(leaf.shape[axis]), paths(tree)[i], remedy)
        size = leaf.shape[axis]
    if size == -1:
        raise StructureError(where, "at least one tensor", "a tree without leaves", "", remedy)
    return size


def add(a: Tree, b: Tree) -> Tree:
    """a + b."""
    return map(torch.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """a − b."""
    return map(torch.sub, a, b)


def scale(a: Tree, factor: float | Tensor) -> Tree:
    """factor · a."""
    return map(lambda x: x * factor, a)


def zeros_like(a: Tree) -> Tree:
    """0 · a."""
    return map(torch.zeros_like, a)


def detach(a: Tree) -> Tree:
    """The same numbers without their history; what is not a tensor passes through."""
    return map(lambda x: x.detach() if isinstance(x, Tensor) else x, a)


def vdot(a: Tree, b: Tree) -> Tensor:
    """Σ aᵢbᵢ over all entries of all leaves, 0-d."""
    check_same("tree.vdot(b)", b, a)
    products = [(x * y).sum() for x, y in zip(leaves(a), leaves(b), strict=True)]
    return torch.stack(products).sum() if products else torch.zeros(())


def global_norm(a: Tree) -> Tensor:
    """√(Σ aᵢ²) over all entries of all leaves, 0-d. At 0 every derivative is 0 instead of NaN."""
    square = vdot(a, a)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def size(a: Tree) -> int:
    """The number of entries in all leaves."""
    return sum(x.numel() for x in leaves(a))


_SHORT = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def describe(tree: Tree) -> str:
    """Say what a tree is made of, a leaf a line: ``support.x  f32[25, 10, 1]``."""
    names, found = paths(tree), leaves(tree)
    width = max((len(name) for name in names), default=0)

    def of(leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        return f"{_SHORT.get(leaf.dtype, str(leaf.dtype))}{list(leaf.shape)}"

    return "\n".join(f"{n:<{width}}  {of(x)}" for n, x in zip(names, found, strict=True))
