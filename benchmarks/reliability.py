"""What can go wrong, and how often it was tried: the reliability table.

    python -m benchmarks.reliability [ROW ...] [--kills 50] [--steps 10000] [--out FILE]

Rows: tests, kills, memory, ranks; all where none is named. ``tests`` runs the laws of the test suite and
counts the cases that passed. ``ranks`` needs root and Linux: it makes network namespaces that are joined
by a bridge, starts torchrun in each of them, kills a rank, and compares with one process.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import torch

import metaopt as mo
from benchmarks.namespaces import Namespaces

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "train"))

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

# TARGETS.md's closed forms, and the test that compares with each of them.
EXACT = ("lr_of_scalar", "init_of_scalar", "lr_of_matrix", "momentum_of_scalar", "decay_of_scalar")
CLOSED: dict[int, str] = {i: f"{ESTIMATORS}::test_closed_forms[{name}" for i, name in enumerate(EXACT, 1)}
CLOSED |= {
    6: f"{ESTIMATORS}::test_closed_forms[decoupled_decay",
    7: f"{IMPLICIT}::test_closed_forms[",
    8: "tests/linsolve/test_solvers.py::test_the_error_of_the_neumann_series",
    9: f"{ESTIMATORS}::test_closed_forms[one_step_maml",
    10: f"{ESTIMATORS}::test_first_order_is_fomaml",
    11: "tests/algorithms/test_closed_forms_of_algorithms.py::test_11_reptile",
    12: f"{IMPLICIT}::test_imaml_at_the_proximal_point_is_the_total_derivative",
    13: f"{ESTIMATORS}::test_closed_forms[example_weights",
    14: f"{EVOLUTION}::test_pes_is_unbiased_where_truncated_es_is_not",
    15: "tests/optim/test_derivatives.py::test_adams_first_step",
    16: f"{EVOLUTION}::test_es_of_a_cubic",
    17: f"{ESTIMATORS}::test_closed_forms[cauchy_step",
}
KEYWORDS = {7: "ridge"}  # where the beginning of the name does not tell


class Row(NamedTuple):
    """One line of the table."""

    figure: str
    target: str
    measured: str
    met: bool


def refusals() -> set[str]:
    """The tests that assert an exception's type and its text, by ``file::name``."""
    found = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                for call in ast.walk(function):
                    raises = isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.raises"
                    if raises and any(k.arg == "match" for k in call.keywords):
                        found.add(f"{path.relative_to(ROOT)}::{function.name}")
    return found


def passed(nodes: list[str]) -> tuple[list[str], str]:
    """Run tests; the ids of those that passed, and what hypothesis says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        command += ["--hypothesis-show-statistics", *nodes]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        cases = ElementTree.parse(report).iter("testcase")
        good = [c for c in cases if not any(e.tag in ("failure", "error", "skipped") for e in c)]
        return [f"{c.get('file')}::{c.get('name')}" for c in good], run.stdout


def of_tests() -> list[Row]:
    """The rows that the test suite's own cases fill."""
    nodes = {node.partition("::")[0] for node in refusals()} | {"tests/hypergrad", "tests/linsolve"}
    nodes |= {
        "tests/algorithms",
        PARITY,
        GRADCHECK,
        GRADGRADCHECK,
        PYTREES,
        KINDS,
        THREADS,
        STRANGERS,
        ARCHIVES,
    }
    found, said = passed(sorted(nodes))

    def count(beginning: str) -> int:
        return sum(
            case == beginning or case.startswith((beginning + "[", beginning + "::")) for case in found
        )

    forms = [
        number
        for number, beginning in CLOSED.items()
        if any(case.startswith(beginning) and KEYWORDS.get(number, "") in case for case in found)
    ]
    kinds = {re.split(r"[\[\]]", case)[1].split("-")[0] for case in found if case.startswith(KINDS + "[")}
    told = refusals()
    bad = sum(case.partition("[")[0] in told for case in found)
    tried = sum(int(n) for n in re.findall(r"(\d+) passing examples", said))
    missing = sorted(CLOSED.keys() - set(forms))
    rows = [
        ("parity with torch.optim: optimizers × options × {f64, f32, bf16}, 10 steps", 1000, count(PARITY)),
        ("gradcheck: optimizer × each continuous hyperparameter, state and gradient", 200, count(GRADCHECK)),
        ("gradgradcheck", 100, count(GRADGRADCHECK)),
        ("bad inputs, each asserting type, text and leaf path", 124, bad),
        ("hypothesis pytrees", 10_000, tried),
        ("hostile or foreign files refused, with nothing run", 9, count(STRANGERS) + count(ARCHIVES)),
        ("8 threads over one module: serial numbers", 4, count(THREADS)),
    ]
    table = [Row(figure, f"≥ {least:,}", f"{n:,}", n >= least) for figure, least, n in rows]
    closed = f"{len(forms)} of 17" + (f" (not found: {missing})" if missing else "")
    table.insert(3, Row("closed forms", "17 of 17", closed, not missing))
    cases = f"{len(kinds)} kinds, {count(KINDS)} cases"
    table.append(Row("exact under vmap: loop = vmap to 1e-10", "all", cases, count(KINDS) > 0))
    return table


