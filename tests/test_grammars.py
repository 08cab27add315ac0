"""The shipped grammars and templates: on recorded replies, on replies that nobody would write, and on very long ones.

What a judge's own authors read in its replies is what the grammar reads, on all recorded replies that are here. Where they
differ, the difference has a reason, and the row itself has to prove it.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.judges.parse import Grammar, Unreadable, load_grammar
from rlaif.templates import data_dir, load_template

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
GRAMMARS = {path.stem: load_grammar(path.stem) for path in sorted((data_dir() / "prompts/grammars").glob("*.yaml"))}
TEMPLATES = {
    path.stem: Grammar.of(load_template(path.stem, needs=()).front, path.stem)
    for path in sorted((data_dir() / "prompts/templates").glob("*.txt"))
}
EVERY = [
    pytest.param(found, id=name) for name, found in (GRAMMARS | {f"template {n}": g for n, g in TEMPLATES.items()}).items()
]
recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}")

Row = dict[str, Any]


def rows(name: str) -> Iterator[Row]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rb") as file:
        yield from (json.loads(line) for line in file)


def read(grammar: Grammar, reply: str | None, finish: str | None = None) -> tuple[float, ...] | str:
    """The scores, or the kind of the failure."""
    try:
        return grammar.read(reply or "", finish=finish)
    except Unreadable as error:
        return error.kind


def pick(said: tuple[float, ...] | str) -> str | None:
    """As the recorded verdicts say it."""
    if isinstance(said, str):
        return None
    return "tie" if said[0] == said[1] else "first" if said[0] > said[1] else "second"


# As their source read them


def llmbar_grammar(row: Row) -> str:
    """Which of LLMBar's formats a row is in: by its prompting config, and PaLM2's CoT is read by lines."""
    if row["config"] == "Swap":
        return "llmbar-swap"
    explained = row["config"] == "Swap_CoT" or (row["config"] == "CoT" and row["judge"] != "PaLM2")
    return "llmbar-cot" if explained else "llmbar-line"


FORMATS: dict[str, Callable[[Row], str | None]] = {
    "llmbar": lambda row: llmbar_grammar(row) if "raw" in row else None,  # else a rating, below
    "judgebench": lambda row: "arena-hard" if "raw" in row else None,  # else a reward model's scores
    "alpacaeval_gpt4turbo_cot": lambda row: "alpaca-ranks",
}
REASONS: dict[str, Callable[[Row, str], bool]] = {
    # the source took what it found so far for the verdict of a reply that its token limit cut
    "cut": lambda row, kind: kind == "truncated" and row["finish"] == "length" and row["pick"] is not None,
    # the source has a decision, and the recorded reply holds no verdict in any brackets: it was decided on another text
    "no label": lambda row, kind: kind == "no_verdict" and "[[" not in row["raw"] and row["pick"] is not None,
}


@recorded
@pytest.mark.parametrize("name", FORMATS)
def test_recorded_replies_are_read_as_their_source_read_them(name):
    checked, reasons = 0, Counter[str]()
    for row in rows(f"verdicts/{name}"):
        grammar = FORMATS[name](row)
        if grammar is None:
            continue
        checked += 1
        said = read(GRAMMARS[grammar], row["raw"], row.get("finish"))
        if pick(said) == row["pick"]:
            continue
        proved = [reason for reason, holds in REASONS.items() if isinstance(said, str) and holds(row, said)]
        assert len(proved) == 1, (row["pair_id"], row["judge"], row["config"], row["pick"], said)
        reasons[proved[0]] += 1
    print(f"{name}: {checked} replies, differences {dict(reasons)}")
    assert checked > 500 and sum(reasons.values()) <= math.ceil(checked / 1000)


@recorded
def test_recorded_ratings_are_read_as_their_source_read_them():
    checked = 0
    for row in rows("verdicts/llmbar"):
        for reply, score in zip(row.get("raws", ()), row.get("scores", ()), strict=True):
            said = read(GRAMMARS["llmbar-rating"], reply)
            assert said == ("no_verdict" if score is None else (score,)), row["pair_id"]
            checked += 1
    assert checked > 1000


@recorded
def test_recorded_token_probabilities_say_what_their_source_computed():
    """To 1e-4: the recorded log-probabilities have four decimals; and a token that is not listed is not impossible."""
    checked, said_of = 0, Counter[str]()
    for row in rows("verdicts/alpacaeval_gpt4turbo_logprob"):
        if row["raw"] is not None:
            said = read(GRAMMARS["alpaca-token"], row["raw"])
            said_of[str(pick(said))] += 1
            assert pick(said) == {"m": "first", "M": "second"}.get(row["raw"])
        if "logprobs" not in row or row["order"] is None:
            continue
        tokens = {token: math.exp(p) for token, p in row["logprobs"].items()}
        (first, second), mass = GRAMMARS["alpaca-token"].read_token(tokens)
        assert (second if row["order"] == "AB" else first) == pytest.approx(row["p_b"], abs=1e-4), row["pair_id"]
        assert 0.0 < mass <= 1.0 + 1e-3
        checked += 1
    assert checked > 10_000 and min(said_of["first"], said_of["second"]) > 1000


@recorded
def test_ties_that_the_source_broke_are_ties():
    """AlpacaEval sorts equal ranks and takes the first; where its word is recorded beside ours, the ranks are equal."""
    broken = 0
    for row in rows("verdicts/alpacaeval_gpt4turbo_cot"):
        if row.get("source_verdict") in ("A", "B"):
            ranks = {model["rank"] for model in json.loads(row["raw"])["ordered_models"]}
            assert len(ranks) == 1 and read(GRAMMARS["alpaca-ranks"], row["raw"]) == (0.5, 0.5)
            broken += 1
    assert broken > 0


@recorded
def test_a_recorded_reason_without_its_verdict_is_no_verdict():
    """PandaLM's file has the reasons that came behind the verdicts, and nothing that could be read as one."""
    replies = [row["raw"] for row in rows("verdicts/pandalm")]
    assert {read(GRAMMARS["pandalm"], reply) for reply in replies} == {"no_verdict"} and len(replies) > 300


