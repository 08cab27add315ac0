"""The formats' pure functions: what goes in comes out, ranks are no positions, and what a format cannot hold it refuses."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import InputError
from rlaif.export import dpo, kto, listwise, raw, reward, sft
from rlaif.export.formats import FORMATS
from rlaif.export.parts import tools_of
from rlaif.pairs import Best
from rlaif.types import Candidate, PreferencePair, Prompt, Ranking, Record, Verdict

ASKED = ({"role": "user", "content": "q"},)
TALK = ({"role": "system", "content": "s"}, *ASKED, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"})
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
PAIR = PreferencePair(
    Prompt("p", ASKED), Candidate("p/0", "good", "m"), Candidate("p/1", "bad", "m"), 1.0, -1.0, 0.88, "j", None
)
PAIRWISE = [name for name, form in FORMATS.items() if form.takes == "pairs"]

TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}, optional={"name": TEXT}), max_size=2)
PROMPTS = st.builds(
    lambda id, before, last, tools: Prompt(id, (*before, {"role": "user", "content": last}), None, tools),
    TEXT,
    MESSAGES,
    TEXT,
    st.sampled_from([{}, {"tools": TOOLS}, {"tools": None}]),
)
PAIRS = st.builds(
    lambda prompt, texts, scores, p, flip: PreferencePair(
        prompt, Candidate("a", texts[0], "m"), Candidate("b", texts[1], "m"), *scores, p, "j", flip
    ),
    PROMPTS,
    st.tuples(TEXT, TEXT).filter(lambda texts: texts[0] != texts[1]),
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    st.floats(0.5, 1.0),
    st.sampled_from([True, False, None]),
)


def turns(row: dict[str, Any], side: str) -> list[dict[str, Any]]:
    return [*row.get("prompt", []), *row[side]]


@settings(database=None, deadline=None)
@given(PAIRS)
def test_whatever_is_asked_and_answered_is_in_the_row_as_it_was(pair):
    whole = {side: [*pair.prompt.messages, {"role": "assistant", "content": c.text}] for side, c in sides(pair)}
    for form in ("dpo", "reward", "reward-implicit"):
        (row,) = FORMATS[form].rows([pair])
        assert all(turns(row, side) == messages for side, messages in whole.items())
        assert row["chosen"] != row["rejected"] and row.keys() <= FORMATS[form].columns.keys()
        assert ("tools" in row) == bool(pair.prompt.fields.get("tools"))
        assert row["p_chosen"] == pytest.approx(pair.p_chosen, abs=1e-6)
        assert form == "dpo" or (row["margin"] >= 0 and math.isfinite(row["margin"]))
    found = list(FORMATS["kto"].rows([pair]))
    assert [(turns(row, "completion"), row["label"]) for row in found] == [(whole["chosen"], True), (whole["rejected"], False)]


def sides(pair: PreferencePair) -> list[tuple[str, Candidate]]:
    return [("chosen", pair.chosen), ("rejected", pair.rejected)]


@settings(database=None, deadline=None)
@given(PAIRS)
def test_texts_are_as_they_were_or_the_prompt_is_refused_by_name(pair):
    plain = pair.prompt.messages[0].keys() == {"role", "content"} and len(pair.prompt.messages) == 1
    if not plain or pair.prompt.fields.get("tools"):
        with pytest.raises(InputError, match="dpo-text") as refused:
            dpo.text_row(pair)
        assert repr(pair.prompt.id) in str(refused.value)
        return
    row = dpo.text_row(pair)
    assert (row["chosen"], row["rejected"]) == (pair.chosen.text, pair.rejected.text)
    assert row["prompt"].removesuffix("\n") == pair.prompt.messages[0]["content"].removesuffix("\n")
    assert row["prompt"][-1].isspace() or all(row[side][0].isspace() for side in ("chosen", "rejected"))


@pytest.mark.parametrize(
    ("asked", "chosen", "rejected", "prompt"),
    [
        ("What is it?", "Blue.", "Green.", "What is it?\n"),
        ("The sky is", " blue.", " green.", "The sky is"),
        ("The sky is", " blue.", "green.", "The sky is\n"),
        ("Answer: ", "blue", "green", "Answer: "),
        ("Answer:\n", "blue", "green", "Answer:\n"),
    ],
)
def test_question_and_answer_do_not_run_into_each_other(asked, chosen, rejected, prompt):
    pair = replace(PAIR, prompt=Prompt("p", ({"role": "user", "content": asked},)))
    row = dpo.text_row(replace(pair, chosen=Candidate("a", chosen), rejected=Candidate("b", rejected)))
    assert (row["prompt"], row["chosen"], row["rejected"]) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (Prompt("p", TALK), r"system, user, assistant, user"),
        (Prompt("p", ({"role": "system", "content": "s"},)), "system"),
        (Prompt("p", (*ASKED, {"role": "tool", "content": "x"})), "user, tool"),
        (Prompt("p", ({"role": "user", "content": "q", "name": "ann"},)), "user with content, name, role"),
        (Prompt("p", ASKED, None, {"tools": TOOLS}), "it has tools"),
        (Prompt("p", ASKED, None, {"tools": json.dumps(TOOLS)}), "it has tools"),
    ],
)
def test_a_prompt_that_texts_cannot_hold_is_refused_with_the_reason(prompt, why):
    with pytest.raises(InputError, match=f"'p' .*{why}"):
        dpo.text_row(replace(PAIR, prompt=prompt))


@pytest.mark.parametrize("form", PAIRWISE)
@pytest.mark.parametrize(("chosen", "rejected"), [("same", "same"), ("", "bad"), ("good", " \n")])
def test_no_format_takes_a_pair_that_is_none(form, chosen, rejected):
    with pytest.raises(ValueError, match="'p'"):
        list(FORMATS[form].rows([replace(PAIR, chosen=Candidate("p/0", chosen), rejected=Candidate("p/1", rejected))]))


@pytest.mark.parametrize("form", PAIRWISE)
@pytest.mark.parametrize("name", ["p_chosen", "score_chosen", "score_rejected"])
def test_no_format_takes_a_number_that_is_none(form, name):
    with pytest.raises(ValueError, match="nan"):
        list(FORMATS[form].rows([replace(PAIR, **{name: math.nan})]))


@pytest.mark.parametrize(
    ("p", "margin"), [(0.5, 0.0), (0.75, 1.098612), (0.95, 2.944439), (0.999, 6.906755), (0.9999, 6.906755), (1.0, 6.906755)]
)
def test_a_margin_is_the_log_odds_of_the_label_and_finite(p, margin):
    row = reward.row(replace(PAIR, p_chosen=p, score_chosen=9.0, score_rejected=2.0))
    assert row["margin"] == reward.implicit_row(replace(PAIR, p_chosen=p))["margin"] == pytest.approx(margin, abs=1e-6)


# KTO


def pair(chosen: int, rejected: int, p: float) -> PreferencePair:
    side = [Candidate(f"p/{k}", f"text {k}", f"m{k}") for k in range(4)]
    return replace(PAIR, chosen=side[chosen], rejected=side[rejected], p_chosen=p, score_chosen=chosen, score_rejected=rejected)


def test_a_candidate_is_desirable_or_not_once_or_left_out():
    found = list(kto.rows([pair(0, 3, 0.9), pair(1, 2, 0.7), pair(0, 1, 0.6), pair(2, 3, 0.95)]))
    assert [(r["completion"][0]["content"], r["label"]) for r in found] == [("text 0", True), ("text 3", False)]
    assert [(r["p_chosen"], r["score"], r["model"]) for r in found] == [(0.9, 0.0, "m0"), (0.95, 3.0, "m3")]


def test_where_every_candidate_is_both_there_is_no_row():
    assert list(kto.rows([pair(0, 1, 0.6), pair(1, 0, 0.6)])) == []


# Lists


def listed(strengths: list[float], *, ids: list[int] | None = None, shown: list[int] | None = None) -> dict[str, Any]:
    """The row of four candidates of which `ids` are eligible with these strengths, and `shown` were compared."""
    candidates = tuple(Candidate(f"p/{k}", f"text {k}", finish="length" if k == 3 else None) for k in range(4))
    names = tuple(f"p/{k}" for k in (range(4) if ids is None else ids))
    seen = names if shown is None else tuple(f"p/{k}" for k in shown)
    record = Record(Prompt("p", TALK), candidates, (Verdict("j", seen, tuple(map(float, range(len(seen))))),))
    return listwise.row(record, Ranking(names, tuple(strengths), tuple(10 * s for s in strengths)))


@pytest.mark.parametrize("strengths", list(itertools.permutations([2.0, 0.5, -1.0, -1.5])))
def test_a_rank_belongs_to_its_answer_and_is_no_position(strengths):
    answers = listed(list(strengths))["answers"]
    assert [a["answer"] for a in answers] == [f"text {k}" for k in range(4)]
    assert [a["strength"] for a in answers] == list(strengths)
    assert [a["answer"] for a in sorted(answers, key=lambda a: a["rank"])] == [
        f"text {k}" for k in sorted(range(4), key=lambda k: -strengths[k])
    ]


def test_equal_answers_share_a_rank():
    assert [a["rank"] for a in listed([0.0, 1.0, 1.0, -2.0])["answers"]] == [3, 1, 1, 4]
    assert [a["rank"] for a in listed([0.0, 0.0, 1e-9, 0.0])["answers"]] == [1, 1, 1, 1]


def test_what_was_not_compared_has_no_rank():
    answers = listed([1.0, 0.0, -1.0], ids=[0, 1, 2], shown=[0, 2])["answers"]
    assert [a["rank"] for a in answers] == [1, None, 2, None]
    assert [a["score"] for a in answers] == [10.0, None, -10.0, None]
    assert [a["eligible"] for a in answers] == [True, True, True, False] and answers[3]["truncated"]
    assert all(a["rank"] is None for a in listed([0.0] * 4, shown=[])["answers"])


# Records and best answers


def test_a_record_is_all_there_is():
    prompt = Prompt("p", TALK, "ref", {"source": "x", "tools": TOOLS})
    candidates = (Candidate("p/0", "a", "m", "stop", "hm", None, 0.5, "echo"), Candidate("p/1", "", error="timeout"))
    verdicts = (
        Verdict("j", ("p/1", "p/0"), (0.25, 0.75), "probability", None, "why", "brief", 2.0),
        Verdict("j", ("p/0", "p/1"), None, "vote", "no_verdict"),
    )
    row = raw.row(Record(prompt, candidates, verdicts))
    made = Record(
        Prompt(row["id"], tuple(row["messages"]), row["reference"], row["fields"]),
        tuple(Candidate(**c) for c in row["candidates"]),
        tuple(
            Verdict(**{**v, "shown": tuple(v["shown"]), "scores": v["scores"] and tuple(v["scores"])}) for v in row["verdicts"]
        ),
    )
    assert made == Record(prompt, candidates, verdicts) and row.keys() == FORMATS["records"].columns.keys()


def test_a_conversation_ends_with_the_best_answer():
    best = Best(Record(Prompt("p", TALK), ()), Candidate("p/0", "good", "m"), 2.5, None, 4, "j")
    row = sft.messages_row(best)
    assert row["messages"] == [*TALK, {"role": "assistant", "content": "good"}]
    assert {k: v for k, v in row.items() if k != "messages"} == {
        k: v for k, v in sft.row(best).items() if k not in ("prompt", "completion")
    }


# Tools


@pytest.mark.parametrize("given", [None, [], "", "[]", "null"])
def test_no_tools_are_no_column(given):
    assert tools_of(Prompt("p", ASKED, None, {"tools": given})) == {}


def test_tools_are_the_text_of_a_list():
    text = json.dumps(TOOLS, indent=1)
    assert tools_of(Prompt("p", ASKED, None, {"tools": text})) == {"tools": text}
    made = tools_of(Prompt("p", ASKED, None, {"tools": [*TOOLS, {"名": 10**40}]}))
    assert json.loads(made["tools"]) == [*TOOLS, {"名": 10**40}] and "名" in made["tools"]


@pytest.mark.parametrize("given", ["hammer", {"name": "f"}, ["f"], "[1]", 3])
def test_tools_that_are_no_schemas_are_refused_by_name(given):
    with pytest.raises(InputError, match="'p': `tools` must be a list of schemas"):
        tools_of(Prompt("p", ASKED, None, {"tools": given}))
