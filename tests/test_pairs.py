"""From a record to a pair or a reason. Every test of a defect says which silent label error it keeps out."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rlaif
from rlaif import pairs, selection
from rlaif.ranking.bradley_terry import rank
from rlaif.types import Candidate, PreferencePair, Prompt, Ranking, Record, Verdict

PROMPT = Prompt("p", ({"role": "user", "content": "q"},))


def record(candidates, verdicts=()) -> Record:
    return Record(PROMPT, tuple(candidates), tuple(verdicts))


def texts(*said: str) -> list[Candidate]:
    return [Candidate(f"p/{k}", text) for k, text in enumerate(said)]


def vote(first: int, second: int, winner: int | None, judge: str = "j") -> Verdict:
    scores = (0.5, 0.5) if winner is None else (float(winner == first), float(winner == second))
    return Verdict(judge, (f"p/{first}", f"p/{second}"), scores, "vote")


def failed(*shown: int, judge: str = "j") -> Verdict:
    return Verdict(judge, tuple(f"p/{k}" for k in shown), None, error="unreadable")


def rating(place: int, score: float, judge: str = "j") -> Verdict:
    return Verdict(judge, (f"p/{place}",), (score,))


def best_worst(record: Record, ranking: Ranking, **allowed: bool) -> PreferencePair | str:
    """The one pair, or the reason why there is none."""
    found = selection.select(selection.BEST_WORST, record, ranking, **allowed)
    if found.reason is not None:
        assert not found.pairs
        return found.reason
    (pair,) = found.pairs
    return pair


def select(found: Record, rule=best_worst, **allowed: bool):
    ids = [c.id for c in pairs.eligible(found.candidates, **allowed)]
    return rule(found, rank([found], [ids])[0], **allowed)


def judge(rows, function, tmp_path):
    """(pairs by prompt text, summary) of a whole run with a judge of one's own."""
    run = rlaif.judge(rows, judge=function, out=tmp_path / "run")
    summary = run.wait()
    rows = run.to_dataset().to_list()
    assert summary["prompts"] == summary["pairs"] + sum(summary["dropped"].values())
    return {row["prompt"][-1]["content"]: row for row in rows}, summary


# Selection


def test_the_strongest_stands_against_the_weakest():
    said = [vote(i, j, min(i, j, key=[2, 0, 1].index)) for i, j in permutations(range(3), 2)]
    pair = select(record(texts("x", "y", "z"), said))
    assert (pair.chosen.id, pair.rejected.id) == ("p/2", "p/1")
    assert pair.score_chosen > 0 > pair.score_rejected and 0.5 < pair.p_chosen < 1.0
    assert (pair.p_source, pair.judge, pair.flip) == ("judge", "j", False)


@pytest.mark.parametrize(
    ("candidates", "verdicts", "reason"),
    [
        ([], [], "ineligible"),
        ([Candidate("p/0", "", error="timeout"), Candidate("p/1", "", error="timeout")], [], "sampling_failed"),
        ([Candidate("p/0", "", error="timeout"), Candidate("p/1", "fine")], [], "ineligible"),
        (texts("fine", "  \n"), [], "ineligible"),
        ([Candidate("p/0", "cut", finish="length"), Candidate("p/1", "fine")], [], "ineligible"),
        (texts("same", "same", "same"), [], "identical"),
        (texts("the  same\n", " the same"), [], "identical"),
        (texts("caf\u00e9", "cafe\u0301"), [], "identical"),
        (texts("x", "y"), [], "no_verdict"),
        (texts("x", "y"), [failed(0, 1), failed(1, 0)], "no_verdict"),
        (texts("x", "y"), [vote(0, 1, None), vote(1, 0, None)], "tied"),
        (texts("x", "y"), [vote(0, 1, 0), vote(1, 0, 1)], "tied"),
    ],
)
def test_a_record_without_a_pair_has_a_reason(candidates, verdicts, reason):
    assert select(record(candidates, verdicts)) == reason


@pytest.mark.parametrize("said", [[rating(0, 7.0), failed(1)], [failed(0), rating(1, 7.0)]])
def test_one_rating_of_two_is_no_comparison_and_no_tie(said):
    """A judge that failed on one side has said nothing about the pair: it did not find the two equally good."""
    assert select(record(texts("x", "y"), said)) == "no_verdict"


