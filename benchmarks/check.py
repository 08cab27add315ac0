"""Measure `rlaif check`: wall time and memory by the number of rows, and what it finds in files with known faults.

rows      A file of DPO rows of about 1 kB, made of random words; --near of them nearly repeat an earlier row, --same exactly.
          Each row of the table is one process. MiB: the peak of its resident memory, and how much of that the file adds
          against the smallest one. found: near-duplicates and repeats, of those that were planted.
reversed  Files made from pairs with gold labels (--data: a folder of pairs/*.jsonl.gz), right and the wrong way round: does it
          smell? Ties are left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _server import ROOT, say, show, table
from _work import machine, run
from helpers import write_rows

from rlaif.check.run import Report, check

DATA = ROOT.parent / "shared" / "data"
COLUMNS = ("rows", "file MB", "wall s", "rows/s", "peak MiB", "added MiB", "near found", "repeats found")


def words(source: random.Random, count: int) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(count)]


def rows(number: int, near: float, same: float) -> Iterator[dict[str, Any]]:
    """DPO rows; some repeat one of the last thousand, as it is or with about two words of it changed."""
    source = random.Random(7)
    known = words(source, 30_000)
    past: list[list[list[str]]] = []
    for place in range(number):
        draw = source.random()
        if past and draw < near + same:
            texts = source.choice(past)
            if draw < near:
                texts = [[source.choice(known) if source.random() < 0.007 else word for word in text] for text in texts]
                texts[0] = [source.choice(known), *texts[0][1:]]
        else:
            texts = [source.choices(known, k=source.randint(*k)) for k in ((25, 35), (40, 60), (40, 60))]
            past = [*past[-999:], texts]
        prompt, chosen, rejected = (" ".join(text).capitalize() + "." for text in texts)
        yield {
            "id": f"p{place}",
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "score_chosen": 1.0,
            "score_rejected": 0.0,
        }


def write(path: Path, number: int, near: float, same: float) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows(number, near, same):
            file.write(json.dumps(row) + "\n")


def work(path: str) -> None:
    """The process that is measured."""
    began = time.perf_counter()
    report = check(path)
    wall = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": report.rows, "wall_s": wall, "peak_mib": peak, "found": counts(report)}))


def counts(report: Report) -> dict[str, int]:
    return {found.rule.code: found.count for found in report.findings}


def measured(folder: Path, sizes: list[int], near: float, same: float) -> str:
    lines: list[tuple[object, ...]] = []
    least = 0.0
    for size in sizes:
        path = folder / "rows.jsonl"
        say(f"{size:,} rows")
        write(path, size, near, same)
        said = run([sys.executable, __file__, "--work", path], limit_s=3600).said
        least = least or said["peak_mib"]
        found = said["found"]
        lines.append(
            (
                f"{size:,}",
                f"{path.stat().st_size / 1e6:,.0f}",
                f"{said['wall_s']:.1f}",
                f"{size / said['wall_s']:,.0f}",
                f"{said['peak_mib']:.0f}",
                f"{said['peak_mib'] - least:.0f}",
                f"{found.get('near_duplicate', 0) / max(1, size * near):.2f}",
                f"{found.get('duplicate', 0) / max(1, size * same):.2f}",
            )
        )
    return table(COLUMNS, lines)


def pair(row: dict[str, Any], *, right: bool) -> dict[str, Any]:
    first = (row["gold"] == "A") == right
    chosen, rejected = (row["response_a"], row["response_b"])[:: 1 if first else -1]
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def smells(folder: Path, data: Path) -> str:
    lines = []
    for source in sorted(data.glob("pairs/*.jsonl.gz")):
        with gzip.open(source, "rb") as file:
            gold = [row for row in map(json.loads, file) if row["gold"] != "tie"]
        said = []
        for right in (True, False):
            report = check(write_rows(folder / "pairs.jsonl", (pair(row, right=right) for row in gold)))
            lengths = report.lengths or {"p": 0.0}
            said += [f"{lengths['p']:.2f}", "yes" if "reversed" in counts(report) else "no"]
        lines.append((source.name.removesuffix(".jsonl.gz"), len(gold), *said))
    return table(("file", "pairs", "right: P(longer)", "smells", "reversed: P(longer)", "smells"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--near", type=float, default=0.01)
    parser.add_argument("--same", type=float, default=0.01)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        show(machine(), measured(Path(folder), given.rows, given.near, given.same))
        if given.data.is_dir():
            show(smells(Path(folder), given.data))


if __name__ == "__main__":
    main()
