"""The numbers about a run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rlaif.audit import Audit, Choices, kl_bound
from rlaif.selection import Selection, parse
from rlaif.types import Candidate, PreferencePair, Prompt, Record, Verdict

PROMPT = Prompt("p", ({"role": "user", "content": "q"},))
NOTHING = {"flip_rate": None, "no_verdict_rate": None, "first_shown_rate": None}


def said(shown: str, winner: str | None, judge: str = "j") -> Verdict:
    """`winner` "?" is an unreadable verdict, None a tie."""
    if winner == "?":
        return Verdict(judge, tuple(shown), None, error="unreadable")
    scores = (0.5, 0.5) if winner is None else tuple(float(c == winner) for c in shown)
    return Verdict(judge, tuple(shown), scores, "vote")


def numbers(*verdicts: Verdict) -> dict:
    audit = Audit()
    audit.add(Record(PROMPT, (), verdicts))
    return audit.numbers()


def pair(chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(PROMPT, Candidate("a", chosen), Candidate("b", rejected), 1.0, 0.0, 0.9, "j")


def test_nothing_counted_is_null_and_not_zero():
    assert Audit().numbers() == NOTHING
    assert numbers() == NOTHING


@pytest.mark.parametrize(
    ("verdicts", "flip", "first", "unread"),
    [
        ([said("ab", "a"), said("ba", "a")], 0.0, 0.5, 0.0),
        ([said("ab", "a"), said("ba", "b")], 1.0, 1.0, 0.0),
        ([said("ab", "b"), said("ba", "a")], 1.0, 0.0, 0.0),
        ([said("ab", "a"), said("ba", None)], 0.0, 1.0, 0.0),
        ([said("ab", None), said("ba", None)], 0.0, None, 0.0),
        ([said("ab", "a"), said("ba", "?")], None, 1.0, 0.5),
        ([said("ab", "?"), said("ba", "?")], None, None, 1.0),
        ([said("ab", "a")], None, None, 0.0),
        ([said("a", "a"), said("b", "b")], None, None, 0.0),
        ([said("ab", "a", "j"), said("ba", "b", "k")], None, None, 0.0),
        ([said("ab", "a"), said("ba", "b"), said("ac", "a"), said("ca", "a")], 0.5, 0.75, 0.0),
        ([*(said(s, "a", "j") for s in ("ab", "ba")), said("ab", "a", "k"), said("ba", "b", "k")], 0.5, 0.75, 0.0),
    ],
)
def test_rates_of_verdicts(verdicts, flip, first, unread):
    found = numbers(*verdicts)
    assert (found["flip_rate"], found["first_shown_rate"], found["no_verdict_rate"]) == (flip, first, unread)


def test_a_judge_without_position_bias_names_the_first_half_of_the_time_whatever_it_prefers():
    """Over pairs shown in both orders only: over single ones the rate would measure the candidates' order."""
    balanced = [said("ab", "a"), said("ba", "a"), said("ac", "c"), said("ca", "c")]
    assert numbers(*balanced, said("bc", "b"), said("ad", "a"))["first_shown_rate"] == 0.5


def test_counts_add_up_over_records():
    audit = Audit()
    audit.add(Record(PROMPT, (), (said("ab", "a"), said("ba", "b"))))
    audit.add(Record(PROMPT, (), (said("ab", "a"), said("ba", "a"), said("ac", "?"))))
    audit.add(Record(PROMPT, ()))
    found = audit.numbers()
    assert (found["flip_rate"], found["no_verdict_rate"], found["first_shown_rate"]) == (0.5, 0.2, 0.75)


def test_pairs_of_equal_length_say_nothing_of_length():
    choices = Choices()
    for chosen, rejected in (("long", "s"), ("s", "long"), ("longer", "s"), ("same", "size")):
        choices.add(Selection([pair(chosen, rejected)]))
    assert choices.longer_chosen() == pytest.approx(2 / 3, abs=1e-6)


def test_choices_add_up_over_records():
    choices, rule = Choices(), parse("all-pairs:0.6")
    assert choices.numbers(rule) == {
        "rule": "all-pairs:0.6",
        "pairs": 0,
        "limited": {},
        **dict.fromkeys(("mean_margin", "mean_p_chosen", "longer_chosen_before", "longer_chosen")),
    }
    choices.add(Selection([pair("long", "s"), replace(pair("s", "long"), p_chosen=0.6, score_chosen=4.0)], lengths=(4, 3)))
    choices.add(Selection(reason="tied", lengths=(1, 0)))
    choices.add(Selection(reason="over_cap", limited=["over_cap", "p_too_low"]))
    assert (choices.records, choices.made, choices.dropped) == (3, 2, {"tied": 1, "over_cap": 1})
    found = choices.numbers(rule)
    assert found["limited"] == {"over_cap": 1, "p_too_low": 1}
    assert (found["mean_margin"], found["mean_p_chosen"]) == (2.5, 0.75)
    assert (found["longer_chosen_before"], found["longer_chosen"]) == (0.6, 0.5)


def test_what_went_wrong_is_counted_by_kind_with_the_first_message_most_frequent_first():
    audit = Audit()
    lost = Candidate("a", "", error="timeout: 600 s")
    audit.add(Record(PROMPT, (lost, Candidate("b", "fine")), (said("ab", "?"), said("ba", "?"))))
    audit.add(Record(PROMPT, (Candidate("a", "", error="timeout: 60 s"), lost), ()))
    assert audit.failures() == [
        {"of": "policy", "count": 3, "error": "timeout: 600 s"},
        {"of": "judge", "count": 2, "error": "unreadable"},
    ]


def test_degenerate_answers_are_counted_by_the_first_kind_and_failed_ones_are_none():
    audit = Audit()
    audit.add(
        Record(
            PROMPT,
            (
                Candidate("a", "the the the", degenerate="tail"),
                Candidate("b", "loop", finish="length", degenerate="looping"),
                Candidate("c", " "),
                Candidate("d", "", error="timeout"),
                Candidate("e", "fine"),
            ),
        )
    )
    audit.add(Record(PROMPT, (Candidate("a", ""), Candidate("b", "q", degenerate="echo"))))
    assert audit.degenerate() == {"empty": 2, "truncated": 1, "tail": 1, "echo": 1}
    assert list(audit.degenerate()) == ["empty", "truncated", "tail", "echo"] and Audit().degenerate() == {}


def test_a_million_different_messages_are_not_a_million_kinds():
    audit = Audit()
    for k in range(3000):
        audit.add(Record(PROMPT, (), (Verdict("j", ("a",), None, error=f"{k} " * 1000),)))
    assert audit.failures()[0] == {"of": "judge", "count": 2000, "error": "other errors"}
    assert len(audit.failures()) == 10 and all(len(f["error"]) <= 500 for f in audit.failures())


def test_the_divergence_bound():
    assert kl_bound(1) == 0.0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    assert all(kl_bound(n) < kl_bound(n + 1) for n in range(1, 20))