@recorded
@pytest.mark.parametrize(("verdict", "said"), [("1", (1.0, 0.0)), ("2", (0.0, 1.0)), ("Tie", (0.5, 0.5)), ("tie", (0.5, 0.5))])
def test_a_verdict_before_a_recorded_reason_is_read(verdict, said):
    for row in rows("verdicts/pandalm"):
        assert read(GRAMMARS["pandalm"], f"{verdict}\n\n### Reason: {row['raw']}\n") == said


@recorded
def test_a_result_behind_recorded_feedback_is_read_and_feedback_alone_is_none():
    """GPT-4's feedback speaks of scores ("to get a score of 5 it would have to"): only the result counts."""
    checked = 0
    for row in rows("candidates/absolute_gpt4_3x"):
        for candidate in row["candidates"]:
            for feedback, score in zip(candidate["feedback"], candidate["scores"], strict=True):
                assert read(GRAMMARS["prometheus-absolute"], feedback) == "no_verdict"
                assert read(GRAMMARS["prometheus-absolute"], f"{feedback} [RESULT] {score}") == (float(score),)
                checked += 1
    assert checked > 500


# Formats of which no replies are recorded here


@pytest.mark.parametrize(
    ("grammar", "reply", "said"),
    [
        ("mt-bench-pair", "Assistant A is more helpful.\n\n[[A]]", (1.0, 0.0)),
        ("mt-bench-pair", 'My final verdict: "[[C]]"', (0.5, 0.5)),
        ("mt-bench-pair", "[[A]] ... on second thought [[B]]", "contradiction"),
        ("mt-bench-rating", "It is fine.\n\nRating: [[7]]", (7.0,)),
        ("mt-bench-rating", "Rating: [[8.5]]", (8.5,)),
        ("mt-bench-rating", "Rating: [6]", (6.0,)),
        ("mt-bench-rating", "Rating: [[11]]", "out_of_range"),
        ("mt-bench-rating", "As [3] says, [[7]], that is [[7.0]]", (7.0,)),
        ("mt-bench-rating", "[[10/10]] [2]", "not_offered"),
        ("mt-bench-rating", "[3] and [7]", "contradiction"),
        ("mt-bench-rating", "[[3]] or [[7]]", "contradiction"),
        ("prometheus-absolute", "Feedback: good. [RESULT] 4", (4.0,)),
        ("prometheus-absolute", "Good. [RESULT] (4)", (4.0,)),
        ("prometheus-absolute", "Good. [RESULT] 4.", (4.0,)),
        ("prometheus-absolute", "Good. [RESULT] 4/5", (4.0,)),
        ("prometheus-absolute", "Good. [RESULT] 4.5", "no_verdict"),
        ("prometheus-absolute", "Good. [RESULT] 6", "out_of_range"),
        ("prometheus-relative", "Feedback: better. [RESULT] B", (0.0, 1.0)),
        ("prometheus-relative", "Feedback: [RESULT] Both", "no_verdict"),
        ("prometheus-relative", "[RESULT] A, because B is wrong", (1.0, 0.0)),
        ("prometheus-relative", "[RESULT] A and B", "not_offered"),
        ("prometheus-relative", "[RESULT] (A)/(B)", "not_offered"),
        ("prometheus-relative", "[RESULT] Response A or Response B", "not_offered"),
        ("auto-j", "So, the final decision is Response 2. The reason is ...", (0.0, 1.0)),
        ("auto-j", "Thus, final decision is tie.", (0.5, 0.5)),
        ("auto-j", "final decision is Response 1, as it is shorter", (1.0, 0.0)),
        ("auto-j", "final decision is response 12", "not_offered"),
        ("auto-j", "final decision is tied", "not_offered"),
        ("auto-j", "final decision is Response 1 or Response 2", "not_offered"),
        ("auto-j", "final decision is Response 1, no, my final decision is response 12", "not_offered"),
        ("alpaca-ranks", '```json\n[{"rank": 2, "model": "m"}, {"rank": 1, "model": "M"}]\n```', (0.0, 1.0)),
        ("alpaca-ranks", '{"ordered_models": [{"model": "m", "rank": 1}', "no_verdict"),
        ("alpaca-ranks", '"model": "m", "rank": 2}, {"model": "M", "rank": 2}', (0.5, 0.5)),
        ("ranking", "So: [[B > A]]", (0.0, 1.0)),
        ("ranking", "[[A=B]]", (0.5, 0.5)),
        ("rating", "[[3]]", (3.0,)),
        ("pairwise", "[[B]]", (0.0, 1.0)),
        ("llmbar-line", "Output (b) is better.\nOutput (a) is worse.", (1.0, 0.0)),
        ("llmbar-cot", "Therefore, Output (b) is better", "no_verdict"),
        ("arena-hard", "My final verdict is tie: [[A=B]]", (0.5, 0.5)),
        ("arena-hard", "[[A<B]]", "not_offered"),
    ],
)
def test_a_format_s_own_examples(grammar, reply, said):
    assert read(GRAMMARS[grammar], reply) == said


