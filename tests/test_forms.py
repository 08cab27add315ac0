"""Forms of rows: columns named by the user, chat logs, and preference files whose answers are judged again."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows
from hypothesis import given
from hypothesis import strategies as st

from rlaif.data import Columns, read_candidates, read_prompts
from rlaif.errors import InputError
from rlaif.types import Candidate, Prompt

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
PAIRS = sorted((DATA / "pairs").glob("*.jsonl.gz")) or [
    pytest.param(None, marks=pytest.mark.skip(reason=f"no evaluation data at {DATA}"))
]
CALL = {"id": "1", "type": "function", "function": {"name": "w", "arguments": "{}"}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def ask(row: Any, **columns: Any) -> Prompt:
    (prompt,) = read_prompts([row], columns=Columns(**columns))
    return prompt


def judge(*rows: Any, **columns: Any) -> list[tuple[Prompt, list[Candidate]]]:
    return list(read_candidates(rows, columns=Columns(**columns)))


def labels(candidates: list[Candidate]) -> dict[str, float | None]:
    return {c.text: c.score for c in candidates}


def refusal(rows: list[Any], *, judged: bool = False, **columns: Any) -> str:
    with pytest.raises(InputError) as refused:
        list((read_candidates if judged else read_prompts)(rows, columns=Columns(**columns)))
    return str(refused.value)


# Named columns


def test_named_columns_are_read_and_leave_the_rest() -> None:
    row = {"id": "old", "prompt": "other", "question": "Why?", "answer": 4, "key": 7, "topic": "t"}
    found = ask(row, prompt="question", reference="answer", id="key")
    assert (found.id, found.text, found.reference) == ("7", "Why?", "4")
    assert found.fields == {"id": "old", "prompt": "other", "topic": "t"}


def test_names_lead_into_nested_columns() -> None:
    row = {"turns": ["One?", "Two?"], "a.b": "flat", "a": {"b": "deep", "c": {"d": 2}}, "reward_model": {"ground_truth": "5"}}
    assert ask(row, prompt="turns.1").text == "Two?"
    assert ask(row, prompt="a.b").text == "flat"
    found = ask(row, prompt="turns.0", reference="reward_model.ground_truth", id="a.c.d")
    assert (found.id, found.reference, set(found.fields)) == ("2", "5", {"turns", "a.b", "a", "reward_model"})


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"prompt": "qestion"}, "no column 'qestion' (--prompt-field); there are question, turns, a"),
        ({"prompt": "turns.2"}, "2 items in `turns`"),
        ({"prompt": "turns.x"}, "2 items in `turns`"),
        ({"prompt": "question.x"}, "`question` is a text"),
        ({"prompt": "question", "reference": "a.c"}, "no column 'a.c' (--reference-field); there are a.b"),
        ({"prompt": "question", "id": "key"}, "no column 'key' (--id-field)"),
        ({"prompt": "question", "reference": "turns"}, "--reference-field) must hold texts or numbers, got a list"),
        ({"prompt": "question+turns"}, "must be a text to be joined"),
        ({"prompt": "a"}, "`a` must be a text or a list of messages, got an object"),
    ],
)
def test_a_named_column_that_is_not_there_is_refused_with_those_that_are(columns: dict[str, str], why: str) -> None:
    assert why in refusal([{"question": "Why?", "turns": ["a", "b"], "a": {"b": 1}}], **columns)


def test_columns_are_joined_without_the_empty_ones() -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2"},
        {"instruction": "Hi.", "input": ""},
        {"instruction": "Hi?", "input": None},
    ]
    assert [ask(row, prompt="instruction+input").text for row in rows] == ["Add.\n\n1 and 2", "Hi.", "Hi?"]
    assert ask({"a+b": "whole", "a": "x", "b": "y"}, prompt="a+b").text == "whole"
    assert "no column 'input'" in refusal([{"instruction": "x"}], prompt="instruction+input")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_empty_cell_of_a_named_column_is_there(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    table = pa.table({"q": ["One?", "Two?"], "extra": ["x", None], "answer": [None, "2"]})
    path = tmp_path / f"p.{kind}"
    pq.write_table(table, path) if kind == "parquet" else pyarrow.csv.write_csv(table, path)
    one, two = read_prompts(str(path), columns=Columns(prompt="q+extra", reference="answer"))
    assert (one.text, one.reference, two.text, two.reference) == ("One?\n\nx", None, "Two?", "2")


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"question": "Why?", "answer": "x"}, "--prompt-field question"),
        ({"output": "x", "instruction": "Do.", "input": "it"}, "--prompt-field instruction+input"),
        ({"text": "Why?"}, "--prompt-field text"),
        ({"a": 1}, "--prompt-field NAME"),
        ({}, "there are none"),
    ],
)
def test_without_a_prompt_nothing_is_guessed(row: dict[str, Any], hint: str) -> None:
    words = refusal([row])
    assert hint in words and "`prompt`" in words and all(name in words for name in row)


def test_answers_in_columns_of_their_own() -> None:
    row = {"q": "Why?", "gpt": "a", "llama": "", "x": 1}
    ((prompt, found),) = judge(row, prompt="q", responses=("gpt", "llama"))
    assert (prompt.fields, [(c.text, c.score) for c in found]) == ({"x": 1}, [("a", None), ("", None)])
    ((prompt, found),) = judge({"prompt": "Why?", "out": {"all": ["a", "b"]}}, candidates="out.all")
    assert [c.text for c in found] == ["a", "b"]
    assert "--response-field" in refusal([row], judged=True, prompt="q", responses=("gpt", "claude"))
    assert "--candidates-field" in refusal([row], judged=True, prompt="q", candidates="all")


# Chat logs


def test_a_chat_log_is_asked_up_to_its_last_question(caplog: pytest.LogCaptureFixture) -> None:
    turns = [{"role": "system", "content": "s"}, user("One?"), said("1"), user("Two?")]
    shared = [{"from": "system", "value": "s"}, {"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}]
    shared += [{"from": "human", "value": "Two?"}]
    rows = [
        {"messages": turns},
        {"messages": [*turns, said("2")], "tools": [{"type": "function"}]},
        {"conversations": [*shared, {"from": "gpt", "value": "2"}]},
        {"conversation": [*turns, said("2"), said("and")]},
    ]
    found = list(read_prompts(rows))
    assert [p.messages for p in found] == [tuple(turns)] * 4
    assert found[1].fields == {"tools": [{"type": "function"}]} and found[0].fields == {}
    assert [r.getMessage() for r in caplog.records] == ["chat logs that end with an answer, which was left out: 3"]


def test_tool_calls_survive() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None}
    result = {"role": "tool", "content": "rain", "tool_call_id": "1"}
    found = ask({"messages": [user("Weather?"), call, result, said("It rains.")]})
    assert found.messages == (user("Weather?"), {"role": "assistant", "content": "", "tool_calls": [CALL]}, result)
    assert ask({"prompt": [user("Weather?"), call, result]}).messages == found.messages
    shared = [("human", "Weather?"), ("function_call", "w()"), ("observation", "rain"), ("gpt", "It rains.")]
    found = ask({"conversations": [{"from": who, "value": what} for who, what in shared]})
    assert [m["role"] for m in found.messages] == ["user", "assistant", "tool"]


def test_a_content_of_text_parts_is_their_text() -> None:
    parts = [{"type": "text", "text": "Look:"}, "at", {"type": "input_text", "text": "this"}]
    assert ask({"messages": [{"role": "user", "content": parts}]}).text == "Look:\nat\nthis"
    assert ask([{"role": "user", "content": parts, "name": "Ann"}]).messages[0]["name"] == "Ann"


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([user("a"), {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "'image_url'"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "'text'"),
        ([{"role": "user", "content": []}], "an empty list"),
        ([{"role": "user", "content": None}], "nothing"),
        ([{"from": "robot", "value": "x"}], "'robot'"),
        ([{"from": "human", "value": None}], "nothing"),
        ([{"role": "assistant", "content": None}], "nothing"),
        ([said("a")], "no message of the user"),
        ([user("a"), {"role": "system", "content": "x"}], "ends with a message of the system"),
        (["a"], "must be an object"),
        ([], "an empty list"),
    ],
)
def test_a_wrong_chat_log_is_named(messages: list[Any], why: str) -> None:
    words = refusal([{"messages": [user("Why?")]}, {"messages": messages}])
    assert words.startswith("item 2: ") and "messages" in words and why in words


def test_a_chat_log_is_no_candidate() -> None:
    assert "two" in refusal([{"messages": [user("a"), said("b")]}], judged=True)
    ((prompt, found),) = judge({"messages": [user("a")], "candidates": ["x", "y"]})
    assert (prompt.text, len(found)) == ("a", 2)
    assert "assistant" in refusal([{"messages": [user("a"), said("b")], "candidates": ["x", "y"]}], judged=True)


# Preference files

SAME: list[dict[str, Any]] = [
    {"prompt": "Why?", "chosen": "good", "rejected": "bad"},
    {"prompt": [user("Why?")], "chosen": [said("good")], "rejected": [said("bad")]},
    {"prompt": "Why?", "chosen": said("good"), "rejected": {"from": "gpt", "value": "bad"}},
    {"chosen": [user("Why?"), said("good")], "rejected": [user("Why?"), said("bad")]},
    {"prompt": "Why?", "chosen": [user("Why?"), said("good")], "rejected": [user("Why?"), said("bad")]},
    {"messages": [user("Why?")], "chosen": said("good"), "rejected": said("bad")},
    {"chosen": "\n\nHuman: Why?\n\nAssistant: good", "rejected": "\n\nHuman: Why?\n\nAssistant: bad"},
]


@pytest.mark.parametrize("row", SAME)
def test_every_way_to_write_a_preference_is_the_same_comparison(row: dict[str, Any]) -> None:
    ((prompt, found),) = judge(row | {"score_chosen": 8.5, "chosen_model": "m", "rejected-model": "n"})
    assert prompt.messages == (user("Why?"),)
    assert {(c.text, c.score, c.model) for c in found} == {("good", 1.0, "m"), ("bad", 0.0, "n")}
    assert prompt.fields == {"score_chosen": 8.5, "chosen_model": "m", "rejected-model": "n"}
    assert [c.text for c in found] == [c.text for _, found in judge(SAME[0]) for c in found]
    assert ask(row).messages == (user("Why?"),)


def test_a_whole_conversation_is_the_prompt() -> None:
    before = [{"role": "system", "content": "s"}, user("One?"), said("1"), user("Two?")]
    ((prompt, _),) = judge({"chosen": [*before, said("good")], "rejected": [*before, said("bad")]})
    assert prompt.messages == tuple(before)
    ((prompt, _),) = judge({"prompt": "Two?", "chosen": [*before, said("good")], "rejected": [*before, said("bad")]})
    assert prompt.messages == tuple(before)
    words = refusal([{"prompt": "Three?", "chosen": [*before, said("a")], "rejected": [*before, said("b")]}], judged=True)
    assert "another prompt" in words


def test_answers_that_begin_alike_stay_whole() -> None:
    """Where a prompt ends is told by turns, not by the first letter that differs."""
    good, bad = "It is blue.\n\nIt is.", "It is green."
    for row in (
        {"chosen": f"\n\nHuman: Sky?\n\nAssistant: {good}", "rejected": f"\n\nHuman: Sky?\n\nAssistant: {bad}"},
        {"chosen": [user("Sky?"), said(good)], "rejected": [user("Sky?"), said(bad)]},
    ):
        ((prompt, found),) = judge(row)
        assert prompt.text == "Sky?" and labels(found) == {good: 1.0, bad: 0.0}
    words = refusal([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], judged=True)
    assert "where the prompt ends cannot be known" in words and "--prompt-field" in words


def test_transcripts_of_several_turns() -> None:
    text = "\n\nHuman: One?\n\nAssistant: 1\n\nAssistant: or 2\n\nHuman: Two?\n\nAssistant:"
    ((prompt, found),) = judge({"chosen": text + " good ", "rejected": text})
    assert prompt.messages == (user("One?"), said("1\n\nor 2"), user("Two?"))
    assert labels(found) == {"good": 1.0, "": 0.0}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"}, "different_prompts"),
        ({"chosen": [user("a"), said("x")], "rejected": [user("b"), said("x")]}, "different_prompts"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: x\n\nHuman: b", "rejected": "\n\nHuman: a\n\nAssistant: y"}, "no_answer"),
        (
            {"chosen": [user("a"), {**said("Now:"), "tool_calls": [{"id": "1"}]}], "rejected": [user("a"), said("y")]},
            "calls_tools",
        ),
    ],
)
def test_a_row_that_compares_nothing_is_left_out_and_counted(
    row: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = {
        side: [user("Why?"), said(side)] if isinstance(row[side], list) else f"\n\nHuman: Why?\n\nAssistant: {side}"
        for side in row
    }
    counts = Counter[str]()
    found = list(read_candidates([good, row, row], left_out=counts))
    assert [p.text for p, _ in found] == ["Why?"] and counts == {reason: 2}
    assert caplog.records[0].getMessage().startswith("item 2: ") and caplog.records[-1].getMessage().endswith(": 2")
    assert "2" in refusal([row, row], judged=True)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": [said("y")]}, "both be texts"),
        ({"prompt": "a", "chosen": None, "rejected": "y"}, "got nothing and a text"),
        ({"prompt": "a", "chosen": "x"}, "`candidates`"),
        ({"chosen": [said("x")], "rejected": [said("y")]}, "without a prompt"),
        ({"question": "a", "chosen": "x", "rejected": "y"}, "--prompt-field"),
        ({"prompt": "a", "response_a": "x", "response_b": "y", "gold": "C"}, "`gold` must be A, B or tie, got 'C'"),
        ({"prompt": "a", "response_a": "x", "response_b": "y", "gold": ["A"]}, "`gold` must be A, B or tie"),
        ({"prompt": "a", "answers": [{"answer": "x", "rank": "first"}]}, "score of candidate 1"),
        ({"prompt": "a", "completions": ["x", "y"]}, "`candidates`"),
    ],
)
def test_a_wrong_preference_is_named(row: dict[str, Any], why: str) -> None:
    words = refusal([row], judged=True)
    assert words.startswith("item 1: ") and why in words


def test_a_prompt_named_beside_a_preference() -> None:
    ((prompt, found),) = judge({"question": "Why?", "system": "s", "chosen": "x", "rejected": "y"}, prompt="question")
    assert (prompt.text, prompt.fields, labels(found)) == ("Why?", {"system": "s"}, {"x": 1.0, "y": 0.0})


def completion(text: str, ratings: list[Any], overall: Any, **more: Any) -> dict[str, Any]:
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {aspect: {"Rating": rating, "Rationale": "..."} for aspect, rating in zip(aspects, ratings, strict=False)}
    return {"model": "m", "response": text, "annotations": annotations, "overall_score": overall} | more


def test_ultrafeedback_is_labelled_by_its_ratings(caplog: pytest.LogCaptureFixture) -> None:
    """In the original a overall_score of 1 is often stored as 10."""
    row = {
        "source": "s",
        "instruction": "Why?",
        "models": ["m"],
        "completions": [
            completion("awful", ["1", "1", "2", "1"], 10.0, **{"fine-grained_score": 1.25}),
            completion("good", ["5", "4", "N/A", "5"], 8.5),
            completion("unrated", [], 7.0, **{"fine-grained_score": 3.5}),
            completion("unknown", [], 9.0),
        ],
    }
    fine = row | {"completions": row["completions"][1:]}
    (prompt, found), _ = judge(row, fine)
    assert labels(found) == {"awful": 1.25, "good": 14 / 3, "unrated": 3.5, "unknown": None}
    assert (prompt.text, prompt.fields, {c.model for c in found}) == ("Why?", {"source": "s", "models": ["m"]}, {"m"})
    assert [r.getMessage()[-3:] for r in caplog.records] == [": 1"]
    assert ask(row).text == "Why?"


def test_nectar_ranks_are_no_places() -> None:
    """Rank 1 is the best, wherever it stands (six orders of three answers)."""
    for ranks in permutations((1.0, 2.0, 3.0)):
        answers = [{"answer": f"answer {k}", "model": f"m{k}", "rank": rank} for k, rank in enumerate(ranks)]
        ((prompt, found),) = judge(
            {"prompt": "\n\nHuman: One?\n\nAssistant: 1\n\nHuman: Two?\n\nAssistant: ", "answers": answers}
        )
        assert prompt.messages == (user("One?"), said("1"), user("Two?"))
        best = max(found, key=lambda c: c.score or 0)
        assert (best.text, best.model, best.score) == (f"answer {ranks.index(1)}", f"m{ranks.index(1)}", -1.0)
    assert judge({"prompt": "Plain?", "answers": [{"answer": "x", "rank": 1}]})[0][0].text == "Plain?"


def test_gold_pairs_keep_their_places_and_have_labels() -> None:
    rows = [
        {"prompt": str(k), "response_a": "x", "response_b": "y", "gold": gold} for k, gold in enumerate(["A", "B", "tie", None])
    ]
    found = judge(*rows, {"prompt": "none", "response_a": "x", "response_b": "y"})
    assert [[(c.text, c.score) for c in given] for _, given in found] == [
        [("x", 1.0), ("y", 0.0)],
        [("x", 0.0), ("y", 1.0)],
        [("x", 0.5), ("y", 0.5)],
        [("x", None), ("y", None)],
        [("x", None), ("y", None)],
    ]
    assert found[0][0].fields == {"gold": "A"}


FORMS = [
    {"prompt": "a", "candidates": ["x", "y"]},
    {"prompt": "b", "response_a": "x", "response_b": "y"},
    {"prompt": "c", "chosen": "x", "rejected": "y"},
    SAME[3],
    SAME[6],
    {"instruction": "d", "completions": [{"response": "x"}]},
    {"prompt": "e", "answers": [{"answer": "x", "rank": 1}]},
]


@pytest.mark.parametrize("one", range(len(FORMS)))
@pytest.mark.parametrize("other", range(len(FORMS)))
def test_forms_are_not_mixed(one: int, other: int) -> None:
    if one != other:
        assert "item 2" in (words := refusal([FORMS[one], FORMS[other]], judged=True)) and "apart" in words


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True), st.text().filter(str.strip))
def test_the_order_of_candidates_does_not_depend_on_the_label(texts: list[str], prompt: str) -> None:
    def places(one: str, other: str) -> list[str]:
        ((_, found),) = judge({"prompt": prompt, "chosen": one, "rejected": other})
        assert labels(found) == {one: 1.0, other: 0.0}
        return [c.text for c in found]

    if all(text.isascii() or text.encode("utf-8", "ignore").decode() == text for text in [*texts, prompt]):
        assert places(*texts) == places(*texts[::-1])


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.name)
def test_the_first_candidate_is_chosen_half_of_the_time(tmp_path: Path, path: Path) -> None:
    """Real pairs, written as preference files that always name the better one first."""
    with gzip.open(path, "rb") as file:
        rows = [row for row in map(json.loads, file) if row["gold"] in ("A", "B") and row["prompt"].strip()]
    told = [(r["prompt"], *(r[f"response_{side}"] for side in ("ab" if r["gold"] == "A" else "ba"))) for r in rows]
    told = [(prompt, good, bad) for prompt, good, bad in told if good.strip() != bad.strip()]
    written = {
        "explicit": [{"prompt": p, "chosen": g, "rejected": b} for p, g, b in told],
        "implicit": [{"chosen": [user(p), said(g)], "rejected": [user(p), said(b)]} for p, g, b in told],
        "ranked": [{"prompt": p, "answers": [{"answer": g, "rank": 1.0}, {"answer": b, "rank": 2.0}]} for p, g, b in told],
    }
    for name, given_rows in written.items():
        found = [given for _, given in read_candidates(str(write_rows(tmp_path / f"{name}.jsonl", given_rows)))]
        for (_, good, bad), candidates in zip(told, found, strict=True):
            assert {c.text for c in candidates} == {good, bad}
            assert max(candidates, key=lambda c: c.score or 0.0).text == good
        first = sum(candidates[0].text == good for (_, good, _), candidates in zip(told, found, strict=True))
        assert abs(first / len(told) - 0.5) < 4 * (0.25 / len(told)) ** 0.5, (name, first, len(told))


def test_transcripts_of_real_dialogues(tmp_path: Path) -> None:
    path = DATA / "pairs" / "hh_harmless.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no evaluation data at {DATA}")
    with gzip.open(path, "rb") as file:
        rows = [row for row in map(json.loads, file) if row["gold"] in ("A", "B")]
    told = []
    for r in rows:
        start = r["prompt"] if r["prompt"].startswith("Human:") else f"Human: {r['prompt']}"
        good, bad = (r[f"response_{letter}"] for letter in ("ab" if r["gold"] == "A" else "ba"))
        told.append({"chosen": f"\n\n{start}\n\nAssistant: {good}", "rejected": f"\n\n{start}\n\nAssistant: {bad}"})
    counts = Counter[str]()
    found = list(read_candidates(str(write_rows(tmp_path / "hh.jsonl", told)), left_out=counts))
    assert len(found) + counts.total() == len(rows) and counts.total() <= 0.01 * len(rows)
    assert all(p.messages[-1]["role"] == "user" and len(c) == 2 for p, c in found)
    read = Counter("".join("".join(m["content"] for m in p.messages).split()) for p, _ in found)
    asked = Counter("".join(re.sub(r"(^|\n\n)(Human|Assistant):", "", r["prompt"]).split()) for r in rows)
    assert (asked - read).total() <= counts.total()
