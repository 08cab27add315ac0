"""Judges asked now about gold pairs: each a run of `rlaif judge` in a directory of its own, so that nothing is bought twice.

    OUT/judges/NAME/    the run directory of each judge, its ledger in it

The runs are shown prompts and answers alone: gold and category stay here. They go one after the other; a budget is of all
together, of what earlier evaluations in OUT have used, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlaif import pairs, results
from rlaif.config import RunConfig
from rlaif.data.gold import GoldPair
from rlaif.errors import InputError, StopRun
from rlaif.evaluation.judged import Judged, Spend, of_records
from rlaif.jobs import Run, spent_in
from rlaif.keys import digest
from rlaif.ledger import Ledger
from rlaif.parts import Opened
from rlaif.prices import Budget, Prices
from rlaif.types import Ranking, Record

_OWN = {"gold", "category", "prompt", "messages", "conversations", "candidates", "response_a", "response_b"}
_SETTINGS = {"command": "judge", "prompt_field": None, "reference_field": None, "id_field": None, "dedupe": False}
_ALLOWED = {"allow_truncated": True, "allow_degenerate": True}


def runs(config: RunConfig, gold: Sequence[GoldPair]) -> list[Run]:
    """A run for each of the configuration's judges, each known to be usable. Raises InputError; nothing is sent."""
    if len(set(config.judge)) < len(config.judge):
        raise InputError(f"the same judge is named twice: {', '.join(config.judge)}")
    rows = [_row(pair) for pair in gold]
    made = []
    for judge in config.judge:
        out = str(Path(config.out) / "judges" / safe_name(judge))
        own = config.model_copy(update=_SETTINGS | _ALLOWED | {"judge": [judge], "out": out})
        Opened.of(own, own.judge)
        made.append(Run(own, source=rows))
    return made


def safe_name(judge: str) -> str:
    """A folder's name for a judge: its own, without what folders may not hold, and then with a hash to tell it apart."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", judge).strip("._")[:60]
    return judge if plain == judge else f"{plain}-{digest(judge, 8)}"


def _row(pair: GoldPair) -> dict[str, Any]:
    """What a judge is shown of a pair."""
    prompt = pair.prompt
    row = {name: value for name, value in prompt.fields.items() if name not in _OWN}
    if prompt.reference is not None:
        row["reference"] = prompt.reference
    return row | {"id": prompt.id, "prompt": list(prompt.messages), "candidates": [pair.a.text, pair.b.text]}


def ask(made: Sequence[Run], config: RunConfig, follow: Callable[[Run], object]) -> None:
    """Has `follow` take each run to its end. Raises what it raises; StopRun("budget") speaks of all of them."""
    prices = Prices(config.prices)
    for run in made:
        others = [other.directory for other in made if other is not run]

        def budget(directories: Sequence[Path]) -> Budget:
            return Budget(
                lambda: [row for directory in directories for row in spent_in(directory)],
                prices.of_model,
                usd=config.budget_usd,
                tokens=config.budget_tokens,
                where=config.out,
            )

        try:
            left = budget(others).left()
        except StopRun:  # what is on file already needs no money
            left = {
                "budget_usd": None if config.budget_usd is None else 1e-12,
                "budget_tokens": None if config.budget_tokens is None else 1,
            }
        run.config = run.config.model_copy(update=left)
        try:
            follow(run)
        except StopRun as stopped:
            if stopped.kind == "budget":
                raise budget([one.directory for one in made]).reached() or stopped from None
            raise


def judged(made: Sequence[Run], gold: Sequence[GoldPair]) -> list[Judged]:
    """What is on file of each run that was begun, finished or not."""
    found: list[Judged] = []
    for run in made:
        if not (run.directory / "run.sqlite").exists():
            continue
        records = list(results.ranked(run.directory, run.config))
        name = _name(records) or run.config.judge[0]
        if any(one.name == name for one in found):
            name = f"{name} ({run.config.judge[0]})"
        with closing(Ledger.read(run.directory)) as ledger:
            rubric = ledger.meta("rubric") or None
        found.append(replace(of_records(name, gold, records, _spend(run)), rubric=rubric))
    return found


def _name(records: Sequence[tuple[Record, Ranking]]) -> str | None:
    """The judge's name as exports of its runs give it."""
    return next((pairs.judge_name(record) for record, _ in records if record.verdicts), None)


def _spend(run: Run) -> Spend | None:
    if run.summary is None:
        return None
    tokens = run.summary["tokens"]
    return Spend(tokens["prompt"], tokens["completion"], run.summary["cost_usd"])
