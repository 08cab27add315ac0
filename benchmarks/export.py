"""Measure an export: its time beside orjson writing the same rows, and its memory for more and more prompts.

Each run directory is made for the purpose: prompts with n answers whose words are drawn by a seed, and the verdicts of a judge
that compares all pairs in both orders by probabilities (n (n - 1) verdicts a prompt). Then, for each format:

* export: seconds of `rlaif export`, the whole process with its start.
* orjson: seconds that orjson takes to write the rows of the finished file, as they are, to another file: nothing is read,
  nothing is ranked, nothing is checked. This is the floor of anything that writes these rows from Python.
* rows: seconds from selections that are at hand (pairs, best answers, rankings) to the file: what an export adds to them.
* rows / orjson, export / orjson: the ratios. The second one holds the reading of the ledger, the fit of the judge's position
  bonus over all verdicts, and the selection.
* MiB: the most resident memory of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import orjson
from _server import ROOT, say, show, table, watch
from _work import machine

from rlaif import records, results
from rlaif.config import RunConfig
from rlaif.export.formats import Format
from rlaif.ledger import Ledger, PromptRow
from rlaif.types import Candidate, Prompt, Record, Verdict

FORMATS = ("dpo", "sft")
COLUMNS = (
    "prompts",
    "answers",
    "characters",
    "format",
    "rows",
    "export s",
    "orjson s",
    "rows s",
    "rows / orjson",
    "export / orjson",
    "MiB",
)
_WORDS = (ROOT / "README.md").read_text(encoding="utf-8").split()
_BATCH = 2000


def record_of(ordinal: int, answers: int, characters: int) -> Record:
    """A finished prompt: the answers differ, and so do their strengths."""
    draw = random.Random(ordinal)
    name = f"prompt-{ordinal}"
    prompt = Prompt(name, ({"role": "user", "content": f"Question {ordinal}: why is the sky blue?"},), ordinal=ordinal)
    candidates = []
    for k in range(answers):
        words = draw.choices(_WORDS, k=characters // 6 + 1)
        candidates.append(Candidate(f"{name}/{k}", " ".join(words)[: characters + draw.randrange(20)], "openai/model", "stop"))
    strength = [draw.gauss(0.0, 1.0) for _ in range(answers)]
    said = []
    for i, j in permutations(range(answers), 2):
        p = 1.0 / (1.0 + 2.718281828 ** (strength[j] - strength[i] - 0.3 + draw.gauss(0.0, 0.3)))
        said.append(Verdict("pairwise:openai/judge", (f"{name}/{i}", f"{name}/{j}"), (p, 1.0 - p), "probability"))
    return Record(prompt, tuple(candidates), tuple(said))


def make_run(directory: Path, prompts: int, answers: int, characters: int) -> None:
    """A run directory in which every prompt is finished."""
    config = RunConfig(command="generate", prompts="prompts.jsonl", out=str(directory), policy=["openai/model"], n=answers)

    def rows() -> Iterator[PromptRow]:
        for ordinal in range(prompts):
            prompt = Prompt("", ({"role": "user", "content": f"Question {ordinal}: why is the sky blue?"},), ordinal=ordinal)
            yield PromptRow(ordinal, f"prompt-{ordinal}", records.dump_prompt(prompt))

    async def work() -> None:
        ledger = Ledger.open(directory)
        try:
            await ledger.begin({"config": config.to_yaml()}, rows, plan="", changed=lambda before, now: None)
            for first in range(0, prompts, _BATCH):
                batch = (record_of(k, answers, characters) for k in range(first, min(first + _BATCH, prompts)))
                await asyncio.gather(*(ledger.save_record(r.ordinal, records.dump(r)) for r in batch))
        finally:
            ledger.close()

    asyncio.run(work())


def orjson_s(file: Path) -> tuple[int, float]:
    """(rows, seconds) that orjson takes to write the rows of the file again; they are read in between, off the clock."""
    count, spent = 0, 0.0
    with file.open("rb") as lines, tempfile.TemporaryFile(dir=file.parent) as out:
        while batch := [orjson.loads(line) for line in _first(lines, _BATCH)]:
            begun = time.perf_counter()
            for row in batch:
                out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            spent += time.perf_counter() - begun
            count += len(batch)
        begun = time.perf_counter()
        out.flush()
        os.fsync(out.fileno())
    return count, spent + time.perf_counter() - begun


def _first(lines: Iterable[bytes], most: int) -> Iterator[bytes]:
    for line, _ in zip(lines, range(most), strict=False):
        yield line


def rows_s(directory: Path, form: str, out: Path) -> float:
    """Seconds from selections at hand to the file."""
    made: list[Any] = []
    ledger = Ledger.read(directory)
    config = results.stored_config(ledger)
    export = results._Export.of(form, None).by(config)
    hold = replace(export, form=Format(form, export.form.takes, lambda *what: made.append(what) or ()))
    assert not list(hold.rows(partial(ledger.records, config.limit), config))
    ledger.close()
    gc.freeze()  # the collector would go through all that is held here, which no export holds
    begun = time.perf_counter()
    results.write_jsonl(out, (row for what in made for row in export.form.rows(*what)))
    spent = time.perf_counter() - begun
    gc.unfreeze()
    return spent


def measure(directory: Path, form: str, *, rows: bool) -> tuple[Any, ...]:
    """One line of the table, from the number of rows on."""
    file = directory / f"{form}.jsonl"
    command = [sys.executable, "-m", "rlaif.cli", "export", str(directory), "--format", form]
    begun = time.perf_counter()
    moments = watch(command, lambda: None, every_s=0.05)
    export = time.perf_counter() - begun
    count, floor = orjson_s(file)
    stage = rows_s(directory, form, directory / "again.jsonl") if rows else None
    assert stage is None or (directory / "again.jsonl").read_bytes() == file.read_bytes()
    ratio = ("", "") if stage is None else (f"{stage:.2f}", f"{stage / floor:.2f}")
    return f"{count:,}", f"{export:.1f}", f"{floor:.2f}", *ratio, f"{export / floor:.1f}", f"{moments[-1].peak:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of exports.")
    parser.add_argument("--prompts", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="(%(default)s)")
    parser.add_argument("--answers", type=int, default=2, help="candidates a prompt (%(default)s)")
    parser.add_argument("--characters", type=int, nargs="*", default=[200, 1000], help="of an answer (%(default)s)")
    parser.add_argument("--dir", type=Path, help="where there is room: 4 GB for a million prompts (a temporary folder)")
    args = parser.parse_args()
    lines: list[Sequence[object]] = []
    for prompts in args.prompts:
        for characters in args.characters[: 1 if prompts > 200_000 else None]:
            where = Path(tempfile.mkdtemp(dir=args.dir, prefix="rlaif-export-"))
            try:
                say(f"making a run of {prompts:,} prompts, {args.answers} answers of {characters} characters")
                make_run(where / "run", prompts, args.answers, characters)
                for form in FORMATS:
                    say(f"exporting it as {form}")
                    # The selections of a million prompts, all at hand, would not fit.
                    found = measure(where / "run", form, rows=prompts <= 200_000)
                    lines.append((f"{prompts:,}", args.answers, characters, form, *found))
            finally:
                shutil.rmtree(where)
    show(machine(), table(COLUMNS, lines, names=1))


if __name__ == "__main__":
    main()