def test_a_candidate_nobody_judged_is_on_neither_side():
    said = [rating(0, 7.0), rating(1, 3.0), failed(2)]
    pair = select(record(texts("x", "y", "z"), said))
    assert (pair.chosen.id, pair.rejected.id) == ("p/0", "p/1")


def test_candidates_that_nothing_links_are_not_set_against_each_other():
    """Strengths of two groups that were never compared say nothing about each other, however sure each group is."""
    said = [v for i, j in ((0, 1), (1, 2)) for v in (vote(i, j, i), vote(j, i, i))]
    said.append(Verdict("j", ("p/3", "p/4"), (1.0, 0.0), "probability", weight=50.0))
    found = record(texts("v", "w", "x", "y", "z"), said)
    strengths = rank([found], [[f"p/{k}" for k in range(5)]])[0].strengths
    assert max(strengths) == strengths[3] and min(strengths) == strengths[4]
    pair, best = select(found), select(found, pairs.best_of_n)
    assert (pair.chosen.id, pair.rejected.id, best.winner.id) == ("p/0", "p/2", "p/0")
    assert 0.5 < best.p_win < 1.0


@pytest.mark.parametrize(
    ("said", "linked"),
    [
        ([], ""),
        ([rating(0, 1.0)], ""),
        ([rating(0, 1.0), rating(1, 2.0, "k")], ""),
        ([rating(0, 1.0), rating(1, 2.0), failed(2)], "01"),
        ([vote(0, 1, 0), vote(3, 2, 3), rating(1, 1.0), rating(2, 1.0)], "0123"),
        ([vote(0, 1, 0), vote(2, 3, None), vote(3, 4, 4), failed(1, 2)], "234"),
        ([Verdict("j", ("p/4", "p/0", "p/2"), (1.0, 2.0, 3.0)), vote(1, 3, 1)], "024"),
    ],
)
def test_what_is_compared_is_the_largest_linked_group(said, linked):
    assert pairs.compared(said) == {f"p/{k}" for k in linked}


def test_truncated_answers_are_eligible_on_request_only():
    cut, whole = Candidate("p/0", "cut", finish="length"), Candidate("p/1", "whole", finish="stop")
    found = record([cut, whole], [vote(0, 1, 0), vote(1, 0, 0)])
    assert select(found) == "ineligible"
    assert select(found, allow_truncated=True).chosen == cut


@pytest.mark.parametrize("rule", [best_worst, pairs.best_of_n])
def test_degenerate_answers_are_eligible_on_request_only(rule):
    """A loop that won every comparison is neither chosen nor the best; one that lost them all is not rejected."""
    marked = [Candidate(f"p/{k}", t, degenerate="looping" if k in (0, 3) else None) for k, t in enumerate("wxyz")]
    said = [vote(i, j, min(i, j)) for i, j in permutations(range(4), 2)]
    without, with_them = (select(record(marked, said), rule, allow_degenerate=allowed) for allowed in (False, True))
    if rule is pairs.best_of_n:
        assert (without.winner.id, without.n, with_them.winner.id, with_them.n) == ("p/1", 2, "p/0", 4)
    else:
        assert (without.chosen.id, without.rejected.id) == ("p/1", "p/2")
        assert (with_them.chosen.id, with_them.rejected.id) == ("p/0", "p/3")


def test_a_prompt_with_too_few_sound_answers_is_ineligible():
    loop, sound = Candidate("p/0", "x", degenerate="tail"), Candidate("p/1", "y")
    cut = Candidate("p/2", "z", finish="length", degenerate="looping")
    assert select(record([loop, sound])) == "ineligible"
    assert select(record([loop, loop]), pairs.best_of_n) == "ineligible"
    assert select(record([loop, sound]), allow_degenerate=True) == "no_verdict"
    for allowed in ({"allow_truncated": True}, {"allow_degenerate": True}):  # it is both: one permission is not enough
        assert select(record([cut, sound]), **allowed) == "ineligible"


def test_the_first_of_equal_answers_stands_for_its_copies():
    candidates = texts("one", " one ", "two", "on\u0435")
    assert [c.id for c in pairs.eligible(candidates)] == ["p/0", "p/2", "p/3"]


