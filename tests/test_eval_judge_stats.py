"""The numbers of recorded judges against the statistics that came with the data: every row, to a tenth of a point."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rlaif.data.gold import read_gold
from rlaif.evaluation.judged import of_recorded
from rlaif.evaluation.numbers import clusters_of, numbers
from rlaif.judges.recorded import load_all

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}")
NAME_WIDTH = 38
SECTIONS = {
    "JudgeBench": ("judgebench", "", 7),
    "Auto-J (ties left out)": ("autoj", "", 1),
    "PandaLM, order AB only (ties left out)": ("pandalm", "", 2),
    "llmbar_natural": ("llmbar", "llmbar_natural", 65),
    "llmbar_adv": ("llmbar", "llmbar_adv", 65),
    "llmbar_proc": ("llmbar", "llmbar_proc", 8),
}
COLUMNS = (
    *("accuracy", "consistent", "accuracy_consistent", "both_right", "first_shown", "no_verdict", "longer_chosen"),
    *("accuracy_gold_longer", "accuracy_gold_shorter"),
)


@cache
def published() -> dict[str, dict[str, list[str]]]:
    """The cells of each row of each section, by the judge's name, cut off as there."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in (DATA / "STATS.md").read_text(encoding="utf-8").split("\n"):
        if line.startswith("## "):
            section = line[3:]
        elif section in SECTIONS and "%" in line:
            found.setdefault(section, {})[line[:NAME_WIDTH].strip()] = line[NAME_WIDTH:].split()
    return found


@cache
def recorded(name: str) -> list[Any]:
    return load_all([DATA / "verdicts" / f"{name}.jsonl.gz"])


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_of_the_statistics_is_reproduced(section):
    name, prefix, count = SECTIONS[section]
    gold = [pair for pair in read_gold(str(DATA / "pairs" / f"{name}.jsonl.gz")) if (pair.category or "").startswith(prefix)]
    rows, clusters = dict(published()[section]), clusters_of(gold)
    assert len(rows) == count
    for judge in recorded(name):
        if not any(judge.on(pair.id, (pair.a.id, pair.b.id)) for pair in gold):
            continue  # a judge of other categories alone
        found = numbers(of_recorded(judge, gold), gold, clusters)
        name = found["judge"].rpartition("/")[2]  # without the owner of a model
        cells = rows.pop(name[:NAME_WIDTH].strip(), None) or rows.pop(judge.judge)
        assert int(cells[0]) == found["pairs"]["judged"] + found["pairs"]["gold_ties"]
        for column, cell in zip(COLUMNS, cells[1:], strict=True):
            value = found[column] and found[column]["value"]
            if cell == "-":
                assert value is None, (found["judge"], column)
            else:
                assert 100 * value == pytest.approx(float(cell.rstrip("%")), abs=0.0501), (found["judge"], column)
    assert not rows