# What nobody would write

BRACKETED = ["A", "B", "C", "D", "A>>B", "A=B", "A<B", "B>A", "B > A", "A = B", "7", "10", "0", "3.5", "７", "Ａ", " A ", ""]
FRAGMENTS = [
    *(f"[[{said}]]" for said in BRACKETED),
    *(
        "[7]",
        "[[A",
        "A]]",
        "]]",
        "[[",
        "[RESULT]",
        "[RESULT] 4",
        "[RESULT] A",
        "tie",
        "Tie\n",
        "1\n",
        "2\n",
        "9",
        "M",
        "m",
        "nan",
    ),
    *("Output (a)", "\nOutput (b)", "Output (a) is better.", "Output (b) is better", "final decision is Response 1", " or "),
    *(
        '"model": "m", "rank": 1',
        '{"model": "M", "rank": 2}',
        '"rank": 1, "model": "m"',
        "1e9",
        "-1",
        "²",
        "٣",
        "A",
        "B",
        "(",
        ")",
    ),
    *("final decision is ", "I cannot", "I am sorry, but ", "if A is better, ", "答案", "[", "]", '"', "\\", "\n", "\r\n", " "),
    *("\0", "\ud800", "\udfff", "\u202e", "\u200f", "\u2028", "\u3000", "é", "e\u0301", "🙂"),
]
noise = st.text(st.characters(), max_size=4)
replies = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), noise), max_size=12).map("".join)
finishes = st.sampled_from([None, "stop", "length", "content_filter", "odd"])


KINDS = {"no_verdict", "contradiction", "refusal", "truncated", "out_of_range", "echo", "not_offered"}


