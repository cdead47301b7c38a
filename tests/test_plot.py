"""Pictures show the numbers they were given, legibly."""

import sys
from typing import Any

import pytest
import torch

import metaopt as mo
from metaopt import plot
from metaopt.errors import ArgumentError, MissingExtraError
from metaopt.plot._curves import _running_median
from metaopt.plot._graph import dependencies


def test_a_learning_curve_has_an_axis_a_quantity_and_a_running_median() -> None:
    lines = [
        {"step": i + 1, "loss": 100.0 if i == 7 else 1.0 / (i + 1), "accuracy": i / 100} for i in range(100)
    ]
    figure = plot.learning_curve(lines)
    loss, accuracy = figure.axes
    assert loss.get_ylabel() == "query loss"
    assert accuracy.get_ylabel() == "query accuracy"
    raw, median = (line.get_ydata() for line in accuracy.get_lines())
    assert list(raw) == [i / 100 for i in range(100)]
    assert list(median) == [i / 100 for i in range(99)]  # windows of 2; torch's median is the lower
    assert len(plot.learning_curve(lines, "mse").axes) == 1


def test_running_medians_of_long_runs_are_few() -> None:
    last, medians = _running_median(torch.arange(60_000.0), 1200)
    assert len(medians) < 300
    torch.testing.assert_close(last - medians.long(), torch.full_like(last, 600))


def test_adapted_images_mark_right_and_wrong() -> None:
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    figure = plot.adapted_images((x, y), (x, y), torch.zeros(5).long(), torch.tensor([0, 1, 2, 3, 0]), way=5)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[:5] == [f"support {i}" for i in range(5)]
    assert titles[5:] == ["0 → 0\nright", "0 → 1\nright", "0 → 2\nright", "0 → 3\nright", "0 → 0\nis 4"]


def net(width: int = 8) -> tuple[Any, Any]:
    apply, params, _ = mo.functional(
        torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    )
    return apply, params


def texts(figure: Any) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for axis in figure.axes for text in written(axis)]


def written(axis: Any) -> list[Any]:
    return [*axis.get_xticklabels(), *axis.get_yticklabels(), *axis.texts]


def drawn(figure: Any) -> bytes:
    data = figure._repr_png_()
    assert data[:4] == b"\x89PNG"
    return data


def test_curves_go_through_the_predictions_of_the_adapted_parameters() -> None:
    apply, params = net()
    loss_fn = lambda p, b: ((apply(p, b[0]) - b[1]) ** 2).mean()
    opt = mo.optim.sgd(lr=torch.tensor([0.1, 0.05]), momentum=0.5)
    episodes = mo.tasks.sinusoid().sample(num_tasks=4, seed=0)
    figure = plot.adaptation(
        apply,
        loss_fn,
        opt,
        mo.Meta(params, opt.hparams),
        episodes,
        (0, 2),
        num_tasks=2,
        per_step_hparams=True,
    )
    assert len(figure.axes) == 2
    before, after, *_ = figure.axes[1].get_lines()
    out = mo.unroll(
        loss_fn, opt, params, mo.tree.index(episodes.support, 1), 2, opt.hparams, per_step_hparams=True
    )
    for line, weights in ((before, params), (after, out.params)):
        x = torch.as_tensor(line.get_xdata())[:, None]
        expected = apply(weights, x).detach()[:, 0]
        torch.testing.assert_close(torch.as_tensor(line.get_ydata()), expected)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["before", "after 2 steps", "support", "query"]
    known = plot.adaptation(
        apply, loss_fn, opt, params, episodes, (0,), num_tasks=1, truth=lambda t, x: x.sin()
    )
    assert [text.get_text() for text in known.legends[0].get_texts()] == ["truth", "before", "support"]
    drawn(figure)


def test_images_show_the_classes_predicted() -> None:
    apply, params, _ = mo.functional(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 5)))
    loss_fn = lambda p, b: torch.nn.functional.cross_entropy(apply(p, b[0]), b[1])
    episodes = mo.tasks.glyphs(way=5, shot=1, query=2, num_classes=8).sample(num_tasks=2, seed=0)
    figure = plot.adaptation(apply, loss_fn, mo.optim.sgd(lr=0.5), params, episodes, (0, 3))
    titles = [axis.get_title() for axis in figure.axes if "→" in axis.get_title()]
    support, (x, _) = mo.tree.index(episodes, 0)
    out = mo.unroll(loss_fn, mo.optim.sgd(lr=0.5), params, support, 3)
    now = [title.split()[2] for title in titles]
    assert now == [str(int(k)) for k in apply(out.params, x).argmax(-1)]


def test_inner_losses_are_lines_or_bands() -> None:
    losses = torch.tensor([[4.0, 2.0, 1.0], [8.0, 4.0, 2.0], [2.0, 1.0, 0.5]])
    axis = plot.inner_losses({"a": losses, "b": losses[0]}).axes[0]
    first, second = (list(line.get_ydata()) for line in axis.get_lines())
    assert first == second == [4.0, 2.0, 1.0]
    assert len(axis.collections) == 1
    assert axis.get_yscale() == "log"
    assert plot.inner_losses(-losses).axes[0].get_yscale() == "linear"
    with pytest.raises(ArgumentError, match=r"plot.inner_losses\(losses\): expected \[step\] or .* at b\."):
        plot.inner_losses({"b": torch.zeros(())})


