"""The computation graph of an unrolled loop, a node for each thing that has a name in the equations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.exact import exact
from metaopt.plot._figure import BLUE, GREEN, GREY, ORANGE, PINK, figure
from metaopt.step import Order, inner_step
from metaopt.types import LossFn, Optimizer

__all__ = ["dependencies", "graph"]

Edges = dict[str, set[str]]


def dependencies(named: dict[str, Any]) -> Edges:
    """For every name, the names that its tensors were computed from, by way of no third name.

    What autograd knows: a value that was detached, or a constant, depends on nothing.

    Args: named: trees of tensors by name.

    >>> import torch
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> b = (2 * a).exp()
    >>> dependencies({"a": a, "b": b, "c": b + 1})
    {'a': set(), 'b': {'a'}, 'c': {'b'}}
    """
    owner: dict[Any, str] = {}
    for name, value in named.items():
        for x in _tensors(value):
            owner[x if x.grad_fn is None else x.grad_fn] = name
    found: Edges = {name: set() for name in named}
    for name, value in named.items():
        stack, seen = [x.grad_fn for x in _tensors(value) if x.grad_fn is not None], set()
        while stack:
            node = stack.pop()
            for parent, _ in node.next_functions:
                if parent is None or parent in seen:
                    continue
                seen.add(parent)
                whose = owner.get(getattr(parent, "variable", parent))
                if whose is None or whose == name:
                    stack.append(parent)
                else:
                    found[name].add(whose)
    return found


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree.leaves(value) if isinstance(x, Tensor) and x.requires_grad]


def graph(
    loss_fn: LossFn,
    opt: Optimizer,
    params: Any,
    batch: Any,
    num_steps: int = 2,
    hparams: Any = None,
    phi: tuple[Any, ...] = (),
    *,
    order: Order = 2,
) -> Any:
    """Draw what a hypergradient flows through: an arrow wherever autograd has a path.

    The steps are taken and autograd's graph is read, with everything between two names left out: first
    order, a detached loss or a hyperparameter without effect is seen as the arrow that is missing.

    Args: loss_fn, opt, params, batch, hparams, phi, order: as in `unroll`; the batch is repeated, and
              judges the result too. Tensors of hparams and phi are drawn; numbers are constants.
          num_steps: 1 to 4, for the steps are alike.
    Returns: a matplotlib Figure.
    Raises: ArgumentError; MissingExtraError without matplotlib.
    Cost: the steps and one loss.

    >>> import torch, metaopt as mo
    >>> fig = graph(lambda p, b: p**2, mo.optim.sgd(lr=torch.tensor(0.1)), torch.tensor(1.0), ())
    >>> [text.get_text() for text in fig.axes[0].texts][:3]
    ['$θ_0$', '$G_0$', '$θ_1$']
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 1 <= num_steps <= 4:
        remedy = "The steps are alike: draw a few of them."
        raise ArgumentError("plot.graph(num_steps)", "1 to 4", repr(num_steps), remedy=remedy)
    hparams = opt.hparams if hparams is None else hparams
    params, hparams, phi = (tree.map(_fresh, x) for x in (params, hparams, phi))
    named: dict[str, Any] = {"α": hparams, "φ": phi, "θ_0": params}
    gradients: list[Any] = []

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> Any:
        gradients.append(grads)
        return opt.update(params, state, grads, hparams)

    watched, state = Optimizer(opt.init, update, opt.hparams), opt.init(params)
    for j in range(num_steps):
        params, state, _ = inner_step(loss_fn, watched, params, state, batch, hparams, phi, order=order)
        named |= {f"G_{j}": gradients[j], f"s_{j + 1}": state, f"θ_{j + 1}": params}
    with exact():
        named["F"] = loss_fn(params, batch, *phi)
    kept = {name: value for name, value in named.items() if name[0] != "s" or _tensors(value)}
    bars = {"α": _names("hparams", hparams), "φ": _names("phi", phi)}
    return _draw(kept, dependencies(kept), num_steps, {k: v for k, v in bars.items() if _tensors(named[k])})


def _fresh(x: Any) -> Any:
    learned = isinstance(x, Tensor) and x.is_floating_point()
    return x.detach().clone().requires_grad_() if learned else x


