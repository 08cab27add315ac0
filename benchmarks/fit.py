"""Measure the fit of verdicts: its time and its memory for many prompts, and what a fit of one prompt takes.

Verdicts are drawn as they are read, from strengths of sd 2 with an error of sd 1 in each one's log-odds and a bonus of 0.7 for
the first place. Each kind is fitted in a fresh process that may use one core:

* all pairs: every two candidates in both orders, by probabilities (n (n - 1) verdicts a prompt).
* votes: the same by votes.
* adaptive: a rating of each candidate and three pairs in both orders, all by one judge.
* ratings: a rating of each candidate.

drawing: seconds that drawing the verdicts takes by itself; fit: seconds of the whole fit less those, with the reading of
verdicts and all posteriors; verdicts a second of that; MiB: the most resident memory of the process. One prompt: milliseconds
of `posterior.of_one`, as a scheduler asks it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

from _server import say, show, table
from _work import machine

from rlaif.ranking.bradley_terry import fit
from rlaif.ranking.posterior import of_one
from rlaif.types import Verdict

_COLUMNS = ("verdicts", "prompts", "n", "drawing s", "fit s", "verdicts / s", "MiB", "position", "discrimination", "one ms")
_JUDGE, _BONUS, _DUELS = "judge", 0.7, 3


def compared(rng: random.Random, ids: Sequence[str], strengths: Sequence[float], pair: tuple[int, int], vote: bool) -> Verdict:
    """What the judge says of two."""
    i, j = pair
    p = 1.0 / (1.0 + math.exp(strengths[j] - strengths[i] - _BONUS - rng.gauss(0.0, 1.0)))
    if vote:
        p = float(rng.random() < p)
    return Verdict(_JUDGE, (ids[i], ids[j]), (p, 1.0 - p), "vote" if vote else "probability")


def drawn(kind: str, rng: random.Random, n: int) -> tuple[tuple[str, ...], list[Verdict]]:
    """The ids of a prompt's candidates, and the verdicts."""
    ids = tuple(f"c{k}" for k in range(n))
    strengths = [rng.gauss(0.0, 2.0) for _ in ids]
    pairs = list(permutations(range(n), 2)) if kind in ("all pairs", "votes") else []
    said = []
    if kind in ("adaptive", "ratings"):
        said += [Verdict(_JUDGE, (c,), (5.0 + 1.5 * s + rng.gauss(0.0, 1.0),)) for c, s in zip(ids, strengths, strict=True)]
    if kind == "adaptive":
        for _ in range(_DUELS):
            i, j = rng.sample(range(n), 2)
            pairs += [(i, j), (j, i)]
    said += [compared(rng, ids, strengths, (i, j), kind == "votes") for i, j in pairs]
    return ids, said


def rows(kind: str, prompts: int, n: int) -> Iterator[tuple[tuple[str, ...], list[Verdict]]]:
    """The prompts of a run."""
    rng = random.Random(0)
    return (drawn(kind, rng, n) for _ in range(prompts))


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Of one of them."""
    begun = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begun) / times


def measure(kind: str, prompts: int, n: int) -> None:
    """Prints what one kind takes."""
    ids, said = next(rows(kind, 1, n))
    of_one(ids, said, 1.8)
    one = seconds(lambda: of_one(ids, said, 1.8), 300)
    drawing = seconds(lambda: sum(1 for _ in rows(kind, prompts, n)))
    known = []

    def whole() -> None:
        with fit(rows(kind, prompts, n)) as found:
            known.append(found)
            assert sum(1 for _ in found.posteriors) == prompts

    took = seconds(whole) - drawing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    position = known[0].position.get(_JUDGE)
    discrimination = known[0].discrimination.get((_JUDGE, "pairs"))
    print(json.dumps([len(said) * prompts, drawing, took, peak, position, discrimination, one * 1e3]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the fit.")
    parser.add_argument("--prompts", type=int, default=100_000, help="(%(default)s)")
    parser.add_argument("--n", type=int, default=8, help="candidates a prompt (%(default)s)")
    parser.add_argument("--kinds", nargs="*", default=["all pairs", "votes", "adaptive", "ratings"], help="(%(default)s)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.prompts, args.n)
        return
    lines = []
    for kind in args.kinds:
        say(f"{args.prompts:,} prompts of {args.n} candidates, {kind}")
        command = [sys.executable, __file__, "--measure", kind, "--prompts", str(args.prompts), "--n", str(args.n)]
        one_core = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        done = subprocess.run(command, env=os.environ | one_core, capture_output=True, text=True, check=True)
        verdicts, drawing, took, peak, position, discrimination, one = json.loads(done.stdout)
        known = ("" if value is None else f"{value:.2f}" for value in (position, discrimination))
        figures = f"{drawing:.0f}", f"{took:.1f}", f"{verdicts / took:,.0f}", f"{peak:.0f}"
        lines.append((kind, f"{args.prompts:,}", args.n, *figures, *known, f"{one:.2f}"))
    show(machine(), table(_COLUMNS, lines, names=1))


if __name__ == "__main__":
    main()