@settings(database=None, deadline=None)
@given(st.lists(st.sampled_from(["a", "a ", " a", "b", "b\n\n", "", " ", "\u212b", "\u00c5", "A\u030a"]), max_size=6))
def test_eligible_answers_differ_after_normalisation_and_none_is_empty(said):
    found = [pairs.normalised(c.text) for c in pairs.eligible(texts(*said))]
    assert len(found) == len(set(found)) and "" not in found
    assert set(found) == {pairs.normalised(t) for t in said} - {""}


WORDS = st.sampled_from(["one", "two", "caf\u00e9", "cafe\u0301", "\u0301", "\u212b", "\u00c5"])
SPACES = st.sampled_from([" ", "\n\n", "\u2000", "\t "])


@settings(database=None, deadline=None)
@given(st.data())
def test_long_answers_are_told_apart_by_all_of_their_words(data):
    """Whatever is looked at first: answers may differ in any one word, or in nothing but their white space."""
    words = data.draw(st.lists(WORDS, min_size=10, max_size=14))
    said = []
    for _ in range(3):
        place, word = data.draw(st.integers(0, len(words) - 1)), data.draw(WORDS)
        changed = [*words[:place], word, *words[place + 1 :]]
        said.append("".join(part for w in changed for part in (w, data.draw(SPACES))))
    forms = [pairs.normalised(text) for text in said]
    assert [c.id for c in pairs.eligible(texts(*said))] == [f"p/{k}" for k in range(3) if forms[k] not in forms[:k]]


# Best of n


def test_the_best_of_n_wins_against_each_and_half_against_its_copies():
    candidates = texts("good", "bad", "good ", "bad")
    found = record(candidates, [vote(0, 1, 0), vote(1, 0, 0)])
    best = select(found, pairs.best_of_n)
    p = select(found).p_chosen
    assert (best.winner.id, best.n) == ("p/0", 4)
    assert best.p_win == pytest.approx((2 * p + 0.5) / 3)


def test_the_best_of_equal_texts_is_any_of_them_at_one_half():
    best = select(record(texts("same", "same")), pairs.best_of_n)
    assert (best.winner.text, best.p_win, best.n) == ("same", 0.5, 2)


def test_the_best_of_tied_answers_is_the_first_at_one_half():
    said = [vote(i, j, None) for i, j in permutations(range(3), 2)]
    best = select(record(texts("x", "y", "z"), said), pairs.best_of_n)
    assert (best.winner.id, best.p_win) == ("p/0", pytest.approx(0.5))


@pytest.mark.parametrize(
    ("candidates", "verdicts", "reason"),
    [
        ([Candidate("p/0", "", error="timeout")], [], "sampling_failed"),
        ([Candidate("p/0", "cut", finish="length"), Candidate("p/1", "cut 2", finish="length")], [], "ineligible"),
        (texts("x", "y"), [failed(0, 1), failed(1, 0)], "no_verdict"),
    ],
)
def test_best_of_n_gives_the_reason_where_there_is_none(candidates, verdicts, reason):
    assert select(record(candidates, verdicts), pairs.best_of_n) == reason


# Flips


@pytest.mark.parametrize(
    ("said", "flip"),
    [
        ([vote(0, 1, 0), vote(1, 0, 0)], False),
        ([vote(0, 1, 0), vote(1, 0, 1)], True),
        ([vote(0, 1, 1), vote(1, 0, 0)], True),
        ([vote(0, 1, None), vote(1, 0, 0)], False),
        ([vote(0, 1, None), vote(1, 0, None)], False),
        ([vote(0, 1, 0)], None),
        ([vote(0, 1, 0), failed(1, 0)], None),
        ([failed(0, 1), failed(1, 0)], None),
        ([], None),
        ([rating(0, 1.0), rating(1, 2.0)], None),
        ([vote(0, 1, 0, "j"), vote(1, 0, 1, "k")], None),
        ([vote(0, 1, 0, "j"), vote(1, 0, 0, "j"), vote(0, 1, 0, "k"), vote(1, 0, 1, "k")], True),
        ([vote(0, 1, 0, "j"), vote(1, 0, 0, "j"), failed(0, 1, judge="k"), vote(1, 0, 1, "k")], False),
        ([vote(0, 2, 0), vote(2, 0, 2), vote(0, 1, 0), vote(1, 0, 0)], False),
    ],
)
def test_a_flip_is_when_the_two_orders_of_one_judge_name_different_winners(said, flip):
    assert pairs.flip(said, "p/0", "p/1") is flip
    assert pairs.flip(said[::-1], "p/1", "p/0") is flip


