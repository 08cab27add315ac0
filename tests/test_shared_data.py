"""Real prompts, answers and recorded verdicts, where the folder that holds them stands beside the checkout."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import read_rows, stored_records

import rlaif
from rlaif.data import read_candidates, read_prompts
from rlaif.judges.parse import Grammar, Unreadable
from rlaif.pairs import normalised
from rlaif.templates import load_template

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}")
LIMIT = 60
NONE = [pytest.param(None, marks=pytest.mark.skip(reason="no evaluation data"))]


def files(kind: str) -> list[Any]:
    return [pytest.param(path, id=path.name) for path in sorted((DATA / kind).glob("*.jsonl.gz"))] or NONE


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rb") as file:
        yield from (json.loads(line) for line in file)


@pytest.mark.parametrize("path", files("prompts"))
def test_every_row_of_prompts_is_read(path):
    given = list(rows(path))
    found = list(read_prompts(str(path)))
    assert [p.id for p in found] == [row["id"] for row in given]
    assert [p.messages[-1]["content"] for p in found] == [
        row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"] for row in given
    ]


@pytest.mark.parametrize("path", files("candidates"))
def test_every_row_of_candidates_is_read(path):
    for (prompt, found), row in zip(read_candidates(str(path)), rows(path), strict=True):
        assert prompt.id == row["id"]
        assert [(c.text, c.model, c.score) for c in found] == [
            (c["response"], c["model"], c["score"]) for c in row["candidates"]
        ]


@pytest.mark.parametrize("judge", ["longest", "shortest"])
@pytest.mark.parametrize("path", files("candidates"))
def test_length_judges_on_real_answers(tmp_path, path, judge):
    run = rlaif.judge(path, judge=f"judges/{judge}.py:{judge}", out=tmp_path, limit=LIMIT)
    summary = run.wait()
    found = {row["id"]: row for row in read_rows(tmp_path / "dpo.jsonl")}
    records = stored_records(tmp_path)
    assert len(records) == summary["prompts"] == summary["pairs"] + sum(summary["dropped"].values()) > 0
    assert len(found) == summary["pairs"]
    assert summary["no_verdict_rate"] == 0.0 and summary["longer_chosen_rate"] == (1.0 if judge == "longest" else 0.0)
    for record in records:
        lengths = {len(c.text) for c in record.candidates if c.text.strip()}
        if record.prompt.id not in found:
            assert len(lengths) == 1 or len({normalised(c.text) for c in record.candidates}) == 1
            continue
        row = found[record.prompt.id]
        ends = len(row["chosen"][0]["content"]), len(row["rejected"][0]["content"])
        assert ends == ((max(lengths), min(lengths)) if judge == "longest" else (min(lengths), max(lengths)))


@pytest.mark.parametrize("path", files("verdicts"))
def test_recorded_verdict_texts_never_crash_the_parser(path):
    grammars = [
        Grammar.of(load_template("pairwise-text", needs=()).front, "text"),
        *(
            Grammar.of({"verdict": r"\b([A-Z])\b", "occurrence": o, "means": {"A": "first", "B": "second"}}, o)
            for o in ("first", "last", "all")
        ),
    ]
    for row in rows(path):
        for grammar in grammars:
            try:
                scores = grammar.read_text(row.get("raw") or "")
            except Unreadable:
                continue
            assert scores in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))


def test_a_declared_grammar_reads_recorded_verdicts_as_their_source_did():
    """Arena-hard's five-way verdicts: every reply that its own parser read is read alike, what it did not read is not."""
    means = {"A>>B": "first", "A>B": "first", "A=B": "tie", "B>A": "second", "B>>A": "second"}
    grammar = Grammar.of({"verdict": r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]", "means": means}, "arena-hard")
    said = {(1.0, 0.0): "first", (0.0, 1.0): "second", (0.5, 0.5): "tie"}
    checked = 0
    for row in rows(DATA / "verdicts" / "judgebench.jsonl.gz"):
        raw = row.get("raw")
        if raw is None or not re.search(r"\[\[[AB=<>]+\]\]", raw):
            continue
        try:
            found = said[grammar.read_text(raw)]
        except Unreadable:
            found = None
        assert found == row["pick"], row["pair_id"]
        checked += 1
    assert checked > 100
