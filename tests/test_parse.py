"""The verdict parser, on text that no author of a template thought of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import InputError
from rlaif.judges.parse import Grammar, Unreadable
from rlaif.templates import load_template

FIRST, SECOND, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
MEANS = {"A": "first", "B": "second", "C": "tie"}
TEXT = Grammar.of(load_template("pairwise-text", needs=()).front, "pairwise-text")
TOKEN = Grammar.of(load_template("pairwise-token", needs=()).front, "pairwise-token")
quiet = settings(database=None, deadline=None)

pieces = st.sampled_from(
    ["[[A]]", "[[B]]", "[[C]]", "[[D]]", "[[AB]]", "[[", "]]", "A", "B", " ", "\n", "[A]", "[[a]]", "Ａ", "\0"]
)
replies = st.one_of(st.text(), st.lists(st.one_of(pieces, st.text(max_size=3))).map("".join))


def grammar(occurrence: str = "all", verdict: str = r"\[\[([A-Z])\]\]", means: dict[str, str] | None = None) -> Grammar:
    return Grammar.of({"verdict": verdict, "occurrence": occurrence, "means": means or MEANS}, "test")


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("[[A]]", FIRST),
        ("I think [[B]]", SECOND),
        ("Both are fine.\n\n[[C]]\n", TIE),
        ("[[A]] ... so, as I said, [[A]].", FIRST),
        ("A is good, B is better: **[[B]]**", SECOND),
    ],
)
def test_a_verdict_is_read_wherever_it_stands(reply, scores):
    assert TEXT.read_text(reply) == scores


@pytest.mark.parametrize(
    "reply", ["", "A", "[A]", "[[a]]", "[[ A ]]", "[[AB]]", "Answer A is better", "[[A", "A]]", "I cannot say."]
)
def test_what_is_not_in_the_declared_form_is_no_verdict(reply):
    with pytest.raises(Unreadable, match="no verdict"):
        TEXT.read_text(reply)


@pytest.mark.parametrize(
    "reply", ["[[A]] or [[B]]", "[[A]] [[C]]", "[[A]] is one, [[D]] another", "[[B]] no wait [[A]] yes [[B]]"]
)
def test_a_reply_that_contradicts_itself_is_no_verdict(reply):
    with pytest.raises(Unreadable, match="contradictory"):
        TEXT.read_text(reply)


@pytest.mark.parametrize("letter", "DEZ")
def test_a_letter_that_was_not_offered_is_no_verdict(letter):
    with pytest.raises(Unreadable, match=f"'{letter}' was not offered"):
        TEXT.read_text(f"[[{letter}]]")


@pytest.mark.parametrize(("occurrence", "scores"), [("first", FIRST), ("last", SECOND)])
def test_the_declared_occurrence_decides(occurrence, scores):
    assert grammar(occurrence).read_text("[[A]], hm, [[C]], rather [[B]]") == scores


def test_an_unoffered_letter_counts_only_at_the_declared_occurrence():
    assert grammar("last").read_text("[[D]] then [[A]]") == FIRST
    with pytest.raises(Unreadable, match="not offered"):
        grammar("first").read_text("[[D]] then [[A]]")


def test_a_token_grammar_reads_the_bare_option_only():
    assert TOKEN.read_text(" B\n") == SECOND
    for reply in ("B.", "A or B", "AB", "", "C"):
        with pytest.raises(Unreadable):
            TOKEN.read_text(reply)


@quiet
@given(reply=replies, occurrence=st.sampled_from(["all", "first", "last"]))
def test_no_text_makes_the_parser_crash_or_invent_a_verdict(reply, occurrence):
    try:
        scores = grammar(occurrence).read_text(reply)
    except Unreadable:
        return
    said = {letter for letter in "ABC" if f"[[{letter}]]" in reply}
    assert scores in {{"A": FIRST, "B": SECOND, "C": TIE}[letter] for letter in said}
    assert occurrence != "all" or len(said) == 1


@quiet
@given(reply=st.lists(st.sampled_from(["verdict: A", "verdict: B", "verdict: ", "verdict: Z", "x"])).map("\n".join))
@pytest.mark.parametrize("occurrence", ["all", "first", "last"])
def test_a_pattern_whose_group_matched_nothing_says_nothing(occurrence, reply):
    try:
        scores = grammar(occurrence, verdict="verdict: ([A-Z])?").read_text(reply)
    except Unreadable:
        return
    assert {FIRST: "verdict: A", SECOND: "verdict: B"}[scores] in reply


@quiet
@given(before=st.text(), after=st.text(), letter=st.sampled_from("ABC"))
def test_text_around_a_verdict_does_not_change_it(before, after, letter):
    reply = f"{before}[[{letter}]]{after}"
    if reply.count("[[") == 1:
        assert TEXT.read_text(reply) == {"A": FIRST, "B": SECOND, "C": TIE}[letter]


def test_probabilities_are_summed_over_the_tokens_that_strip_to_an_option():
    (first, second), mass = TOKEN.read_token({"A": 0.3, " A": 0.2, "\nA": 0.1, "B": 0.1, " B ": 0.1, "The": 0.2})
    assert mass == pytest.approx(0.8)
    assert (first, second) == (pytest.approx(0.75), pytest.approx(0.25))


def test_tokens_spelled_as_in_the_vocabulary_are_options():
    (first, second), mass = TOKEN.read_token({"\u0120A": 0.5, "\u2581A": 0.1, "\u2581B": 0.1, "\u010aB": 0.1, "x": 0.2})
    assert (first, second, mass) == (pytest.approx(0.75), pytest.approx(0.25), pytest.approx(0.8))
    assert TOKEN.lists_all({"\u0120A": 0.5, "\u2581B": 0.1}) and not TOKEN.lists_all({"\u0120A": 0.5})


@pytest.mark.parametrize(
    ("tokens", "first"),
    [
        ({"A": 0.5, "x": 0.1}, 5 / 6),
        ({"A": 0.6, "The": 0.35, "x": 0.05}, 1.0),
        ({"A": 0.6, "The": 0.3, "x": 0.06}, 0.6 / 0.64),
        ({"B": 0.8, "x": 0.15}, 0.05 / 0.85),
        ({"A": 1.0}, 1.0),
    ],
)
def test_an_option_that_is_not_listed_gets_what_it_can_have_at_most(tokens, first):
    """No more than the least likely token listed, and than what is left."""
    scores, mass = TOKEN.read_token(tokens)
    assert scores == (pytest.approx(first), pytest.approx(1.0 - first))
    assert mass == tokens.get("A", tokens.get("B"))


def test_tokens_that_only_resemble_an_option_hold_no_mass():
    (first, _), mass = TOKEN.read_token({"A": 0.2, "AB": 0.3, "a": 0.2, "[[A]]": 0.1, "B": 0.2})
    assert (first, mass) == (pytest.approx(0.5), pytest.approx(0.4))


@pytest.mark.parametrize("tokens", [{}, {"The": 1.0}, {"A": 0.0, "B": 0.0}])
def test_no_likely_option_is_no_verdict(tokens):
    with pytest.raises(Unreadable):
        TOKEN.read_token(tokens)


def test_a_tie_token_counts_half_to_each_side():
    (first, second), mass = grammar(verdict="token").read_token({"A": 0.2, "B": 0.4, "C": 0.4})
    assert (first, second, mass) == (pytest.approx(0.4), pytest.approx(0.6), pytest.approx(1.0))


@quiet
@given(st.dictionaries(st.one_of(st.sampled_from(["A", " A", "B", "B\n", "C"]), st.text()), st.floats(0.0, 1.0)))
def test_token_scores_are_probabilities_and_swap_with_the_letters(tokens):
    swapped: dict[str, float] = {}
    for token, p in tokens.items():
        other = token.replace("A", "\0").replace("B", "A").replace("\0", "B") if token.strip() in ("A", "B") else token
        swapped[other] = swapped.get(other, 0.0) + p
    try:
        (first, second), mass = TOKEN.read_token(tokens)
    except Unreadable:
        with pytest.raises(Unreadable):
            TOKEN.read_token(swapped)
        return
    assert 0.0 <= first <= 1.0 and 0.0 <= second <= 1.0 and first + second == pytest.approx(1.0)
    assert mass <= sum(tokens.values()) + 1e-9
    assert TOKEN.read_token(swapped)[0][1] == pytest.approx(first)


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ({}, "needs `verdict` and `means`"),
        ({"verdict": "token", "means": {}}, "needs `verdict` and `means`"),
        ({"verdict": 3, "means": MEANS}, "needs `verdict` and `means`"),
        ({"verdict": "token", "means": {"A": "best"}}, "not 'best'"),
        ({"verdict": "token", "means": {"A": ["first"]}}, "not \\['first'\\]"),
        ({"verdict": "token", "means": MEANS, "occurrence": "some"}, "not 'some'"),
        ({"verdict": "([A-Z]", "means": MEANS}, "no regular expression"),
        ({"verdict": "[A-Z]", "means": MEANS}, "exactly one group"),
        ({"verdict": "([A-Z])([A-Z])", "means": MEANS}, "exactly one group"),
    ],
)
def test_a_wrong_front_matter_is_refused_with_the_template_s_name(front, said):
    with pytest.raises(InputError, match=said) as refused:
        Grammar.of(front, "mine")
    assert "'mine'" in str(refused.value)


def test_options_that_yaml_reads_as_no_text_are_options_all_the_same(tmp_path):
    """`yes` and `no` are booleans to YAML, digits are numbers."""
    for options in (("Yes", "No"), ("1", "2")):
        file = tmp_path / "mine.txt"
        file.write_text(f"---\nverdict: token\nmeans: {{{options[0]}: first, {options[1]}: second}}\n---\n{{a}} {{b}}\n")
        try:
            found = Grammar.of(load_template(str(file), needs=("a", "b")).front, "mine")
        except InputError:
            continue  # refusing is fine too; silently never matching is not
        assert (found.read_text(options[0]), found.read_text(options[1])) == (FIRST, SECOND)
