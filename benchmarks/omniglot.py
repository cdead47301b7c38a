"""What does every initialisation reach in the same CPU time? ``python -m benchmarks.omniglot --data DIR``

Omniglot, 5-way 1-shot unless said, Vinyals split, training classes rotated, test classes not; one thread. The
number of outer steps is the budget over a measured step, so that the cosine schedule ends with it. Each row
is appended to a file; ``--table`` prints its table beside what the papers report, ``--publish`` puts that
into the READMEs, between their markers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from metaopt import train

RESULTS = Path(__file__).parent / "omniglot.jsonl"
PAGES = [RESULTS.parents[1] / page for page in ("README.md", "metaopt/algorithms/README.md")]
BEGIN, END = "<!-- python -m benchmarks.omniglot --publish -->\n", "<!-- end -->"
WARM, MEASURED = 5, 20

# 5-way 1-shot accuracy in percent as the papers give it, with far longer training.
PAPERS = {
    "maml": "98.7 ± 0.4 (Finn 2017)",
    "fomaml": "98.3 ± 0.5 (Finn 2017)",
    "reptile": "97.68 ± 0.04 (Nichol 2018, transduction)",
    "imaml": "99.16 (Rajeswaran 2019, GD)",
    "meta_sgd": "99.53 ± 0.26 (Li 2017)",
    "maml_plus_plus": "99.47 (Antoniou 2019)",
    "protonet": "98.8 (Snell 2017)",
    "anil": "96.2 ± 0.5 (Raghu 2020, 20-way)",
}


def seconds_of(config: train.Config, problem: train.Problem, steps: int) -> float:
    """CPU seconds of so many outer steps."""
    with tempfile.TemporaryDirectory() as out:
        began = time.process_time()
        train.train(dataclasses.replace(config, iterations=steps), problem, Path(out), progress=False)
        return time.process_time() - began


def measure(name: str, minutes: float, tasks: int, progress: bool, **given: Any) -> dict[str, Any]:
    """Train one algorithm for so long and score it."""
    config = train.config_for("omniglot", name, **given)
    torch.set_num_threads(config.threads or 1)
    problem = train.make_problem(config)
    seconds_of(config, problem, WARM)
    step = seconds_of(config, problem, MEASURED) / MEASURED
    config = dataclasses.replace(config, iterations=max(1, round(60 * minutes / step)))
    with tempfile.TemporaryDirectory() as out:
        began = time.process_time()
        run = train.train(config, problem, Path(out), progress=progress, checkpoint_every=1000).run
        spent = time.process_time() - began
    found = train.evaluate(config, problem, run.learned, num_tasks=tasks)
    shown = (
        "way",
        "shot",
        "width",
        "last_width",
        "meta_batch",
        "inner_steps",
        "test_steps",
        "train_way",
        "train_shot",
        "seed",
    )
    return {
        "algorithm": name,
        "accuracy": 100 * found.mean[-1].item(),
        "interval": 100 * found.half_width[-1].item(),
        "iterations": config.iterations,
        "cpu_seconds": spent,
        "budget_seconds": 60 * minutes,
        "batch_norm": "transductive",
        "split": config.split,
        "tasks": tasks,
        **{field: getattr(config, field) for field in shown},
        **({"given": given_only} if (given_only := {k: v for k, v in given.items() if k != "data"}) else {}),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, best first, beside the papers' numbers; of an algorithm trained twice, the later."""
    lines = [
        "| algorithm | accuracy, 95 % interval | outer steps × tasks | CPU seconds | batch norm | paper |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    latest = {(row["algorithm"], row["way"], row["shot"]): row for row in rows}.values()
    for row in sorted(latest, key=lambda row: -row["accuracy"]):
        paper = PAPERS.get(row["algorithm"], "—") if (row["way"], row["shot"]) == (5, 1) else "—"
        lines.append(
            f"| {row['algorithm']} | {row['accuracy']:.2f} ± {row['interval']:.2f} % | "
            f"{row['iterations']:,} × {row['meta_batch']} | {row['cpu_seconds']:.0f} | {row['batch_norm']} | "
            f"{paper} |"
        )
    return "\n".join(lines)


def kept(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in results.read_text().splitlines()]


def published(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with the table of these rows between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"published(page): expected {BEGIN.strip()} and, below it, {END}, got none")
    return f"{before}{BEGIN}\n{table(rows)}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with Omniglot's archives")
    parser.add_argument(
        "--table", action="store_true", help="print the table of --results, and train nothing"
    )
    parser.add_argument("--publish", action="store_true", help="put that table into the READMEs")
    parser.add_argument("--cpu-minutes", type=float, default=10.0)
    parser.add_argument("--algorithm", nargs="+", default=list(train.ALGORITHMS), choices=train.ALGORITHMS)
    parser.add_argument("--tasks", type=int, default=600, help="test tasks")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that rows are appended to")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other options of train")
    options = parser.parse_args()
    if options.table or options.publish:
        rows = kept(options.results)
        for page in PAGES if options.publish else ():
            page.write_text(published(page.read_text(), rows))
        print(table(rows))
        return
    if not options.data:
        parser.error("--data FOLDER is needed")
    kinds = {field.name: field.type for field in dataclasses.fields(train.Config)}
    given: dict[str, Any] = {"data": options.data}
    for name, value in (pair.split("=") for pair in options.set):
        parse: dict[str, Any] = {"int": int, "float": float, "bool": lambda s: s == "1"}
        given[name] = parse.get(str(kinds[name]), str)(value)
    rows = []
    for name in options.algorithm:
        row = measure(name, options.cpu_minutes, options.tasks, options.progress, **given)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(
            f"{name}: {row['accuracy']:.2f} ± {row['interval']:.2f} %, {row['iterations']} steps", flush=True
        )
    print(table(rows))


if __name__ == "__main__":
    main()
