"""The cell that an architecture search relaxes, and the genotype it is discretised to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaopt.errors import ArgumentError

__all__ = ["Cell", "Genotype", "Zero", "genotype"]

NONE = "none"  # the operation that stands for no edge, and that no genotype keeps


class Genotype(NamedTuple):
    """``nodes``: for each intermediate node its (operation, predecessor) pairs, strongest first."""

    nodes: tuple[tuple[tuple[str, int], ...], ...]


class Zero(nn.Module):
    """The operation "none": 0 · x.

    >>> Zero()(torch.ones(2))
    tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Cell(nn.Module):
    """A directed acyclic graph of mixed operations.

    ::

        x_j = Σ_{i<j} Σ_o softmax(α^{(i,j)})_o · o(x_i);   out = the intermediate nodes, side by side

    Args: operations: name -> factory of a module that keeps its input's shape, in the order of α's
              columns; the name "none" stands for no edge.
          num_nodes: intermediate nodes >= 1.
          num_inputs: input nodes (the paper: the outputs of the two cells before).
          dim: the axis along which the nodes are put side by side.
    ``edges`` lists (i, j) in the order of α's rows. Call: ``cell(*inputs, alphas)``.
    Source: Liu et al. 2019, arXiv:1806.09055, section 2.

    >>> cell = Cell({"none": Zero, "skip": nn.Identity}, num_nodes=2)
    >>> cell.edges, cell(torch.ones(1, 3), torch.zeros(3, 2))
    ([(0, 1), (0, 2), (1, 2)], tensor([[0.5000, 0.5000, 0.5000, 0.7500, 0.7500, 0.7500]]))
    """

    def __init__(
        self,
        operations: Mapping[str, Callable[[], nn.Module]],
        num_nodes: int,
        num_inputs: int = 1,
        dim: int = 1,
    ):
        super().__init__()
        if not set(operations) - {NONE}:
            raise ArgumentError("Cell(operations)", "an operation other than 'none'", str(list(operations)))
        if num_nodes < 1 or num_inputs < 1:
            raise ArgumentError(
                "Cell(num_nodes)", "one node and one input at least", f"{num_nodes=}, {num_inputs=}"
            )
        self.names, self.num_inputs, self.dim = list(operations), num_inputs, dim
        self.edges = [(i, j) for j in range(num_inputs, num_inputs + num_nodes) for i in range(j)]
        self.mixed = nn.ModuleList(nn.ModuleList(make() for make in operations.values()) for _ in self.edges)

    def forward(self, *args: Tensor) -> Tensor:
        *nodes, alphas = args
        rows = iter(zip(self.mixed, alphas.softmax(-1), strict=True))
        for j in range(self.num_inputs, self.edges[-1][1] + 1):
            incoming = [_mix(*next(rows), nodes[i]) for i in range(j)]  # type: ignore[arg-type]
            nodes.append(torch.stack(incoming).sum(0))
        return torch.cat(nodes[self.num_inputs :], self.dim)


def _mix(operations: nn.ModuleList, weights: Tensor, x: Tensor) -> Tensor:
    """ō(x) = Σ_o w_o o(x)."""
    return torch.stack([w * o(x) for w, o in zip(weights, operations, strict=True)]).sum(0)


def genotype(cell: Cell, alphas: Tensor, num_edges: int = 2) -> Genotype:
    """Discretise: each node keeps its strongest incoming edges, and each edge its strongest operation.

    ::

        o^{(i,j)} = argmax_{o ≠ none} α_o^{(i,j)},    strength of (i, j) = max_{o ≠ none} softmax(α^{(i,j)})_o

    Args: cell: the cell; alphas: α [edge, operation]; num_edges: edges a node keeps (the paper: 2).
    Returns: Genotype.
    Raises: ArgumentError if alphas has another shape.
    Source: Liu et al. 2019, arXiv:1806.09055, section 2.4.

    >>> cell = Cell({"none": Zero, "skip": nn.Identity, "flip": nn.Tanh}, num_nodes=1)
    >>> genotype(cell, torch.tensor([[9.0, 0.0, 1.0]]))
    Genotype(nodes=((('flip', 0),),))
    """
    shape = [len(cell.edges), len(cell.names)]
    if list(alphas.shape) != shape:
        raise ArgumentError("genotype(alphas)", f"shape {shape}", f"{list(alphas.shape)}")
    kept = [k for k, name in enumerate(cell.names) if name != NONE]
    strengths, choices = alphas.softmax(-1)[:, kept].max(-1)
    nodes: dict[int, list[tuple[float, str, int]]] = {}
    for (i, j), strength, choice in zip(cell.edges, strengths.tolist(), choices.tolist(), strict=True):
        nodes.setdefault(j, []).append((strength, cell.names[kept[choice]], i))
    strongest = [sorted(edges, key=lambda e: -e[0])[:num_edges] for edges in nodes.values()]
    return Genotype(tuple(tuple((name, i) for _, name, i in edges) for edges in strongest))
