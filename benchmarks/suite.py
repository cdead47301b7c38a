"""What the test suite tries, counted: its cases by collection, and those that passed by a report of a run.

A report is what ``python -m pytest --junitxml=FILE`` leaves. Without one the short rows are run here, and
the long ones are counted by collection and say so: the gate runs them.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.rows import Row

__all__ = ["CLOSED", "Case", "Passed", "closed_forms", "collected", "named", "of_tests", "read", "refusals"]

ROOT = Path(__file__).parent.parent

PARITY = "tests/optim/test_parity.py::test_equals_torch_optim"
GRADCHECK = "tests/optim/test_derivatives.py::test_gradcheck"
GRADGRADCHECK = "tests/optim/test_derivatives.py::test_gradgradcheck"
PYTREES = "tests/optim/test_laws.py::test_any_pytree"
KINDS = "tests/exact/test_exact_table.py::test_every_strategy_agrees_with_the_loop"
THREADS = "tests/train/test_threads.py"
STRANGERS = "tests/train/test_checkpoints.py::test_strangers_run_nothing_and_are_refused"
ARCHIVES = "tests/tasks/test_archive_safety.py"
ESTIMATORS, EVOLUTION = "tests/hypergrad/test_estimators.py", "tests/hypergrad/test_evolution.py"
IMPLICIT = "tests/hypergrad/test_implicit.py"

# The closed forms by their number in the table of targets: the test that compares with each, and its row.
CLOSED: dict[int, tuple[str, str]] = {
    1: (f"{ESTIMATORS}::test_closed_forms", "lr_of_scalar"),
    2: (f"{ESTIMATORS}::test_closed_forms", "init_of_scalar"),
    3: (f"{ESTIMATORS}::test_closed_forms", "lr_of_matrix"),
    4: (f"{ESTIMATORS}::test_closed_forms", "momentum_of_scalar"),
    5: (f"{ESTIMATORS}::test_closed_forms", "decay_of_scalar"),
    6: (f"{ESTIMATORS}::test_closed_forms", "decoupled_decay"),
    7: (f"{IMPLICIT}::test_closed_forms", "ridge"),
    8: ("tests/linsolve/test_solvers.py::test_the_error_of_the_neumann_series", ""),
    9: (f"{ESTIMATORS}::test_closed_forms", "one_step_maml"),
    10: (f"{ESTIMATORS}::test_first_order_is_fomaml", ""),
    11: ("tests/algorithms/test_closed_forms_of_algorithms.py::test_11_reptile", ""),
    12: (f"{IMPLICIT}::test_imaml_at_the_proximal_point_is_the_total_derivative", ""),
    13: (f"{ESTIMATORS}::test_closed_forms", "example_weights"),
    14: (f"{EVOLUTION}::test_pes_is_unbiased_where_truncated_es_is_not", ""),
    15: ("tests/optim/test_derivatives.py::test_adams_first_step", ""),
    16: (f"{EVOLUTION}::test_es_of_a_cubic", ""),
    17: (f"{ESTIMATORS}::test_closed_forms", "cauchy_step"),
}
SHORT = sorted({THREADS, STRANGERS, ARCHIVES} | {node for node, _ in CLOSED.values()})


class Case(NamedTuple):
    """A collected test: its id, and the texts by which it wants to be refused."""

    id: str
    texts: tuple[str, ...] = ()


class Passed(NamedTuple):
    """What a report tells: ids that passed, ids that did not, and hypothesis's examples by test."""

    good: set[str]
    bad: set[str]
    examples: dict[str, int]


def named(case: str, node: str, row: str = "") -> bool:
    """Whether a case is one of a test, or of a file, and of the row of its table."""
    function, _, parameters = case.partition("[")
    inside = function == node or function.startswith(node + "::")
    return inside and (not row or row in re.split(r"[-\]]", parameters))


def closed_forms(cases: set[str], without: set[str] = frozenset()) -> list[int]:  # type: ignore[assignment]
    """Numbers of the closed forms that a case is there for, and of which none is in ``without``."""
    return [
        number
        for number, (node, row) in CLOSED.items()
        if any(named(c, node, row) for c in cases) and not any(named(c, node, row) for c in without)
    ]


@cache
def _matches(path: Path) -> dict[str, list[ast.expr]]:
    """The ``match=`` of every pytest.raises that a test is sure to reach, as an expression."""
    found: dict[str, list[ast.expr]] = {}

    def walk(node: ast.AST, texts: list[ast.expr], local: dict[str, ast.expr]) -> None:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            local[node.targets[0].id] = node.value
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises" and node.args:
            wanted = [k.value for k in node.keywords if k.arg == "match"]
            texts += [local.get(x.id, x) if isinstance(x, ast.Name) else x for x in wanted]
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.If):  # what not every case reaches is not counted
                walk(child, texts, local)

    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            walk(function, found.setdefault(function.name, []), {})
    return found


def _text(node: ast.expr, names: dict[str, Any]) -> str:
    """The pattern that an expression makes of a case's parameters, or its literal parts."""
    try:
        return str(eval(compile(ast.Expression(node), "match", "eval"), names))
    except (NameError, AttributeError, KeyError, TypeError):
        parts = [x.value for x in ast.walk(node) if isinstance(x, ast.Constant)]
        return "…".join(x for x in parts if isinstance(x, str))


