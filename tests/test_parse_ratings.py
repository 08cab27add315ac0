"""Verdicts that are numbers or orders: on the scale or none, everything shown once or none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import InputError
from rlaif.judges.parse import Grammar, Unreadable

RATING = Grammar.of({"verdict": r"\[\[([0-9.]+)\]\]", "rating": [1, 9]}, "rating")
RANKING = Grammar.of({"verdict": r"\[\[([^\[\]]*)\]\]", "ranking": ">", "ties": "="}, "ranking")
PLACES = Grammar.of({"verdict": "(?P<name>[A-Z]) is (?P<place>[0-9]+)", "ranking": "places"}, "places")
quiet = settings(database=None, deadline=None)


def unreadable(found: Grammar, reply: str, shown: int = 2) -> str:
    """The kind of the failure."""
    with pytest.raises(Unreadable) as refused:
        found.read(reply, shown)
    return refused.value.kind


# Ratings


@pytest.mark.parametrize(
    ("reply", "score"), [("[[7]]", 7.0), ("so [[1]]. [[1]]", 1.0), ("[[9]]", 9.0), ("[[07]] [[7.0]]", 7.0)]
)
def test_a_rating_is_its_number(reply, score):
    assert RATING.read(reply, shown=1) == (score,)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("[[0]]", "out_of_range"),
        ("[[10]]", "out_of_range"),
        ("[[7.5]]", "out_of_range"),
        ("[[" + "9" * 5000 + "]]", "out_of_range"),
        ("[[7]] [[8]]", "contradiction"),
        ("[[...]]", "not_offered"),
        ("[[７]]", "no_verdict"),
        ("7", "no_verdict"),
    ],
)
def test_a_rating_off_the_scale_is_none_and_is_not_clipped(reply, kind):
    assert unreadable(RATING, reply, shown=1) == kind


def test_decimals_are_read_where_they_are_declared():
    found = Grammar.of({"verdict": r"\[\[([0-9.]+)\]\]", "rating": [0, 10], "decimals": True}, "decimals")
    assert found.read("[[7.5]]") == (7.5,)
    assert unreadable(found, "[[10.1]]") == "out_of_range"
    assert unreadable(found, "[[1.2.3]]") == "not_offered"


def test_the_expected_rating_is_over_the_probabilities_of_the_digits():
    token = Grammar.of({"verdict": "token", "rating": [1, 9]}, "rating token")
    assert token.read_token({"7": 0.4, " 8": 0.3, "9": 0.1, "The": 0.2}) == (
        (pytest.approx((7 * 0.4 + 8 * 0.3 + 9 * 0.1) / 0.8),),
        pytest.approx(0.8),
    )
    assert token.read_token({"10": 0.5, "0": 0.3, "2": 0.1}) == ((pytest.approx(2.0),), pytest.approx(0.1))
    assert token.lists_all(dict.fromkeys("123456789", 0.1)) and not token.lists_all({"7": 1.0})
    assert token.read("8") == (8.0,)
    with pytest.raises(Unreadable):
        token.read_token({"The": 1.0})


@quiet
@given(st.dictionaries(st.sampled_from([*"0123456789", " 7", "x", "10"]), st.floats(0.0, 1.0)))
def test_an_expected_rating_is_on_the_scale(tokens):
    token = Grammar.of({"verdict": "token", "rating": [1, 9]}, "rating token")
    try:
        (score,), _ = token.read_token(tokens)
    except Unreadable:
        return
    assert 1.0 <= score <= 9.0


# Rankings


@pytest.mark.parametrize(
    ("reply", "shown", "scores"),
    [
        ("[[B > A]]", 2, (0.0, 1.0)),
        ("[[A=B]]", 2, (0.5, 0.5)),
        ("[[B > A > C]]", 3, (1.0, 2.0, 0.0)),
        ("[[C>A=B]]", 3, (0.5, 0.5, 2.0)),
        ("[[A = B = C = D]]", 4, (1.5, 1.5, 1.5, 1.5)),
        ("[[B > A > C]] or in short [[B>A>C]]", 3, (1.0, 2.0, 0.0)),
    ],
)
def test_a_ranking_gives_each_as_many_points_as_it_has_others_below_it(reply, shown, scores):
    assert RANKING.read(reply, shown) == scores


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("[[A > B]]", "no_verdict"),
        ("[[A > B > B]]", "contradiction"),
        ("[[A > B > C > A]]", "contradiction"),
        ("[[A > B > C > D]]", "not_offered"),
        ("[[A > B > ]]", "not_offered"),
        ("[[]]", "not_offered"),
        ("[[a > b > c]]", "not_offered"),
        ("[[A > B > C]] [[A > C > B]]", "contradiction"),
        ("A > B > C", "no_verdict"),
    ],
)
def test_a_ranking_names_everything_shown_once(reply, kind):
    assert unreadable(RANKING, reply, shown=3) == kind


@quiet
@given(st.permutations("ABCDE"), st.lists(st.sampled_from([" > ", " = "]), min_size=4, max_size=4))
def test_a_ranking_says_of_each_two_who_is_better(order, marks):
    """Ranks are not an order: the score belongs to the letter, wherever it stands in the list."""
    reply = order[0] + "".join(mark + letter for mark, letter in zip(marks, order[1:], strict=True))
    scores = dict(zip("ABCDE", RANKING.read(f"[[{reply}]]", 5), strict=True))
    for k, mark in enumerate(marks):
        above, below = scores[order[k]], scores[order[k + 1]]
        assert above > below if mark == " > " else above == below
    assert sum(scores.values()) == 10.0


@pytest.mark.parametrize(
    ("reply", "scores"),
    [("A is 2, B is 1, C is 3", (1.0, 2.0, 0.0)), ("B is 1 and A is 1 and C is 9", (1.5, 1.5, 0.0))],
)
def test_places_say_who_is_better(reply, scores):
    assert PLACES.read(reply, 3) == scores


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("A is 1, B is 2", "no_verdict"), ("A is 1, B is 2, C is 3, A is 2", "contradiction"), ("A is 1, D is 2", "not_offered")],
)
def test_places_are_one_for_each(reply, kind):
    assert unreadable(PLACES, reply, shown=3) == kind


def test_more_shown_than_there_are_names_is_refused():
    with pytest.raises(InputError, match="27"):
        RANKING.read("[[A > B]]", shown=27)
