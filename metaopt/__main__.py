"""The command line: ``python -m metaopt train {sinusoid,omniglot}``, ``evaluate CHECKPOINT``, ``list``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metaopt import plot, train
from metaopt._version import version
from metaopt.catalogue import catalogue
from metaopt.errors import ArgumentError, MetaoptError

__all__ = ["main"]

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str}
_INTERRUPTED = 130  # what a shell reports after Ctrl-C


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metaopt", description="Batched-task meta-learning.")
    parser.add_argument("--version", action="version", version=f"metaopt {version}")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("train", help="meta-train a model, by MAML or --algorithm NAME")
    problems = command.add_subparsers(dest="problem", required=True)
    for problem, defaults in train.DEFAULTS.items():
        sub = problems.add_parser(problem, help=f"few-shot {problem}")
        _add_options(sub, defaults)
        sub.add_argument("--out", type=Path, default=Path("runs") / problem, help="folder for the results")
        sub.add_argument(
            "--resume",
            nargs="?",
            choices=["auto"],
            const=True,
            default=False,
            help="go on from the checkpoint in --out; auto: start where there is none",
        )
        sub.add_argument("--checkpoint-every", type=int, default=200, metavar="N", help="outer steps")
        sub.add_argument("--eval-tasks", type=int, default=600, metavar="N", help="test tasks at the end")
        sub.add_argument("--no-pictures", action="store_true", help="do without matplotlib")
        if problem == "omniglot":
            sub.add_argument("--download", action="store_true", help="fetch the archives into --data")

    command = commands.add_parser("evaluate", help="score a checkpoint on test tasks")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--tasks", type=int, default=600, help="test tasks")
    command.add_argument("--steps", type=int, default=None, help="adaptation steps; as trained")
    command.add_argument("--data", default=None, help="folder with the Omniglot archives; as trained")
    command.add_argument("--device", default=None, help="as trained")

    commands.add_parser("list", help="tell the algorithms, estimators and optimizers, a line each")
    return parser


def _add_options(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """One option a field of Config, without a default, so that it is known which were given."""
    omniglot_only = {"way", "train_way", "split", "data"}
    for field in dataclasses.fields(train.Config):
        if field.name == "problem" or (field.name in omniglot_only and defaults["width"] == 40):
            continue
        default = defaults.get(field.name, field.default)
        flag, text = "--" + field.name.replace("_", "-"), f"{field.metadata['help']} (default: {default})"
        if field.type == "bool":
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            kind, known = _TYPES[str(field.type)], train.CHOICES.get(field.name)
            parser.add_argument(flag, type=kind, choices=known, default=argparse.SUPPRESS, help=text)


def _config(options: argparse.Namespace) -> train.Config:
    """The run's configuration; with --resume the checkpoint's, which what is given must not contradict."""
    fields = {field.name for field in dataclasses.fields(train.Config)}
    given = {k: v for k, v in vars(options).items() if k in fields and k != "problem"}
    saved = train.resumed_config(options.out, options.resume)
    if saved is None:
        return train.config_for(options.problem, **given)
    config = dataclasses.replace(saved, problem=options.problem, **given)
    train.check_resumed(saved, config, options.out)
    return config


def _check_counts(options: argparse.Namespace, **least: int) -> None:
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ArgumentError(f"{options.command}({name})", f"an integer >= {low}", str(value))


def _use_threads(config: train.Config) -> None:
    # The nets are small: a second thread per operation gains a tenth, and costs a factor of five as
    # soon as another process wants the core. One thread also makes the numbers the machine's own.
    if config.threads:
        torch.set_num_threads(config.threads)


def _train(options: argparse.Namespace) -> int:
    _check_counts(options, eval_tasks=2, checkpoint_every=1)
    if not options.no_pictures:
        plot.figure()  # a missing extra is told before the work, not after it
    with train.process_group(getattr(options, "device", "cpu")) as here:
        return _train_here(options, here.rank == 0)


def _train_here(options: argparse.Namespace, first: bool) -> int:
    """Train as one of the ranks that torchrun has started, or as the only one; the first one reports."""
    config = _config(options)
    _use_threads(config)
    problem = train.make_problem(config, download=getattr(options, "download", False))
    if first:
        print(f"{config.problem}: {problem.note}", flush=True)
    fitted = train.train(
        config, problem, options.out, resume=options.resume, checkpoint_every=options.checkpoint_every
    )
    if not first:
        return 0
    for note in fitted.notes:
        print(note, file=sys.stderr)
    if fitted.step < config.iterations:
        print(
            f"Stopped at step {fitted.step} and saved. Go on with: "
            f"python -m metaopt train {config.problem} --out {options.out} --resume"
        )
        return _INTERRUPTED
    kept = [options.out / "checkpoint.pt", options.out / "metrics.jsonl"]
    print(train.evaluate(config, problem, fitted.meta_params, num_tasks=options.eval_tasks))
    if not options.no_pictures:
        kept += train.save_pictures(config, problem, fitted.meta_params, options.out)
    print("wrote", *kept)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    _check_counts(options, tasks=2, steps=0)
    found = train.load(options.checkpoint)
    overrides = {k: getattr(options, k) for k in ("data", "device") if getattr(options, k) is not None}
    config = dataclasses.replace(found.config, **overrides)
    _use_threads(config)
    problem = train.make_problem(config)
    run = train.restore(found, train.start(config, problem))
    print(f"{config.problem}, step {found.step}: {problem.note}")
    print(train.evaluate(config, problem, run.learned, num_tasks=options.tasks, num_steps=options.steps))
    return 0


def _list(options: argparse.Namespace) -> int:
    for kind, rows in catalogue().items():
        print(f"{kind}:")
        width = max(map(len, rows))
        for name, line in rows.items():
            trained = "*" if kind == "algorithms" and name in train.ALGORITHMS else " "
            print(f" {trained}{name:<{width}}  {line.replace('`', '')}")
    print("* python -m metaopt train {sinusoid,omniglot} --algorithm NAME")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 after an error, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        status = {"train": _train, "evaluate": _evaluate, "list": _list}[options.command](options)
        sys.stdout.flush()
        return status
    except MetaoptError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the last checkpoint stands.", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        return 0


if __name__ == "__main__":
    sys.exit(main())