def collected(*paths: str) -> list[Case]:
    """The cases in these files and folders, without running any."""
    cases: list[Case] = []

    class Collect:
        def pytest_collection_finish(self, session: pytest.Session) -> None:
            for item in session.items:
                if isinstance(item, pytest.Function):
                    names = item.function.__globals__ | getattr(getattr(item, "callspec", None), "params", {})
                    wanted = _matches(item.path).get(item.originalname, [])
                    cases.append(Case(item.nodeid, tuple(_text(node, names) for node in wanted)))

    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(["--collect-only", "-qq", f"--rootdir={ROOT}", *paths], plugins=[Collect()])
    if code:
        raise RuntimeError(said.getvalue()[-2000:])
    return cases


ARGUMENT = re.compile(r"\w\\?\([\w.\[\]\\*]+\\?\)")  # call(argument)
# got Y at PATH, where the path is a leaf's and no file's, address or step
LEAF = re.compile(r"\bat (?!least|most|a\b|the\b|http|step|task|\.\*|\S*\\\.(?:npz|zip|pt))\S")


def refusals(cases: list[Case]) -> tuple[list[str], list[str]]:
    """The cases that are refused with a text that names the leaf's path, or else the argument."""
    leaves = [c.id for c in cases if any(LEAF.search(t) for t in c.texts)]
    arguments = [c.id for c in cases if any(ARGUMENT.search(t) for t in c.texts)]
    return leaves, sorted(set(arguments) - set(leaves))


def read(report: Path) -> Passed:
    """A junit report of pytest's."""
    suite = ElementTree.parse(report)
    good, bad = set(), set()
    for case in suite.iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        tags = {e.tag for e in case}
        (bad if tags & {"failure", "error"} else good if "skipped" not in tags else set()).add(name)
    examples = {}
    for entry in suite.iter("property"):
        kind, _, test = (entry.get("name") or "").partition("hypothesis-statistics-")
        if test and not kind:
            said = base64.b64decode(entry.get("value") or "").decode()
            examples[test] = sum(map(int, re.findall(r"(\d+) passing", said)))
    return Passed(good, bad, examples)


def run(nodes: list[str]) -> Passed:
    """Run tests in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *nodes]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        return read(report)


def of_tests(report: Path | None = None) -> list[Row]:
    """The rows that the test suite's own cases fill."""
    cases = collected("tests")
    passed = read(report) if report else run(SHORT)
    whole = report is not None

    def count(node: str) -> tuple[int, str]:
        """Cases that passed, or that are there where they were not run."""
        ran = whole or any(named(node, short) for short in SHORT)
        number = sum(named(c, node) for c in (passed.good if ran else {c.id for c in cases}))
        failed = sum(named(c, node) for c in passed.bad)
        return (-1 if failed else number), f"{number:,}" + (f", {failed} failed" if failed else "") + (
            "" if ran else " collected"
        )

    told = [c for c in cases if c.texts and (not whole or c.id in passed.good)]
    leaves, arguments = refusals(told)
    texts = {text for c in told for text in c.texts if LEAF.search(text) or ARGUMENT.search(text)}
    bad = f"{len(leaves)} with a leaf path, {len(arguments)} more with an argument, {len(texts)} texts"
    forms = closed_forms(passed.good, passed.bad)
    missing = sorted(CLOSED.keys() - set(forms))
    trees = sum(n for test, n in passed.examples.items() if named(test, PYTREES) and test in passed.good)
    archives, strangers = count(ARCHIVES), count(STRANGERS)
    rows = [
        ("parity with torch.optim: optimizers × options × {f64, f32, bf16}, 10 steps", 1000, count(PARITY)),
        ("gradcheck: optimizer × each continuous hyperparameter, state and gradient", 200, count(GRADCHECK)),
        ("gradgradcheck", 100, count(GRADGRADCHECK)),
        (
            "bad inputs, each asserting type, text and leaf path",
            124,
            (len(leaves), bad + ("" if whole else " collected")),
        ),
        ("hypothesis pytrees", 10_000, (trees, f"{trees:,}") if whole else _asked(cases)),
        (
            "hostile or foreign files refused, with nothing run",
            9,
            (min(archives[0], strangers[0]), f"{strangers[1]} checkpoints, {archives[1]} archives"),
        ),
        ("8 threads over one module: serial numbers", 4, count(THREADS)),
        ("exact under vmap: loop = vmap to 1e-10", 1, count(KINDS)),
    ]
    table = [Row(figure, f"≥ {least:,}", said, n >= least) for figure, least, (n, said) in rows]
    closed = f"{len(forms)} of 17" + (f" (not found or failed: {missing})" if missing else "")
    table.insert(3, Row("closed forms", "17 of 17", closed, not missing))
    return table


def _asked(cases: list[Case]) -> tuple[int, str]:
    """Examples that hypothesis is asked for: a test's number, times its cases."""
    path, _, name = PYTREES.partition("::")
    test = getattr(sys.modules[Path(path).stem], name)  # collection has imported it
    number = test._hypothesis_internal_use_settings.max_examples * sum(named(c.id, PYTREES) for c in cases)
    return number, f"{number:,} asked for"
