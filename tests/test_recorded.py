"""Recorded verdicts replayed: joined by id, for the order in which they were recorded, and what is missing stays missing."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import read_rows, stored_records, write_rows

import rlaif
from rlaif.errors import InputError
from rlaif.judges.parse import load_grammar
from rlaif.judges.recorded import RecordedJudge, load
from rlaif.types import Candidate, Prompt, Verdict

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}")
ORDERS = {"AB": (0, 1), "BA": (1, 0)}


def row(pair: str = "p", order: str | None = "AB", verdict: str | None = "A", **more: Any) -> dict[str, Any]:
    return {"pair_id": pair, "judge": "J", "order": order, "verdict": verdict, **more}


def file_of(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    return write_rows(tmp_path / "verdicts.jsonl", rows)


def ask(judge: RecordedJudge, *shown: int, pair: str = "p") -> Verdict:
    """What the judge says of ID/0 (response_a) and ID/1 (response_b) in this order."""
    prompt = Prompt(pair, ({"role": "user", "content": "q"},))
    return judge(prompt, [Candidate(f"{pair}/{k}", f"text {k}") for k in shown])


# What a row says


@pytest.mark.parametrize(
    ("order", "verdict", "scores"),
    [
        ("AB", "A", (1.0, 0.0)),
        ("AB", "B", (0.0, 1.0)),
        ("BA", "A", (0.0, 1.0)),
        ("BA", "B", (1.0, 0.0)),
        ("AB", "tie", (0.5, 0.5)),
        ("BA", "tie", (0.5, 0.5)),
    ],
)
def test_a_vote_is_about_a_and_b_and_scores_are_in_the_order_shown(tmp_path, order, verdict, scores):
    said = ask(load(file_of(tmp_path, row(order=order, verdict=verdict, raw="why"))), *ORDERS[order])
    assert (said.scores, said.scale, said.reason) == (scores, "vote", "why")
    assert said.winner == {"A": "p/0", "B": "p/1", "tie": None}[verdict]


@pytest.mark.parametrize("order", ORDERS)
def test_p_b_is_the_probability_of_b_wherever_it_was_shown(tmp_path, order):
    said = ask(load(file_of(tmp_path, row(order=order, verdict="A", p_b=0.25))), *ORDERS[order])
    assert said.scale == "probability" and dict(zip(said.shown, said.scores, strict=True)) == {"p/0": 0.75, "p/1": 0.25}


@pytest.mark.parametrize("order", ORDERS)
def test_the_scores_of_a_reward_model_are_in_the_order_shown(tmp_path, order):
    said = ask(load(file_of(tmp_path, row(order=order, scores=[-3.5, 2]))), *ORDERS[order])
    assert (said.scores, said.scale) == ((-3.5, 2.0), "rating")


def test_pointwise_rows_make_a_judge_of_one_at_a_time(tmp_path):
    path = file_of(tmp_path, row(order="pointwise", scores=[7, None]), row("q", "pointwise", scores=[1, 2.5]))
    judge = load(path)
    assert judge.arity == 1
    assert (ask(judge, 0).scores, ask(judge, 0).scale) == ((7.0,), "rating")
    assert [ask(judge, k, pair="q").scores for k in (0, 1)] == [(1.0,), (2.5,)]
    missing = ask(judge, 1)
    assert missing.scores is None and missing.error.startswith("no_verdict")
    with pytest.raises(InputError, match=r":1: `scores` must be a list of two"):
        load(file_of(tmp_path, row(order="pointwise", verdict="A")))


# What a row does not say


@pytest.mark.parametrize(
    ("rows", "shown", "pair", "error"),
    [
        ([row(verdict=None)], (0, 1), "p", "no_verdict:"),
        ([row()], (1, 0), "p", "not_recorded: .* in the order BA"),
        ([row()], (0, 1), "other", "not_recorded: there is no verdict on 'other'"),
        ([row(order=None, p_b=0.2)], (0, 1), "p", "not_recorded: .* does not say in which order"),
        ([row()], (0, 2), "p", "not_recorded: verdicts are about p/0 and p/1, shown were p/0, p/2"),
        ([row()], (0,), "p", "not_recorded"),
        ([row()], (0, 1, 2), "p", "not_recorded"),
    ],
)
def test_what_is_not_recorded_is_no_verdict_and_never_a_tie(tmp_path, rows, shown, pair, error):
    said = ask(load(file_of(tmp_path, *rows)), *shown, pair=pair)
    assert said.scores is None and said.shown == tuple(f"{pair}/{k}" for k in shown)
    assert re.match(error, said.error)


# Reading the replies anew


def test_with_a_grammar_the_reply_counts_and_the_file_s_word_does_not(tmp_path):
    rows = [
        row("p", "AB", "B", raw="[[A]]"),
        row("p", "BA", "B", raw="[[A]]"),
        row("q", "AB", "A", raw="neither"),
        row("r", "AB", "A", raw=None),
        row("s", "AB", "A", raw="[[A]], as", finish="length"),
    ]
    judge = load(file_of(tmp_path, *rows), grammar="pairwise")
    assert ask(judge, 0, 1).scores == ask(judge, 1, 0).scores == (1.0, 0.0)
    errors = {pair: ask(judge, 0, 1, pair=pair) for pair in "qrs"}
    assert {pair: v.error.partition(":")[0] for pair, v in errors.items()} == {
        "q": "no_verdict",
        "r": "not_recorded",
        "s": "truncated",
    }
    assert not any(v.scores for v in errors.values())


def test_with_a_token_grammar_the_log_probabilities_are_read(tmp_path):
    rows = [row("p", "BA", "A", raw="M", logprobs={"m": -1.3862944, "M": -0.2876821}), row("q", "AB", "A", raw="m")]
    judge = load(file_of(tmp_path, *rows), grammar="alpaca-token")
    said = ask(judge, 1, 0)
    assert (said.scores, said.scale) == ((pytest.approx(0.25), pytest.approx(0.75)), "probability")
    assert (ask(judge, 0, 1, pair="q").scores, ask(judge, 0, 1, pair="q").scale) == ((1.0, 0.0), "vote")


def test_pointwise_replies_are_read_by_a_rating_grammar(tmp_path):
    path = file_of(tmp_path, row(order="pointwise", scores=[1, 1], raws=["9", "12"]))
    judge = load(path, grammar=load_grammar("llmbar-rating"))
    assert ask(judge, 0).scores == (9.0,)
    assert ask(judge, 1).error.startswith("out_of_range")
    with pytest.raises(InputError, match="pairwise grammar cannot read"):
        load(path, grammar="pairwise")


# Which verdicts are meant


def test_one_judge_and_config_must_be_meant(tmp_path):
    rows = [row(judge="J", config="x"), row(judge="J", config="y", verdict="B"), row(judge="K", config="x", verdict="tie")]
    path = file_of(tmp_path, *rows)
    with pytest.raises(InputError, match=r"several judges or configs.*J / x, J / y, K / x"):
        load(path)
    with pytest.raises(InputError, match=r"several .*J / x, J / y$"):
        load(path, judge="J")
    with pytest.raises(InputError, match=r"no verdicts of judge 'L'; there are .*K / x"):
        load(path, judge="L")
    assert ask(load(path, judge="J", config="y"), 0, 1).winner == "p/1"
    assert load(path, judge="K").__name__ == "recorded:K:x" and ask(load(path, judge="K"), 0, 1).winner is None
    assert load(path, config="y").__name__ == "recorded:J:y"


def test_the_source_changes_with_the_content_the_selection_and_the_grammar(tmp_path):
    rows = [row(config="x", raw="[[A]]"), row(config="y", raw="[[A]]")]
    path = file_of(tmp_path, *rows)
    sources = [load(path, config="x"), load(path, config="y"), load(path, config="x", grammar="pairwise")]
    sources.append(load(path, config="x", grammar="mt-bench-pair"))
    again = load(path, config="x").source
    write_rows(path, [rows[0] | {"verdict": "B"}, rows[1]])
    assert len({judge.source for judge in (*sources, load(path, config="x"))}) == 5
    assert again == sources[0].source


# Files that cannot be used


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object"),
        ('{"pair_id": 3.5, "judge": "J", "order": "AB", "verdict": "A"}', "`pair_id` must be a text, got 3.5"),
        ('{"pair_id": "p", "order": "AB", "verdict": "A"}', "`judge` must be a text, got None"),
        ('{"pair_id": "p", "judge": "J", "verdict": "A"}', "`order` must be AB, BA, pointwise or null, got 'nothing'"),
        ('{"pair_id": "p", "judge": "J", "order": ["AB"], "verdict": "A"}', "`order` must be"),
        (
            '{"pair_id": "p", "judge": "J", "order": "AB", "verdict": "first"}',
            "`verdict` must be A, B, tie or null, got 'first'",
        ),
        ('{"pair_id": "p", "judge": "J", "order": "AB"}', "`verdict` must be"),
        ('{"pair_id": "p", "judge": "J", "order": "AB", "verdict": 1}', "`verdict` must be"),
        ('{"pair_id": "p", "judge": "J", "order": "AB", "p_b": 1.5}', "`p_b` must be a probability, got 1.5"),
        ('{"pair_id": "p", "judge": "J", "order": "AB", "p_b": true}', "`p_b` must be a number"),
        ('{"pair_id": "p", "judge": "J", "order": "AB", "scores": [1]}', "`scores` must be a list of two"),
        ('{"pair_id": "p", "judge": "J", "order": "AB", "scores": [1, null]}', "`scores` must be a number, got None"),
        ('{"pair_id": "o", "judge": "J", "order": "AB", "verdict": "B"}', "a second verdict on 'o' in the order 'AB'"),
        ('{"pair_id": "p", "judge": "J", "order": "pointwise", "scores": [1, 2]}', "some verdicts .* are pointwise"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path, line, said):
    path = tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps(row("o")) + "\n\n" + line + "\n")
    with pytest.raises(InputError, match=said) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}:3: ")


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"pair_id": "p"}\n' * 999)[:-9])
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    for name, said in (
        ("none.jsonl", "no file at"),
        ("empty.jsonl", "holds no verdicts"),
        ("plain.jsonl.gz", "cannot read"),
        ("a\0b", "no file at"),
    ):
        with pytest.raises(InputError, match=said):
            load(tmp_path / name)
    with pytest.raises(InputError):
        load(tmp_path / "cut.jsonl.gz")


# In a run


def candidates_of(*pairs: str) -> list[dict[str, Any]]:
    return [{"id": pair, "prompt": f"question {pair}", "candidates": [f"{pair}: a", f"{pair}: b"]} for pair in pairs]


def test_a_run_joins_by_id_whatever_the_order_of_the_rows(tmp_path):
    """The rows are not in the order of the pairs, one pair has none, one was judged in one order only."""
    rows = [row(pair, order, verdict) for pair, verdict in (("r", "B"), ("q", "tie"), ("p", "A")) for order in ORDERS]
    judge = load(file_of(tmp_path, *rows, row("t", "BA", "B")))
    run = rlaif.judge(candidates_of("p", "none", "q", "r", "t"), judge=judge, out=tmp_path / "out")
    summary = run.wait()
    found = {r["id"]: r["chosen"][0]["content"] for r in read_rows(tmp_path / "out" / "dpo.jsonl")}
    assert found == {"p": "p: a", "r": "r: b", "t": "t: b"}
    assert summary["dropped"] == {"no_verdict": 1, "tied": 1}
    assert (summary["flip_rate"], summary["no_verdict_rate"]) == (0.0, 0.3)


def test_a_changed_file_is_another_judge_and_the_same_file_is_not_asked_again(tmp_path):
    path = file_of(tmp_path, row(order="AB"), row(order="BA"))
    for changed, reused in ((False, 0), (False, 2), (True, 0)):
        if changed:
            write_rows(path, [row(order="AB", verdict="B"), row(order="BA", verdict="B")])
        summary = rlaif.judge(candidates_of("p"), judge=load(path), out=tmp_path / "out").wait()
        (pair,) = read_rows(tmp_path / "out" / "dpo.jsonl")
        assert pair["chosen"][0]["content"] == ("p: b" if changed else "p: a")
        assert summary["calls"]["reused"] == reused


def test_a_pointwise_file_in_a_run_has_no_order_to_flip(tmp_path):
    path = file_of(tmp_path, row(order="pointwise", scores=[2, 7]))
    summary = rlaif.judge(candidates_of("p"), judge=load(path), out=tmp_path / "out").wait()
    (record,) = stored_records(tmp_path / "out")
    assert {v.shown: v.scores for v in record.verdicts} == {("p/0",): (2.0,), ("p/1",): (7.0,)}
    assert summary["flip_rate"] is None and read_rows(tmp_path / "out" / "dpo.jsonl")[0]["score_chosen"] == 7.0


@recorded
def test_recorded_verdicts_agree_with_gold_as_often_as_the_rows_say(tmp_path):
    """Real pairs: a judge's agreement with gold through the replay is what a count over the file gives."""
    with gzip.open(DATA / "pairs" / "llmbar.jsonl.gz", "rb") as file:
        gold = {pair["id"]: pair for pair in map(json.loads, file)}
    path = DATA / "verdicts" / "llmbar.jsonl.gz"
    with gzip.open(path, "rb") as file:
        rows = [r for r in map(json.loads, file) if (r["judge"], r["config"]) == ("GPT-4", "CoT")]
    counted = sum(r["verdict"] == gold[r["pair_id"]]["gold"] for r in rows)
    for judge in (load(path, judge="GPT-4", config="CoT"), load(path, judge="GPT-4", config="CoT", grammar="llmbar-cot")):
        replayed = 0
        for pair in gold:
            best = f"{pair}/{'AB'.index(gold[pair]['gold'])}"
            replayed += sum(ask(judge, *shown, pair=pair).winner == best for shown in ORDERS.values())
        assert replayed == counted > 0.7 * len(rows) > 100


@pytest.mark.slow
@recorded
@pytest.mark.parametrize("path", sorted((DATA / "verdicts").glob("[!p]*.gz")) if DATA.is_dir() else [], ids=lambda p: p.name)
def test_every_recorded_selection_loads(path):
    with gzip.open(path, "rb") as file:
        known = {(r["judge"], r["config"]) for r in map(json.loads, file)}
    for judge, config in sorted(known)[::7]:
        loaded = load(path, judge=judge, config=config)
        assert loaded.arity == (1 if config.startswith("Rating") else 2)