def _names(title: str, value: Any) -> str:
    names = [p for p, x in zip(tree.paths(value), tree.leaves(value), strict=True) if isinstance(x, Tensor)]
    text = ", ".join(names)
    return f"{title}: {text if len(text) <= 40 else f'{len(names)} tensors'}"


def _place(name: str, num_steps: int) -> tuple[float, float]:
    """Where a node stands: θ on a line, its gradient below on the way, its state above."""
    if name == "F":
        return 2.0 * num_steps + 1.3, 1.0
    kind, j = name[0], int(name[2:])
    return {"θ": (2.0 * j, 1.0), "G": (2.0 * j + 0.9, 0.0), "s": (2.0 * j - 0.6, 2.0)}[kind]


_LOOK = {"θ": BLUE, "G": ORANGE, "s": GREEN, "F": "black"}
_RADIUS = 0.27


def _draw(named: Iterable[str], edges: Edges, num_steps: int, bars: dict[str, str]) -> Any:
    nodes = [name for name in named if name not in ("α", "φ")]
    right = 2.0 * num_steps + 1.3
    tall = 2.0 if any(name[0] == "s" for name in nodes) else 1.0
    height = {"α": tall + 1.0, "φ": -1.0}
    top, bottom = tall + 1.4 * ("α" in bars) + 0.4, -0.4 - 1.0 * ("φ" in bars)
    fig = figure(figsize=(0.72 * (right + 1.2), 0.72 * (top - bottom) + 0.5))
    axis = fig.subplots()  # figure() has told where matplotlib is missing
    from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

    axis.set(xlim=(-0.6, right + 0.6), ylim=(bottom, top), aspect="equal")
    axis.set_axis_off()
    patches: dict[str, Any] = {}
    for name in nodes:
        x, y = _place(name, num_steps)
        lives = bool(edges[name]) or any(name in others for others in edges.values())
        line = (
            {"edgecolor": _LOOK[name[0]], "linestyle": "-"}
            if lives
            else {"edgecolor": GREY, "linestyle": ":"}
        )
        patches[name] = axis.add_patch(
            Circle((x, y), _RADIUS, facecolor="white", linewidth=2, zorder=3, **line)
        )
        axis.text(x, y, f"${name}$", ha="center", va="center", zorder=4)
    for name, text in bars.items():
        left, y = (0.6, height[name])
        box = FancyBboxPatch(
            (left, y - 0.2), right - left, 0.4, boxstyle="round,pad=0.06", facecolor="white", edgecolor=PINK
        )
        box.set(linewidth=2, zorder=3)
        axis.add_patch(box)
        axis.text((left + right) / 2, y, text, ha="center", va="center", zorder=4, size=9)

    def arrow(start: Any, end: Any, a: Any, b: Any, **look: Any) -> None:
        options: dict[str, Any] = {
            "arrowstyle": "-|>",
            "mutation_scale": 11,
            "shrinkA": 1,
            "shrinkB": 1,
            "zorder": 2,
        }
        axis.add_patch(FancyArrowPatch(start, end, patchA=a, patchB=b, **options, **look))

    for name in nodes:
        x, y = _place(name, num_steps)
        for parent in edges[name]:
            if parent in bars:
                edge = height[parent] - 0.26 if parent == "α" else height[parent] + 0.26
                arrow((x, edge), (x, y), None, patches[name], color=PINK)
            else:
                arrow(_place(parent, num_steps), (x, y), patches[parent], patches[name], color="#333333")
    cut = [(f"θ_{j}", f"G_{j}") for j in range(num_steps)] + [
        (f"G_{j}", f"{'s' if f's_{j + 1}' in nodes else 'θ'}_{j + 1}") for j in range(num_steps)
    ]
    missing = [(a, b) for a, b in cut if a not in edges[b]]
    for a, b in missing:
        ends = _place(a, num_steps), _place(b, num_steps)
        arrow(*ends, patches[a], patches[b], color=GREY, linestyle=":")
    kinds = {"θ": "parameters", "G": "inner gradient", "s": "state", "F": "outer loss"}
    shown = [f"${k}$ {what}" for k, what in kinds.items() if any(name[0] == k for name in nodes)]
    fig.supxlabel("   ".join([*shown, *(["dotted: not differentiated"] if missing else [])]), fontsize=8.5)
    return fig
