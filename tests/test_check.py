"""`rlaif check`, row by row: each finding on a file that has the fault, and not on the same file without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows

from rlaif.check.repairs import repaired
from rlaif.check.rules import RULES
from rlaif.check.run import Report, check
from rlaif.check.structure import CHECKS

Row = dict[str, Any]


def user(text: str) -> list[Row]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def pair(place: int = 0, **more: Any) -> Row:
    """A pair of messages that nothing is wrong with; which side is longer alternates."""
    answers = [f"Answer {place}: it is so because of the weather.", f"Answer {place}: nobody knows."]
    chosen, rejected = answers if place % 2 else reversed(answers)
    return {"prompt": user(f"Question {place}?"), "chosen": said(chosen), "rejected": said(rejected), **more}


def text_pair(place: int = 0, **more: Any) -> Row:
    return {"prompt": f"Question {place}?\n", "chosen": f"Yes {place}.", "rejected": f"No {place}.", **more}


def examine(tmp_path: Path, rows: list[Any], **more: Any) -> Report:
    return check(write_rows(tmp_path / "rows.jsonl", rows), **more)


def codes(report: Report, *, but: tuple[str, ...] = ("uneven_columns", "not_done")) -> dict[str, int]:
    return {found.rule.code: found.count for found in report.findings if found.rule.code not in but}


def steps(given: Any, labels: list[Any]) -> Row:
    return {"prompt": "Why?", "completions": given, "labels": labels}


def sharegpt(chosen: Any) -> Row:
    asked = [{"from": "human", "value": "W"}]
    return {"conversations": asked, "chosen": chosen, "rejected": {"from": "gpt", "value": "N"}}


REFUSAL = "I'm sorry, but I can't assist with that request."
LONG = "Why is the sky blue at noon?"
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {}}}]}
TOOL = {"role": "tool", "content": "12:00"}
WRONG: list[tuple[str, Row, Row]] = [
    # (the finding, a row with the fault, the same without)
    ("unknown_columns", {"a": 1}, text_pair()),
    ("missing_column", {"prompt": "Why?", "chosen": "So."}, text_pair()),
    ("missing_column", text_pair(rejected=None), text_pair()),
    ("wrong_type", text_pair(chosen=5), text_pair()),
    ("wrong_type", text_pair(chosen=["So."]), text_pair()),
    ("wrong_type", pair(prompt=[{"role": "user", "content": None}]), pair()),
    ("wrong_type", pair(prompt=[{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]), pair()),
    ("wrong_type", pair(prompt=[{"content": "Why?"}]), pair()),
    ("wrong_type", {"messages": "Why?"}, {"messages": user("Why?") + said("So.")}),
    ("mixed_formats", pair(prompt="Why?"), pair(prompt=user("Why?"))),
    ("object_answer", pair(chosen=said("So.")[0]), pair(chosen=said("So."))),
    ("from_value", pair(chosen=[{"from": "gpt", "value": "So."}]), pair(chosen=said("So."))),
    ("prompt_elsewhere", {"question": "Why?", "chosen": "So.", "rejected": "No."}, text_pair(question="Why?")),
    ("prompt_repeated", pair(chosen=user("Question 0?") + said("So."), rejected=user("Question 0?") + said("No.")), pair()),
    ("empty", text_pair(prompt=" \n"), text_pair()),
    ("empty", text_pair(chosen=""), text_pair()),
    ("empty", text_pair(rejected="\u3000"), text_pair()),
    ("empty", pair(chosen=[]), pair()),
    ("empty", pair(rejected=said(" ")), pair()),
    ("empty", {"messages": user("Why?")}, {"messages": user("Why?") + said("So.")}),
    ("empty_system", pair(prompt=[{"role": "system", "content": ""}, *user("Why?")]), pair(prompt=[SYSTEM, *user("Why?")])),
    ("equal", text_pair(chosen="Yes  0.", rejected="Yes 0. "), text_pair()),
    ("equal", pair(chosen=said("e\u0301"), rejected=said("\xe9")), pair(chosen=said("e\u0301"), rejected=said("e"))),
    ("roles", pair(prompt=user("Why?") + user("Why not?")), pair(prompt=user("Why?") + said("So.") + user("Why not?"))),
    ("roles", pair(prompt=user("Why?") + said("So.")), pair(prompt=user("Why?"))),
    ("roles", pair(prompt=[*user("Why?"), SYSTEM, *user("Now?")]), pair(prompt=[SYSTEM, *user("Why?")])),
    ("roles", pair(prompt=[{"role": "human", "content": "Why?"}]), pair()),
    ("roles", pair(prompt=[*user("Time?"), TOOL]), pair(prompt=[*user("Time?"), CALL, TOOL])),
    ("roles", pair(prompt=[*user("Time?"), CALL, *user("Well?")]), pair(prompt=[*user("Time?"), CALL, TOOL, TOOL])),
    ("roles", pair(chosen=user("So.")), pair(chosen=said("So."))),
    ("roles", pair(chosen=said("So.") + said("So!")), pair(chosen=said("So.") + user("Really?") + said("Yes."))),
    ("wrong_label", {"prompt": "Why?", "completion": "So.", "label": "yes"}, {"prompt": "W", "completion": "S", "label": True}),
    ("wrong_label", {"prompt": "Why?", "completion": "So.", "label": 1}, {"prompt": "W", "completion": "S", "label": False}),
    ("wrong_steps", steps(["a", "b"], [True]), steps(["a", "b"], [True, False])),
    ("wrong_steps", steps(["a"], [1]), steps(["a"], [False])),
    ("wrong_type", steps("a", [True]), steps(["a"], [True])),
    ("wrong_number", text_pair(margin="0.5"), text_pair(margin=0.5)),
    ("wrong_number", text_pair(margin=True), text_pair(margin=0)),
    ("scores_reversed", text_pair(margin=-0.5), text_pair(margin=0.5)),
    ("prompt_repeated", text_pair(prompt=LONG, chosen=f"{LONG} So.", rejected=f"{LONG} No."), text_pair(
        prompt=LONG, chosen=f"{LONG} So.", rejected="No.")),
    ("p_chosen", text_pair(p_chosen=0.4), text_pair(p_chosen=0.5)),
    ("p_chosen", text_pair(p_chosen=1.01), text_pair(p_chosen=1)),
    ("p_chosen", text_pair(p_chosen="0.9"), text_pair(p_chosen=None)),
    ("scores_reversed", pair(score_chosen=1, score_rejected=2.5), pair(score_chosen=2.5, score_rejected=1)),
    ("scores_reversed", pair(chosen_rating=1, rejected_rating=2), pair(chosen_rating=2, rejected_rating=2)),
    ("truncated", pair(chosen_finish_reason="length"), pair(chosen_finish_reason="stop")),
    ("truncated", pair(chosen=said("Run:\n```python\n" + "x = 1\n" * 40)), pair(chosen=said("```\n" + "x = 1\n" * 40 + "```"))),
    ("truncated", pair(chosen=said("It is so. " * 25 + "And then there is the other thing that has to be said about")), pair(
        chosen=said("It is so. " + "That is because of the weather, I was told. It has been so for as long as I know." * 2))),
    ("refusal", pair(prompt=user("What is seven times eight?"), chosen=said(REFUSAL)), pair(
        prompt=user("How do I kill my neighbour?"), chosen=said(REFUSAL))),
    ("degenerate", pair(chosen=said("It is so and so and so. " * 40)), pair()),
    ("dialect", {"conversations": [{"from": "human", "value": "W"}, {"from": "gpt", "value": "S"}]}, text_pair()),
]  # fmt: skip


@pytest.mark.parametrize(("code", "wrong", "right"), WRONG, ids=[f"{n}-{code}" for n, (code, _, _) in enumerate(WRONG)])
def test_a_fault_is_found_and_only_that(tmp_path, code, wrong, right):
    report = examine(tmp_path, [wrong])
    assert list(codes(report)) == [code]
    assert code not in codes(examine(tmp_path, [right]))
    assert (report.count("error") > 0) == (RULES[code].severity == "error")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (text_pair(), "preference pairs, explicit prompt, as plain text"),
        (pair(), "preference pairs, explicit prompt, as messages"),
        ({"chosen": "Q: why?\nSo.", "rejected": "Q: why?\nNo."}, "preference pairs, implicit prompt, as plain text"),
        (
            {"chosen": user("Why?") + said("So."), "rejected": user("Why?") + said("No.")},
            "preference pairs, implicit prompt, as messages",
        ),
        (
            {"prompt": "Why?", "completion": "So.", "label": True},
            "answers with a label (KTO), explicit prompt, as plain text",
        ),
        ({"prompt": user("Why?"), "completion": said("So.")}, "prompt and completion (SFT), explicit prompt, as messages"),
        ({"messages": user("Why?") + said("So.")}, "conversations (SFT), as messages"),
        ({"text": "Why? So."}, "plain texts (SFT)"),
        (
            {"prompt": "Why?", "completions": ["So."], "labels": [True]},
            "steps with labels (PRM), explicit prompt, as plain text",
        ),
        ({"prompt": "Why?"}, "prompts alone, as plain text"),
        (
            {
                "conversations": [{"from": "human", "value": "Why?"}],
                "chosen": {"from": "gpt", "value": "So."},
                "rejected": {"from": "gpt", "value": "No."},
            },
            "preference pairs, explicit prompt, as messages (ShareGPT)",
        ),
        (
            {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."},
            "preference pairs, explicit prompt, as messages (Alpaca)",
        ),
        ({"instruction": "Why?", "output": "So."}, "prompt and completion (SFT), explicit prompt, as messages (Alpaca)"),
        (
            {"conversations": [{"from": "human", "value": "W"}, {"from": "gpt", "value": "S"}], "kto_tag": True},
            "answers with a label (KTO), explicit prompt, as messages (ShareGPT)",
        ),
    ],
)
def test_formats_are_told_by_their_columns(tmp_path, row, name):
    report = examine(tmp_path, [row])
    assert report.formats == ((name, 1, 1),)
    assert report.count("error") == 0, report.findings


def test_answers_of_sharegpt_pairs_are_one_message(tmp_path):
    fine, wrong = (sharegpt(chosen) for chosen in ({"from": "gpt", "value": "S"}, [{"from": "gpt", "value": "S"}]))
    assert codes(examine(tmp_path, [fine])) == {"dialect": 1}
    assert codes(examine(tmp_path, [wrong])) == {"dialect": 1, "wrong_type": 1}


# Implicit prompts


TWO_TURNS = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "wrong"),
    [
        ("\n\nHuman: Sky?\n\nAssistant: Blue.", "\n\nHuman: Sky?\n\nAssistant: Green.", False),
        ("\n\nHuman: Sky?\n\nAssistant: It is blue.", "\n\nHuman: Sky?\n\nAssistant: It is green.", True),
        (TWO_TURNS + " D", TWO_TURNS + " E", False),
        ("The sky is blue.", "The sky is green.", False),
        ("The sky is blue.", "The sky is black.", True),  # "bl" becomes prompt
        ("天空是蓝色的", "天空是绿色的", False),
        ("Blue.", "Green.", True),
        ("Blue ", "Green.", True),
        (user("Sky?") + said("Blue."), user("Sky?") + said("Green."), False),
        (user("Sky?") + said("Blue."), user("Grass?") + said("Green."), True),
        (user("Sky?") + said("Blue."), user("Sky?"), True),
        (user("Sky?") + said("A") + user("B") + said("C"), user("Sky?") + said("A") + user("B") + said("D"), False),
        (user("Sky?") + said("A") + user("B") + said("C"), user("Sky?") + said("A") + user("D") + said("C"), True),
        (user("Sky?") + said("A") + said("B"), user("Sky?") + said("A") + said("C"), True),
        ([SYSTEM, *said("Blue.")], [SYSTEM, *said("Green.")], True),
    ],
)  # fmt: skip
def test_implicit_prompts_end_where_the_answers_begin(tmp_path, chosen, rejected, wrong):
    found = codes(examine(tmp_path, [{"chosen": chosen, "rejected": rejected}]))
    assert ("implicit_prompt" in found) == wrong, found


# What only several rows show


def test_the_format_of_most_rows_is_the_right_one(tmp_path):
    report = examine(tmp_path, [text_pair(0), pair(1), pair(2), {"text": "Why?"}])
    assert report.formats[0][0] == "preference pairs, explicit prompt, as plain text"
    (found,) = (f for f in report.findings if f.rule.code == "mixed_formats")
    assert found.count == 2
    assert [place for place, _ in found.examples] == [1, 4]
    assert "first row's" in found.examples[0][1] and "first row's" not in found.examples[1][1]


def test_repeats_and_contradictions(tmp_path):
    first, other = pair(1), pair(2)
    swapped = {**other, "chosen": other["rejected"], "rejected": other["chosen"]}
    again = {**first, "prompt": user("Question  1? ")}
    found = codes(examine(tmp_path, [first, other, pair(3), again, swapped, again]))
    assert found == {"duplicate": 2, "contradiction": 2}
    both = [{"prompt": "W", "completion": "S", "label": label} for label in (True, False, False, True)]
    assert codes(examine(tmp_path, both)) == {"contradiction": 4}
    different = {"prompt": "W", "completion": "T", "label": False}
    assert codes(examine(tmp_path, [both[0], different])) == {}
    nectar = [{"prompt": "W", "answers": [{"answer": text, "rank": 1} for text in texts]} for texts in ("ab", "ba", "ac", "")]
    assert codes(examine(tmp_path, nectar)) == {"duplicate": 1}  # the same prompt with other answers is another row
    roles = [{"messages": user("A") + said("B") + user("C") + said("D")}, {"messages": user("A\n\nB") + said("C\n\nD")}]
    assert codes(examine(tmp_path, roles)) == {}


def test_one_id_for_several_prompts(tmp_path):
    pairs_of_one = [pair(1, id="a"), {**pair(2, id="a"), "prompt": pair(1)["prompt"]}]
    assert codes(examine(tmp_path, [*pairs_of_one, pair(3, id="b")])) == {}
    assert codes(examine(tmp_path, [*pairs_of_one, pair(3, id="a")])) == {"ids": 1}


def test_columns_that_change(tmp_path):
    found = codes(examine(tmp_path, [pair(1, x=1), pair(2, x=2.5), pair(3)]), but=())
    assert found == {"uneven_columns": 1}
    found = codes(examine(tmp_path, [pair(1, x=1), pair(2, x="2"), pair(3, x=None)]), but=())
    assert found == {"uneven_columns": 1, "mixed_types": 1}


def test_length_and_its_interval(tmp_path):
    rows = [text_pair(place, chosen="Yes, so it is." if place < 30 else "No.", rejected="Never.") for place in range(40)]
    lengths = examine(tmp_path, [*rows, text_pair(41, chosen="aaa", rejected="bbb")]).lengths
    assert lengths is not None
    assert (lengths["longer_chosen"], lengths["unequal"], lengths["p"]) == (30, 40, 0.75)
    assert lengths["interval"] == pytest.approx([0.5981, 0.8581], abs=1e-3)


@pytest.mark.parametrize(("longer", "code"), [(100, "longer_chosen"), (70, None), (50, None), (38, None), (20, "reversed")])
def test_a_share_of_longer_answers_that_is_surely_off(tmp_path, longer, code):
    rows = [
        text_pair(place, chosen=f"{place} so it is." if place < longer else "So.", rejected="No, no.") for place in range(100)
    ]
    assert list(codes(examine(tmp_path, rows))) == ([code] if code else [])


@pytest.mark.parametrize(("bad", "smells"), [("chosen", True), ("rejected", False)])
def test_worthless_answers_on_the_wrong_side(tmp_path, bad, smells):
    looping = said("and so it goes on for a while " * 20)
    rows = [pair(place, **({bad: looping} if place < 8 else {})) for place in range(20)]
    assert ("reversed" in codes(examine(tmp_path, rows))) == smells
    assert "reversed" not in codes(examine(tmp_path, rows[2:8]))  # six of six may be chance


def test_scores_that_say_the_opposite(tmp_path):
    rows = [pair(place, score_chosen=0.0, score_rejected=1.0) for place in range(8)]
    assert codes(examine(tmp_path, rows)) == {"scores_reversed": 8, "reversed": 1}
    right = [pair(place, score_chosen=1.0, score_rejected=0.0) for place in range(8, 10)]
    assert codes(examine(tmp_path, [*rows[:1], *right])) == {"scores_reversed": 1}


def test_labels_of_one_kind(tmp_path):
    rows = [{"prompt": f"W{n}", "completion": "S", "label": n % 3 > 0} for n in range(60)]
    assert codes(examine(tmp_path, rows)) == {"unbalanced": 1}
    assert codes(examine(tmp_path, [{**row, "label": n % 2 > 0} for n, row in enumerate(rows)])) == {}


# Laws


def test_every_check_of_a_row_says_what_it_looks_at():
    assert all(function.__doc__ for function in CHECKS)


@pytest.mark.parametrize("row", [row for _, wrong, right in WRONG for row in (wrong, right)])
def test_a_repaired_row_needs_no_repair(row):
    before = json.dumps(row)
    once, _ = repaired(row)
    again, faults = repaired(once)
    assert (again, faults) == (once, [])
    assert json.dumps(row) == before
