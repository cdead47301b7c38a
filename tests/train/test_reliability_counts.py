"""The reliability benchmark's own arithmetic: what it counts is there, and a loop leaves nothing alive."""

from __future__ import annotations

import ast
import base64
import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import metaopt as mo

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import suite  # noqa: E402


@pytest.mark.parametrize("number", range(1, 18))
def test_every_closed_form_has_a_test_that_exists(number: int) -> None:
    node, row = suite.CLOSED[number]
    path, _, name = node.partition("::")
    text = (ROOT / path).read_text()
    functions = [f.name for f in ast.walk(ast.parse(text)) if isinstance(f, ast.FunctionDef)]
    assert any(f.startswith(name) for f in functions)
    assert row in (ROOT / "tests" / "scenarios.py").read_text() + text
    assert suite.closed_forms({f"{node}[{row}-unrolled]"}) == [number] or not row


def test_a_report_tells_what_passed_failed_and_was_tried(tmp_path: Path) -> None:
    stats = base64.b64encode(b"- 225 passing, 0 failing, and 19 invalid test cases").decode()
    report = tmp_path / "report.xml"
    report.write_text(
        f"""<testsuites><testsuite><properties>
        <property name="hypothesis-statistics-{suite.PYTREES}[sgd]" value="{stats}"/></properties>
        <testcase classname="tests.optim.test_laws" name="test_any_pytree[sgd]"/>
        <testcase classname="tests.optim.test_laws" name="test_b"><failure/></testcase>
        <testcase classname="tests.optim.test_laws" name="test_c"><skipped/></testcase>
        </testsuite></testsuites>"""
    )
    passed = suite.read(report)
    assert passed.good == {f"{suite.PYTREES}[sgd]"}
    assert passed.bad == {"tests/optim/test_laws.py::test_b"}
    assert passed.examples == {f"{suite.PYTREES}[sgd]": 225}


def test_a_bad_input_counts_where_its_text_names_a_place() -> None:
    texts = {
        "path": r"fit\(meta_params\): expected .*, got int at \['w'\]",
        "argument": r"train\(shot\): expected an integer",
        "neither": "expected at least 3",
        "file": r"a damaged file .*at checkpoint\.pt",
    }
    leaves, arguments = suite.refusals([suite.Case(name, (text,)) for name, text in texts.items()])
    assert (leaves, arguments) == (["path"], ["argument"])


def test_outer_steps_leave_nothing_alive(tmp_path: Path) -> None:
    task = mo.maml(lambda p, b: ((p["w"] * b) ** 2).mean(), mo.optim.sgd(lr=0.1), num_steps=2)
    blocks, objects = [0] * 10, [0] * 10

    def draw(step: int) -> Any:
        x = torch.randn(2, 4)
        return mo.Episode(x, x)

    def measure(event: mo.train.Step) -> None:
        if event.step % 100 == 0:  # as many lines wait in the log's buffer each time
            gc.collect()
            objects[event.step // 100 - 1] = len(gc.get_objects())
            blocks[event.step // 100 - 1] = sys.getallocatedblocks()

    run: dict[str, Any] = {"num_steps": 1000, "checkpoint_every": 20, "callbacks": [measure]}
    mo.train.fit(mo.map_tasks(task), {"w": torch.ones(4)}, draw, out=tmp_path, **run)
    # the caches of the interpreter are full after some 500 steps; one object left alive by every step
    # from there on would be 400 more, and one left by every checkpoint 20
    assert max(blocks[8:]) - max(blocks[4:6]) < 100
    assert max(objects[8:]) - max(objects[4:6]) < 20