# Label defects


@pytest.mark.parametrize("best", range(3))
@pytest.mark.parametrize("name", ["fake/oracle", "fake/oracle-text"])
def test_the_verdict_decides_and_not_the_place(tmp_path, best, name):
    """B1: a swap condition that can never hold let the judge's verdict be ignored: the lower index was always chosen and
    the reference, appended last, always rejected."""
    said = [f"quality 0.{9 if k == best else k + 1}" for k in range(3)]
    run = rlaif.judge([{"prompt": "q", "candidates": said}], judge="pairwise", judge_model=name, out=tmp_path)
    run.wait()
    (row,) = run.to_dataset()
    assert row["chosen"][0]["content"] == said[best]
    assert row["rejected"][0]["content"] == min(said)


@pytest.mark.parametrize("n", [3, 4])
def test_scores_are_not_read_as_an_order(n):
    """B2, B3: ranks were taken for an order (chosen = the candidate at the place that candidate 0 has in the ranking):
    top or bottom wrong for a third to a half of all permutations."""
    for scores in permutations([float(k) for k in range(n)]):
        for shown in (tuple(range(n)), tuple(range(n))[::-1]):
            said = Verdict("j", tuple(f"p/{k}" for k in shown), tuple(scores[k] for k in shown))
            pair = select(record(texts(*"wxyz"[:n]), [said]))
            assert pair.chosen.id == f"p/{scores.index(n - 1.0)}" and pair.rejected.id == f"p/{scores.index(0.0)}"
            assert (pair.score_chosen, pair.score_rejected) == (n - 1.0, 0.0)


def test_ratings_that_are_all_equal_make_no_pair_and_a_missing_one_spoils_its_prompt_only(tmp_path):
    """B4: all-tied ratings became chosen == rejected and were kept; a missing rating raised and blanked the whole batch."""

    def rate(prompt, candidates):
        if prompt.text == "tied":
            return [3.0 for _ in candidates]
        return [None if c.text == "x" and prompt.text == "missing" else float(len(c.text)) for c in candidates]

    rows = [{"prompt": p, "candidates": ["x", "yy", "zzz"]} for p in ("fine", "tied", "missing", "fine too")]
    found, summary = judge(rows, rate, tmp_path)
    assert set(found) == {"fine", "fine too"}
    assert summary["dropped"] == {"no_verdict": 1, "tied": 1}


@pytest.mark.parametrize("n", range(2, 6))
@pytest.mark.parametrize("nested", [False, True])
def test_scores_mean_the_same_for_every_number_of_candidates(tmp_path, n, nested):
    """B7: a squeeze for batches of exactly two left every other score a list of one. Here a list where a number should be
    is no score, for every n."""

    def rate(prompt, candidates):
        return [[float(len(c.text))] if nested else float(len(c.text)) for c in candidates]

    found, summary = judge([{"prompt": "q", "candidates": ["a" * (k + 1) for k in range(n)]}], rate, tmp_path)
    if nested:
        assert summary["dropped"] == {"no_verdict": 1}
    else:
        assert (found["q"]["score_chosen"], found["q"]["score_rejected"]) == (n, 1.0)


@pytest.mark.parametrize("readable", [(0, 1), (1, 0)])
def test_an_invalid_verdict_on_the_swapped_pair_stays_invalid(readable):
    """B8: an invalid verdict (-1) on a swapped pair was mapped back to 1 - (-1) = 2."""
    found = record(texts("x", "y"), [vote(*readable, 1), failed(*readable[::-1])])
    pair = select(found)
    assert (pair.chosen.id, pair.flip) == ("p/1", None)
    assert pair.p_chosen < select(record(texts("x", "y"), [vote(0, 1, 1), vote(1, 0, 1)])).p_chosen


