"""Rules for parts of a tree: parameter groups, by label, by path or by predicate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError
from metaopt.optim._entries import gradients_of
from metaopt.types import Optimizer

__all__ = ["masked", "partition"]

Labels = Any  # a label for every leaf, as a prefix of params, or path -> label


def partition(rules: Mapping[Any, Optimizer] | Sequence[Optimizer], labels: Labels) -> Optimizer:
    """Every leaf by the rule of its label: torch.optim's parameter groups.

    State and hyperparameters are a dict, or where ``rules`` is a sequence a tuple, with one entry a
    label. Each rule sees the tree with ``()`` in place of the other rules' leaves, and so do
    hyperparameters given per leaf.

    Args: rules: label -> Optimizer; a sequence is labelled 0, 1, ...
          labels: the label of every leaf, as a tree that is a prefix of params, or as a function of the
              leaf's path, such as ``"['layer1']['weight']"``. None: the leaf stays as it is.
    Returns: Optimizer whose hparams hold those of the rules, by label.
    Raises: StructureError for labels that are no prefix of params, or that no rule has.

    >>> import torch, metaopt as mo
    >>> opt = partition([mo.optim.sgd(lr=0.5), mo.optim.sgd(lr=0.1)], {"body": 0, "head": 1})
    >>> params = {"body": torch.ones(1), "head": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params, opt.hparams)[0]
    {'body': tensor([0.5000]), 'head': tensor([0.9000])}
    """
    named = isinstance(rules, Mapping)
    table: dict[Any, Optimizer] = dict(rules.items() if isinstance(rules, Mapping) else enumerate(rules))
    if not table or not all(isinstance(rule, Optimizer) for rule in table.values()):
        raise ArgumentError("partition(rules)", "at least one Optimizer", repr(rules))

    memo: list[tuple[Any, list[Any]]] = []  # the last structure and its labels, which depend on it alone

    def label_leaves(params: Any, structure: Any) -> list[Any]:
        eager = not torch.compiler.is_compiling()
        if eager and (last := memo[0] if memo else None) and last[0] == structure:
            return last[1]
        found = label_of_leaves(labels, params)
        for i, label in enumerate(found):
            if label is not None and label not in table:
                expected, at = f"one of {list(table)} or None", tree.paths(params)[i] or "the leaf"
                raise StructureError("partition(labels)", expected, repr(label), at)
        if eager:
            memo[:] = [(structure, found)]
        return found

    def gather(entries: dict[Any, Any]) -> Any:
        return entries if named else tuple(entries.values())

    def init(params: Any) -> Any:
        tree.check_parameters("partition.init(params)", params)
        leaves, structure = tree.flatten(params)
        here = label_leaves(params, structure)
        return gather({k: rule.init(restrict(structure, leaves, here, k)) for k, rule in table.items()})

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, Any]:
        leaves, structure = tree.flatten(params)
        here = label_leaves(params, structure)
        for what, value in (("state", state), ("hparams", hparams)):
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            if isinstance(value, dict) != named or set(keys) != set(table):
                where = f"partition.update({what})"
                raise StructureError(where, f"one entry for each of {list(table)}", repr(keys))
        if len(table) == 1 and None not in here:
            ((key, rule),) = table.items()
            params, entry = rule.update(params, state[key], grads, hparams[key])
            return params, gather({key: entry})
        slopes = gradients_of("partition.update(grads)", grads, params, leaves, structure)
        new, entries = list(leaves), {}
        for key, rule in table.items():
            part, slope = (restrict(structure, x, here, key) for x in (leaves, slopes))
            part, entries[key] = rule.update(part, state[key], slope, hparams[key])
            found = iter(tree.leaves(part))
            new = [next(found) if label == key else p for p, label in zip(new, here, strict=True)]
        return tree.unflatten(structure, new), gather(entries)

    return Optimizer(init, update, gather({key: rule.hparams for key, rule in table.items()}))


def masked(opt: Optimizer, mask: Labels) -> Optimizer:
    """The optimizer where the mask is True; the other leaves stay as they are.

    Args: opt: any Optimizer.
          mask: a bool for every leaf, as a tree that is a prefix of params, or a function of its path.
    Returns: Optimizer with the hparams of ``opt``, whose state holds the masked leaves alone.
    Raises: StructureError for a mask that is no prefix of params.

    >>> import torch, metaopt as mo
    >>> opt = masked(mo.optim.sgd(lr=0.5), lambda path: "bias" not in path)
    >>> params = {"bias": torch.ones(1), "weight": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params, opt.hparams)[0]
    {'bias': tensor([1.]), 'weight': tensor([0.5000])}
    """

    if not isinstance(opt, Optimizer):
        raise ArgumentError("masked(opt)", "an Optimizer", type(opt).__name__)

    def labels(params: Any) -> list[Any]:
        found = label_of_leaves(mask, params)
        for i, flag in enumerate(found):
            if not isinstance(flag, bool):
                at = tree.paths(params)[i] or "the leaf"
                raise StructureError("masked(mask)", "True or False", repr(flag), at)
        return found

    def init(params: Any) -> Any:
        leaves, structure = tree.flatten(params)
        return opt.init(restrict(structure, leaves, labels(params), True))

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, Any]:
        leaves, structure = tree.flatten(params)
        here = labels(params)
        slopes = gradients_of("masked.update(grads)", grads, params, leaves, structure)
        part, slope = (restrict(structure, x, here, True) for x in (leaves, slopes))
        part, state = opt.update(part, state, slope, hparams)
        found = iter(tree.leaves(part))
        new = [next(found) if flag else p for p, flag in zip(leaves, here, strict=True)]
        return tree.unflatten(structure, new), state

    return opt._replace(init=init, update=update)


def restrict(structure: Any, leaves: list[Any], labels: list[Any], key: Any) -> Any:
    """The tree with ``()`` in place of the leaves that have another label."""
    kept = [x if label == key else () for x, label in zip(leaves, labels, strict=True)]
    return tree.unflatten(structure, kept)


def label_of_leaves(labels: Labels, params: Any) -> list[Any]:
    """The label of every leaf, from a prefix tree or from a function of the path."""
    if isinstance(labels, Callable):  # type: ignore[arg-type]
        return [labels(path) for path in tree.paths(params)]
    return tree.broadcast_prefix("partition(labels)", labels, params)
