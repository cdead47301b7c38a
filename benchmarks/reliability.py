"""What can go wrong, and how often it was tried: the reliability table.

    python -m benchmarks.reliability [ROW ...] [--kills 50] [--steps 20000] [--report FILE] [--out FILE]

Rows: tests, kills, memory, ranks; all where none is named. ``tests`` counts the cases of the test suite that
passed, by the report of a run (``pytest --junitxml=FILE``) or, without one, by collection and a short run.
``ranks`` needs root and Linux: it makes network namespaces that are joined by a bridge, starts torchrun in
each of them, kills a rank, and compares with one process.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

import metaopt as mo
from benchmarks.memory_slope import of_memory
from benchmarks.namespaces import Namespaces
from benchmarks.rows import HEADER, Row
from benchmarks.suite import of_tests

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "train"))


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
    parser.add_argument("--steps", type=int, default=20_000, help="of which the second half counts")
    parser.add_argument("--report", type=Path, help="junit report of a finished run of the tests")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measures = {
        "kills": lambda: of_kills(options.kills),
        "memory": lambda: of_memory(options.steps),
        "ranks": of_ranks,
        "tests": lambda: of_tests(options.report),
    }
    if unknown := set(options.rows) - measures.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    lines = [*HEADER]
    for name in options.rows or measures:
        for row in measures[name]():
            lines.append(str(row))
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
