"""`judge_pair` and `rank`: one prompt's answers, judged as a run judges them."""

from __future__ import annotations

import asyncio

import pytest

import rlaif
from rlaif.errors import InputError

GOOD, BAD, MIDDLE = "quality 0.9", "quality 0.2, at length", "quality 0.5"


def test_two_answers_are_compared_in_both_orders():
    found = rlaif.judge_pair("Why?", GOOD, BAD, judge_model="fake/oracle")
    assert found.winner == "a" and 0.9 < found.p_a < 0.985 and found.flip is False
    assert len(found.verdicts) == 2 and {v.shown[0][-1] for v in found.verdicts} == {"0", "1"}
    swapped = rlaif.judge_pair("Why?", BAD, GOOD, judge_model="fake/oracle")
    assert swapped.winner == "b" and swapped.p_a == pytest.approx(1 - found.p_a)


@pytest.mark.parametrize(
    ("a", "b", "model", "p", "why"),
    [
        ("same", " same ", "fake/oracle", 0.5, "identical"),
        ("", GOOD, "fake/oracle", None, "ineligible"),
        (GOOD, BAD, "fake/unreadable", None, "refusal: "),
        (GOOD, BAD, "fake/tie", 0.5, None),
        (GOOD, BAD, "fake/first", 0.5, None),
    ],
)
def test_what_is_no_win_is_none(a, b, model, p, why):
    found = rlaif.judge_pair("Why?", a, b, judge_model=model)
    assert found.winner is None and (found.p_a is None) == (p is None) and (p is None or found.p_a == pytest.approx(p))
    assert (found.why or "").startswith(why or "") and (why is None) == (found.why is None)
    assert found.flip is (True if model == "fake/first" else False if p == 0.5 and model == "fake/tie" else None)


def test_answers_are_ranked_with_copies_and_what_cannot_be_compared():
    answers = [BAD, GOOD, "", f" {GOOD}", MIDDLE]
    found = rlaif.rank("Why?", answers, judge_model="fake/oracle")
    assert [r.index for r in found] == [1, 3, 4, 0, 2] and [r.text for r in found] == [answers[r.index] for r in found]
    assert found[0].score == found[1].score > found[2].score > found[3].score and found[4].score is None
    rated = rlaif.rank("Why?", [BAD, GOOD], judge=lambda prompt, candidates: [float(len(c.text)) for c in candidates])
    assert [(r.index, r.score) for r in rated] == [(0, float(len(BAD))), (1, float(len(GOOD)))]


def exact_or_not(prompt, candidates):
    return [float(c.text == "4") for c in candidates]


def test_messages_references_juries_and_a_directory(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]

    async def exact(prompt, candidates):
        assert prompt.messages[0]["role"] == "system"
        return [float(c.text == prompt.reference) for c in candidates]

    for _ in range(2):
        found = rlaif.judge_pair(messages, "4", "5", judge=[exact, "judges/shortest.py:shortest"], reference="4", out=tmp_path)
        assert found.winner == "a"
    assert len(list(tmp_path.glob("*/run.sqlite"))) == 1
    rlaif.judge_pair("Another?", "4", "5", judge=exact_or_not, out=tmp_path)
    rlaif.judge_pair("Another?", "5", "4", judge=exact_or_not, out=tmp_path)
    assert len(list(tmp_path.glob("*/run.sqlite"))) == 3


def test_it_works_inside_a_running_loop():
    async def main() -> str | None:
        return rlaif.judge_pair("Why?", GOOD, BAD, judge_model="fake/oracle").winner

    assert asyncio.run(main()) == "a"


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="needs two"):
        rlaif.rank("Why?", ["one"], judge_model="fake/oracle")
    with pytest.raises(InputError, match="--judge-model"):
        rlaif.judge_pair("Why?", "a", "b")
    with pytest.raises(InputError, match="there is no setting `colour`"):
        rlaif.judge_pair("Why?", "a", "b", judge_model="fake/oracle", colour="red")
    with pytest.raises(InputError, match="prompt is empty"):
        rlaif.judge_pair(" ", "a", "b", judge_model="fake/oracle")
