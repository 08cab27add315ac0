"""Real prompts, answers and recorded verdicts, where the folder that holds them stands beside the checkout."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import read_rows, stored_records

import rlaif
from rlaif.data import read_candidates, read_prompts
from rlaif.judges.parse import Unreadable, load_grammar
from rlaif.pairs import normalised
from rlaif.templates import data_dir

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
pytestmark = [pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}"), pytest.mark.slow]
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
        lengths = {len(c.text) for c in record.candidates if c.text.strip() and not c.degenerate}
        if record.prompt.id not in found:
            assert len(lengths) == 1 or len({normalised(c.text) for c in record.candidates}) == 1
            continue
        row = found[record.prompt.id]
        ends = len(row["chosen"][0]["content"]), len(row["rejected"][0]["content"])
        assert ends == ((max(lengths), min(lengths)) if judge == "longest" else (min(lengths), max(lengths)))


@pytest.mark.parametrize("path", files("verdicts"))
def test_no_grammar_reads_what_was_not_offered_in_a_recorded_reply(path):
    """Every shipped grammar on every recorded reply, those of other judges' formats too."""
    grammars = [load_grammar(file.stem) for file in (data_dir() / "prompts/grammars").glob("*.yaml")]
    replies = {reply for row in rows(path) for reply in (row.get("raw"), *row.get("raws", ())) if reply is not None}
    for grammar in grammars:
        low, high = grammar.scale
        for reply in replies:
            try:
                scores = grammar.read(reply)
            except Unreadable:
                continue
            if grammar.kind == "rating":
                assert len(scores) == 1 and low <= scores[0] <= high, reply
            else:
                assert scores in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)), reply


@pytest.mark.parametrize("path", files("verdicts"))
def test_recorded_replies_are_disarmed_for_every_grammar(path):
    grammars = [load_grammar(file.stem) for file in (data_dir() / "prompts/grammars").glob("*.yaml")]
    replies = {reply for row in rows(path) if (reply := row.get("raw"))}
    for grammar in (g for g in grammars if g.patterns):
        for reply in sorted(replies)[::10]:
            harmless = grammar.disarm(reply)
            assert grammar.disarm(harmless) == harmless and "".join(harmless.split()) == "".join(reply.split())
            with pytest.raises(Unreadable):
                grammar.read(harmless)
