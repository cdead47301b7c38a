"""What does the library cost beside the same mathematics written by hand on torch.func?

    python -m benchmarks.overhead [--profile] [--repetitions 60]

Eager, sinusoid MLP 40-40, 25 tasks, J = 1 and 5, interleaved in pairs; CPU time, so that a busy machine
disturbs less. ``--profile`` prints where the Python of one meta-step goes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time

import torch

from benchmarks import peers
from benchmarks.problems import sinusoid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for steps in (1, 5):
        work = sinusoid(25, steps, args.repetitions)
        ours, hand = peers.ours()(work), peers.by_hand(work)
        for run in (ours, hand):
            run()
        seconds: dict[str, list[float]] = {"ours": [], "hand": []}
        for _ in range(args.repetitions):
            for name, run in (("hand", hand), ("ours", ours)):
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
        pairs = [a / b for a, b in zip(seconds["hand"], seconds["ours"])]
        quartiles = statistics.quantiles(pairs, n=4)
        print(
            f"J={steps}: by hand {1e3 * statistics.median(seconds['hand']):.2f} ms, "
            f"metaopt {1e3 * statistics.median(seconds['ours']):.2f} ms, "
            f"{quartiles[1]:.3f}x by hand's speed ({quartiles[0]:.3f} .. {quartiles[2]:.3f}); "
            f"of the fastest of each {min(seconds['hand']) / min(seconds['ours']):.3f}x"
        )
        if args.profile and steps == 5:
            profile = cProfile.Profile()
            profile.enable()
            for _ in range(20):
                ours()
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