def test_rates_by_layer_and_by_step() -> None:
    one = plot.rates({"w": torch.tensor(0.5), "b": torch.linspace(0, 1, 21)}, start=0.1)
    (band,) = one.axes[0].collections
    low, high = band.get_segments()[0][:, 0]
    assert abs(low - 0.05) < 1e-6
    assert abs(high - 0.95) < 1e-6
    assert {"w", "b"} <= set(texts(one))
    cells = plot.rates({"w": torch.tensor([0.1, 0.2]), "b": torch.tensor([0.3, 0.4])}, per_step=True)
    assert {"0.1", "0.2", "0.3", "0.4", "w", "b"} <= set(texts(cells))
    drawn(cells)


def test_audits_and_plans_are_rows_of_dots() -> None:
    problem = mo.hypergrad.Problem(lambda p, b: (p**2).sum(), mo.optim.sgd(lr=0.1), num_steps=16)
    audit = mo.audit(problem, torch.ones(3).double())
    figure = plot.agreement(audit)
    cosine = figure.axes[0].collections[0].get_offsets()
    kept = [r for r in audit.rows if not r.note]
    assert [round(x, 9) for x in cosine[:, 0]] == [round(r.cosine, 9) for r in kept]
    assert [r.name for r in kept] == [t for t in texts(figure) if t in {r.name for r in kept}][: len(kept)]
    assert "implicit" in figure._supxlabel.get_text()
    plan = mo.plan(problem._replace(params=torch.ones(3)))
    costs = plot.costs(plan, budget=1e6)
    peaks = costs.axes[0].collections[0].get_offsets()[:, 0]
    assert list(peaks) == [max(s.peak, 1) / 2**20 for s in plan.strategies]
    with pytest.raises(ArgumentError, match=r"plot.costs\(plan\): expected what .* got Audit"):
        plot.costs(audit)
    with pytest.raises(ArgumentError, match=r"plot.agreement\(audit\)"):
        plot.agreement(plan)


def arrows(figure: Any) -> int:
    return sum(type(patch).__name__ == "FancyArrowPatch" for patch in figure.axes[0].patches)


def test_the_graph_has_the_arrows_of_the_equations() -> None:
    square = lambda p, b, *phi: (p**2).sum() * (phi[0] if phi else 1.0)
    theta, lr = torch.ones(2), torch.tensor(0.1)
    plain = plot.graph(square, mo.optim.sgd(lr=0.1), theta, (), 2)
    assert arrows(plain) == 7  # θ→G, θ→θ, G→θ twice, and θ→F
    learned = plot.graph(square, mo.optim.sgd(lr=lr, momentum=lr), theta, (), 2, phi=(torch.ones(()),))
    # + lr→θ, s→θ twice; G→s in the place of G→θ; s→s; momentum→s once, s_1 being G_0; φ→G twice, φ→F
    assert arrows(learned) > arrows(plain)
    assert {"hparams: lr, momentum", "phi: [0]", "$s_2$"} <= set(texts(learned))
    first = plot.graph(square, mo.optim.sgd(lr=lr), theta, (), 2, order=1)
    assert "dotted: not differentiated" in first._supxlabel.get_text()
    assert "dotted" not in learned._supxlabel.get_text()
    with pytest.raises(ArgumentError, match=r"plot.graph\(num_steps\): expected 1 to 4, got 9\."):
        plot.graph(square, mo.optim.sgd(lr=0.1), theta, (), 9)
    drawn(learned)


def test_dependencies_are_those_of_autograd() -> None:
    a, b = (torch.tensor(x, requires_grad=True) for x in (2.0, 3.0))
    c = a * b
    d, e = c.detach() * a, {"x": c + b, "y": torch.ones(())}
    found = dependencies({"a": a, "b": b, "c": c, "d": d, "e": e})
    assert found == {"a": set(), "b": set(), "c": {"a", "b"}, "d": {"a"}, "e": {"c", "b"}}


def test_nothing_overlaps() -> None:
    """Tick labels and texts of a figure keep clear of each other."""
    problem = mo.hypergrad.Problem(lambda p, b: (p**2).sum(), mo.optim.sgd(lr=0.1), num_steps=16)
    figures = [
        plot.agreement(mo.audit(problem, torch.ones(3).double())),
        plot.costs(mo.plan(problem._replace(params=torch.ones(3)))),
        plot.rates({f"layer{i}.weight": torch.rand(()) for i in range(8)}, start=0.1),
        plot.rates({f"layer{i}.weight": torch.rand(10) for i in range(8)}, per_step=True),
        plot.graph(lambda p, b: p**2, mo.optim.adam(lr=torch.tensor(0.1)), torch.tensor(1.0), (), 4),
    ]
    for figure in figures:
        figure.canvas.draw()
        boxes = [
            text.get_window_extent()
            for axis in figure.axes
            for text in written(axis)
            if text.get_text() and text.get_visible()
        ]
        for i, box in enumerate(boxes):
            clash = [other for other in boxes[:i] if box.shrunk(0.9, 0.9).overlaps(other.shrunk(0.9, 0.9))]
            assert not clash, figure


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaopt.plot._picture", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'metaopt-torch\[vision\]'"):
        plot.graph(lambda p, b: p**2, mo.optim.sgd(lr=0.1), torch.tensor(1.0), ())
