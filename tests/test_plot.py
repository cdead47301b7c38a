"""Pictures show the numbers they were given, legibly."""

import torch

from metaopt import plot
from metaopt.plot._curves import _running_median


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