def of_kills(kills: int) -> list[Row]:
    """SIGKILL at random moments, a quarter of them inside a checkpoint's write; then the same call again."""
    from rank_programs import start, train_and_die

    files = ("checkpoint.pt", "checkpoint.previous.pt", "metrics.jsonl")
    rng, equal, writing, options = random.Random(0), 0, 0, {"iterations": 40}
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, moment: int = 0, wait: float | None = None) -> int | None:
            process = start(train_and_die, Path(folder) / name, moment, options)
            process.join(wait)
            if process.is_alive():
                process.kill()
                process.join()
            return process.exitcode

        run("warm")
        began = time.monotonic()
        assert run("whole") == 0
        length = time.monotonic() - began
        for kill in range(kills):
            name, inside = f"cut{kill}", kill % 4 == 0
            code: int | None = 0
            while code != -signal.SIGKILL:  # where the run was over first, try again
                code = run(name, rng.randint(1, 50)) if inside else run(name, 0, rng.uniform(0.05, length))
                assert code in (0, -signal.SIGKILL)
            writing += inside
            assert run(name) == 0
            both = [(Path(folder) / n / f).read_bytes() for n in ("whole", name) for f in files]
            equal += both[: len(files)] == both[len(files) :]
    figure = f"kill -9 at a random moment ({writing} inside a checkpoint's write), then resume"
    return [Row(figure, f"bitwise the same, {kills}", f"{equal} of {kills}", equal == kills >= 50)]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def graphs() -> int:
    """Live tensors with a history."""
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) and x.grad_fn is not None for x in gc.get_objects())


def of_memory(steps: int) -> list[Row]:
    """Resident memory against outer steps: a least-squares slope past the first fifth."""
    task = mo.maml(lambda p, b: ((p["w"] * b) ** 2).mean(), mo.optim.sgd(lr=0.1), num_steps=2)

    def draw(step: int) -> mo.Episode:
        x = torch.randn(4, 8)
        return mo.Episode(x, x)

    sizes: list[tuple[int, int]] = []
    before = graphs()

    def measure(event: mo.train.Step) -> None:
        if event.step % 200 == 0:
            gc.collect()  # garbage that Python has not looked for yet is no leak
            sizes.append((event.step, resident()))

    with tempfile.TemporaryDirectory() as folder:
        params = {"w": torch.ones(8)}
        mo.train.fit(mo.map_tasks(task), params, draw, num_steps=steps, out=folder, callbacks=[measure])
    late = [(n, size) for n, size in sizes if n > steps // 5]
    n, size = (torch.tensor(column, dtype=torch.float64) for column in zip(*late, strict=True))
    centred = n - n.mean()
    slope = float((centred * (size - size.mean())).sum() / (centred**2).sum())
    rise = (late[-1][1] - late[0][1]) / 1024
    left = graphs() - before
    measured = f"{slope:+.2f} bytes a step ({rise:+.0f} KiB in all), {left} live graph tensors"
    return [Row(f"{steps:,} outer steps", "resident memory slope 0", measured, abs(slope) < 8 and left == 0)]


def of_ranks(sizes: tuple[int, ...] = (2, 4)) -> list[Row]:
    """torchrun in network namespaces of their own; one rank is killed; the end against one process."""
    from rank_programs import TINY, run_tiny

    rows = []
    options = TINY | {"iterations": 400}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    with tempfile.TemporaryDirectory() as folder:
        one = run_tiny(Path(folder) / "one", **{"iterations": 400}).meta_params.params
        for size in sizes:
            out = Path(folder) / f"out{size}"
            with Namespaces(size) as spaces:
                restarts = spaces.train_and_lose_one(["sinusoid", *flags, f"--out={out}"], out)
            leaves = mo.train.load(out / "checkpoint.pt").leaves
            apart = max(float((leaves[f"learned.params['{k}']"] - v).abs().max()) for k, v in one.items())
            steps = [json.loads(x)["step"] for x in (out / "metrics.jsonl").read_text().splitlines()]
            whole = steps == list(range(1, 401))
            figure = f"{size} ranks in {size} network namespaces, one killed ({restarts} restart)"
            measured = f"{apart:.0e} from one rank"
            rows.append(Row(figure, "one rank's to 1e-12", measured, apart <= 1e-12 and whole))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="tests, kills, memory, ranks")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measures = {
        "kills": lambda: of_kills(options.kills),
        "memory": lambda: of_memory(options.steps),
        "ranks": of_ranks,
        "tests": of_tests,
    }
    if unknown := set(options.rows) - measures.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    lines = ["| figure | target | measured | |", "| --- | --- | --- | --- |"]
    for name in options.rows or measures:
        for row in measures[name]():
            lines.append(f"| {row.figure} | {row.target} | {row.measured} | {'✓' if row.met else 'short'} |")
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
