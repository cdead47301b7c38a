"""What holds for every algorithm: vmap is the loop, the gradient is the derivative, inputs stay."""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path

import pytest
import torch
from families import CASES, ELSEWHERE, Case, gradient

import metaopt as mo
from metaopt import train
from metaopt.catalogue import catalogue

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
ROOM = Path(mo.algorithms.__file__).parent
NAMES = [case.name for case in CASES]


def test_every_initialisation_has_a_row_and_is_trained_by_name() -> None:
    assert set(train.ALGORITHMS) == set(train.METHODS) == set(NAMES)
    assert ELSEWHERE | set(NAMES) <= set(catalogue()["algorithms"])
    for name in (*NAMES, *ELSEWHERE):
        assert getattr(mo, name) is getattr(mo.algorithms, name)


def test_every_public_algorithm_is_tested_in_this_folder() -> None:
    """The initialisations by the rows of families.py, the others each in a file of its own."""
    tests = " ".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    missing = [name for name in catalogue()["algorithms"] if not re.search(rf"\b{name}\(", tests)]
    assert not missing


def _core(function: ast.FunctionDef, source: list[str]) -> int:
    """Lines of a function's body, without blank ones, comments, and its docstring or those inside."""
    documented = (ast.FunctionDef, ast.ClassDef)
    texts = [n.body[0] for n in ast.walk(function) if isinstance(n, documented) and ast.get_docstring(n)]
    prose = {line for text in texts for line in range(text.lineno, (text.end_lineno or 0) + 1)}
    lines = range(function.body[0].lineno, (function.end_lineno or 0) + 1)
    code = (source[line - 1].strip() for line in lines if line not in prose)
    return sum(bool(line) and not line.startswith("#") for line in code)


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.stem)
def test_files_and_cores_are_short(path: Path) -> None:
    """At most 150 lines a file; what any function returns or does, its core, at most 30."""
    text = path.read_text()
    assert text.count("\n") <= 150
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    cores = {function.name: _core(function, text.splitlines()) for function in functions}
    assert not {name: lines for name, lines in cores.items() if lines > 30}


def test_every_algorithm_has_a_file_of_its_own() -> None:
    for name in (*NAMES, *ELSEWHERE):
        assert (ROOM / f"_{name}.py").exists()


@each_case
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_vmap_equals_the_loop(case: Case, chunk_size: int | None) -> None:
    value, grads = gradient(case, "vmap", chunk_size=chunk_size)
    expected, others = gradient(case, "loop")
    assert abs(value - expected) < 1e-12
    top = max(float(g.abs().max()) for g in others)
    assert top > 1e-3
    for a, b in zip(grads, others, strict=True):
        assert float((a - b).abs().max()) < 1e-10 * top


@each_case
def test_gradient_equals_finite_differences_where_it_is_one(case: Case) -> None:
    leaves, structure = mo.tree.flatten(case.meta_params)
    index = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    directions = [torch.randn_like(leaves[i]) for i in index]
    over_tasks = mo.map_tasks(case.task, how="vmap")

    def along(h: float) -> float:
        moved = list(leaves)
        for i, d in zip(index, directions, strict=True):
            moved[i] = leaves[i] + h * d
        out = over_tasks(mo.tree.unflatten(structure, moved), case.episodes)
        return float((out.value if case.direct else out).mean())

    h = 1e-5
    numeric = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    analytic = float(sum((g * d).sum() for g, d in zip(gradient(case, "vmap")[1], directions, strict=True)))
    assert abs(numeric) > 1e-4
    if case.exact:
        assert analytic == pytest.approx(numeric, rel=1e-7)
    else:  # and first order is not the whole derivative
        assert analytic != pytest.approx(numeric, rel=1e-4)


@each_case
def test_inputs_are_left_as_they_were(case: Case) -> None:
    before = copy.deepcopy((case.meta_params, case.episodes))
    gradient(case, "vmap")
    for x, y in zip(mo.tree.leaves((case.meta_params, case.episodes)), mo.tree.leaves(before), strict=True):
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))