def allowed(grammar: Grammar, scores: tuple[float, ...], shown: int) -> bool:
    """Whether these scores are among what may be said."""
    if grammar.kind == "pairwise":
        return scores in grammar.means.values()
    if grammar.kind == "rating":
        low, high = grammar.scale
        return len(scores) == 1 and low <= scores[0] <= high and (grammar.decimals or scores[0].is_integer())
    return len(scores) == shown and sum(scores) == shown * (shown - 1) / 2 and all(0 <= s <= shown - 1 for s in scores)


def reads_only_what_was_offered(reply: str, finish: str | None, shown: int) -> None:
    for found in (*GRAMMARS.values(), *TEMPLATES.values()):
        try:
            scores = found.read(reply, shown if found.kind == "ranking" and found.above != "places" else 2, finish)
        except Unreadable as error:
            assert error.kind in KINDS and len(str(error)) < 500
        else:
            assert allowed(found, scores, len(scores)), (found, scores)
        harmless = found.disarm(reply)
        assert found.disarm(harmless) == harmless
        if found.patterns:
            with pytest.raises(Unreadable):
                found.read(harmless, 2, finish)


@settings(database=None, deadline=None, max_examples=300)
@given(replies, finishes, st.integers(2, 5))
def test_no_reply_makes_a_grammar_crash_or_say_what_was_not_offered(reply, finish, shown):
    reads_only_what_was_offered(reply, finish, shown)


@pytest.mark.slow
@settings(database=None, deadline=None, max_examples=10_000)
@given(replies, finishes, st.integers(2, 5))
def test_no_reply_of_ten_thousand_does(reply, finish, shown):
    reads_only_what_was_offered(reply, finish, shown)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_s_own_words_are_no_verdict(name):
    """A judge that repeats its instruction has decided nothing."""
    template = load_template(name, needs=())
    for text in (template.text, template.text[template.text.rfind("\n") + 1 :]):
        assert isinstance(read(TEMPLATES[name], text), str)


# Very long replies

UNITS = [
    *("[", "[[", "[[A", "[[A]]", "[[A>", "A>", "[[ ", " ", "\n", "[[A" + 40 * " ", "[9", "[[5]] ", "1 ", "9", "[[A > B]] "),
    *("Output (a) is better", "\nOutput (a)", "Output (", "[RESULT] ", '"model": "m", "rank": ', '"model": ', "\0", "\ud800"),
    *('{"model": "m", "rank": 1}, {"model": "M", "rank": 2}', "[[A]] or [[B]] ", "[[A]] [[B]] [[C]] ", "I ", "I am ", "Ａ"),
    *("final decision is ", "as an AI "),
]


def seconds(found: Grammar, text: str) -> float:
    """The shorter of two tries to read and to disarm."""
    took = []
    for _ in range(2):
        began = time.process_time()
        read(found, text)
        found.disarm(text)
        took.append(time.process_time() - began)
    return min(took)


@pytest.mark.slow
@pytest.mark.parametrize("found", EVERY)
def test_the_time_grows_with_the_reply_and_no_faster(found):
    """Eight times the length may take forty times as long; in quadratic time it would be 64 times."""
    for unit in UNITS:
        short, long = ((unit * (size // len(unit) + 1))[:size] for size in (16_000, 128_000))
        assert seconds(found, long) < 40 * max(seconds(found, short), 0.002), unit


@pytest.mark.parametrize(
    ("grammar", "reply", "said"),
    [
        ("pairwise", "[[B]]", (0.0, 1.0)),
        ("arena-hard", "[[A>>B]]", (1.0, 0.0)),
        ("llmbar-line", "\nOutput (b)\n", (0.0, 1.0)),
        ("llmbar-cot", "Output (b) is better.", (0.0, 1.0)),
        ("auto-j", "final decision is Tie\n", (0.5, 0.5)),
        ("rating", "[[4]]", (4.0,)),
        ("prometheus-absolute", "[RESULT] 4\n", (4.0,)),
        ("ranking", "[[B > A]]", (0.0, 1.0)),
    ],
)
def test_a_verdict_far_into_a_reply_is_found(grammar, reply, said):
    """Half a megabyte of thought before and behind it changes nothing."""
    thought = "x y\n" * 130_000
    assert read(GRAMMARS[grammar], thought + reply + thought) == said