def test_equal_rewards_make_no_pair_and_equal_prompts_stay_apart(tmp_path):
    """B9: all-equal rewards gave chosen == rejected, and prompts with equal text were grouped into one."""
    rows = [
        {"id": "one", "prompt": "q", "candidates": ["short", "a longer one"]},
        {"id": "two", "prompt": "q", "candidates": ["tiny", "same"]},
        {"id": "three", "prompt": "q", "candidates": ["the longest of all", "brief"]},
    ]
    run = rlaif.judge(rows, judge=lambda p, cs: [float(len(c.text)) for c in cs], out=tmp_path)
    assert run.wait()["dropped"] == {"tied": 1}
    found = {row["id"]: (row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in run.to_dataset()}
    assert found == {"one": ("a longer one", "short"), "three": ("the longest of all", "brief")}


@pytest.mark.parametrize("unread", range(3))
def test_an_answer_whose_rating_failed_is_not_the_worst(unread):
    """B10: a parse failure counted as the score -1.0 and was selected as rejected."""
    said = [failed(k) if k == unread else rating(k, 5.0 + k) for k in range(3)]
    pair = select(record(texts("x", "y", "z"), said))
    low, high = [k for k in range(3) if k != unread]
    assert (pair.chosen.id, pair.rejected.id) == (f"p/{high}", f"p/{low}")


def test_a_failed_rating_is_not_averaged_and_nan_does_not_win(tmp_path):
    """B11: a parse failure was averaged as the rating -1, and NaN from padding won the argmax."""
    found = record(texts("x", "y"), [rating(0, 8.0), failed(0), rating(1, 6.0)])
    pair = select(found)
    assert (pair.chosen.id, pair.score_chosen, pair.score_rejected) == ("p/0", 8.0, 6.0)

    def padded(prompt, candidates):
        return [float("nan") if c.text == "x" and prompt.text == "bad" else float(len(c.text)) for c in candidates]

    rows = [{"prompt": p, "candidates": ["x", "yy"]} for p in ("bad", "good")]
    kept, summary = judge(rows, padded, tmp_path)
    assert set(kept) == {"good"} and summary["dropped"] == {"no_verdict": 1}


@pytest.mark.parametrize("score", [1.0, 10.0, 0.1, -1.0])
def test_a_score_is_stored_as_it_was_said(tmp_path, score):
    """B16: an overall score of 1 was stored as 10."""
    found, _ = judge([{"prompt": "q", "candidates": ["x", "y"]}], lambda p, cs: [score, score - 0.25], tmp_path)
    assert (found["q"]["score_chosen"], found["q"]["score_rejected"]) == (score, score - 0.25)


def test_a_tie_does_not_end_the_batch(tmp_path):
    """B17: a tie broke out of the loop and dropped the rest of the prompts."""
    rows = [{"prompt": f"q{k}", "candidates": ["a", "b" if k in (0, 3) else "bb"]} for k in range(6)]
    found, summary = judge(rows, lambda p, cs: [float(len(c.text)) for c in cs], tmp_path)
    assert set(found) == {"q1", "q2", "q4", "q5"} and summary["dropped"] == {"tied": 2}


@settings(database=None, deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_was_said_a_record_ends_in_a_pair_or_a_reason(data):
    said = data.draw(st.lists(st.sampled_from(["x", "x ", "y", "z", ""]), max_size=4))
    candidates = [Candidate(f"p/{k}", t, finish=data.draw(st.sampled_from(["stop", "length"]))) for k, t in enumerate(said)]
    shown = [c.id for c in pairs.eligible(candidates)]
    verdicts = []
    for i, j in permutations(shown, 2):
        scores = data.draw(st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), None]))
        verdicts.append(Verdict("j", (i, j), scores, "vote", None if scores else "unreadable"))
    found = select(record(candidates, verdicts))
    if isinstance(found, PreferencePair):
        assert 0.5 < found.p_chosen < 1.0 and found.score_chosen >= found.score_rejected
        assert pairs.normalised(found.chosen.text) != pairs.normalised(found.rejected.text)
        assert {found.chosen.id, found.rejected.id} <= set(shown)
    else:
        assert found in ("sampling_failed", "ineligible", "identical", "no_verdict", "tied")
