"""The verdict parser, on text that no author of a template thought of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import InputError
from rlaif.judges.parse import Grammar, Unreadable, load_grammar
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
    assert TEXT.read(reply) == scores


@pytest.mark.parametrize(
    "reply", ["", "A", "[A]", "[[a]]", "[[ A ]]", "[[AB]]", "Answer A is better", "[[A", "A]]", "I cannot say."]
)
def test_what_is_not_in_the_declared_form_is_no_verdict(reply):
    with pytest.raises(Unreadable, match="no verdict"):
        TEXT.read(reply)


@pytest.mark.parametrize(
    "reply", ["[[A]] or [[B]]", "[[A]] [[C]]", "[[A]] is one, [[D]] another", "[[B]] no wait [[A]] yes [[B]]"]
)
def test_a_reply_that_contradicts_itself_is_no_verdict(reply):
    with pytest.raises(Unreadable, match="contradictory"):
        TEXT.read(reply)


@pytest.mark.parametrize("letter", "DEZ")
def test_a_letter_that_was_not_offered_is_no_verdict(letter):
    with pytest.raises(Unreadable, match=f"'{letter}' was not offered"):
        TEXT.read(f"[[{letter}]]")


@pytest.mark.parametrize(("occurrence", "scores"), [("first", FIRST), ("last", SECOND)])
def test_the_declared_occurrence_decides(occurrence, scores):
    assert grammar(occurrence).read("[[A]], hm, [[C]], rather [[B]]") == scores


def test_an_unoffered_letter_counts_only_at_the_declared_occurrence():
    assert grammar("last").read("[[D]] then [[A]]") == FIRST
    with pytest.raises(Unreadable, match="not offered"):
        grammar("first").read("[[D]] then [[A]]")


def test_a_token_grammar_reads_the_bare_option_only():
    assert TOKEN.read(" B\n") == SECOND
    for reply in ("B.", "A or B", "AB", "", "C"):
        with pytest.raises(Unreadable):
            TOKEN.read(reply)


@quiet
@given(reply=replies, occurrence=st.sampled_from(["all", "first", "last"]))
def test_no_text_makes_the_parser_crash_or_invent_a_verdict(reply, occurrence):
    try:
        scores = grammar(occurrence).read(reply)
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
        scores = grammar(occurrence, verdict="verdict: ([A-Z])?").read(reply)
    except Unreadable:
        return
    assert {FIRST: "verdict: A", SECOND: "verdict: B"}[scores] in reply


@quiet
@given(before=st.text(), after=st.text(), letter=st.sampled_from("ABC"))
def test_text_around_a_verdict_does_not_change_it(before, after, letter):
    reply = f"{before}[[{letter}]]{after}"
    if reply.count("[[") == 1:
        assert TEXT.read(reply) == {"A": FIRST, "B": SECOND, "C": TIE}[letter]


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
        assert (found.read(options[0]), found.read(options[1])) == (FIRST, SECOND)


def unreadable(found: Grammar, reply: str, shown: int = 2, finish: str | None = None) -> str:
    """The kind of the failure."""
    with pytest.raises(Unreadable) as refused:
        found.read(reply, shown, finish)
    return refused.value.kind


RATING = Grammar.of({"verdict": r"\[\[([0-9.]+)\]\]", "rating": [1, 9]}, "rating")
RANKING = Grammar.of({"verdict": r"\[\[([^\[\]]*)\]\]", "ranking": ">", "ties": "="}, "ranking")
PLACES = Grammar.of({"verdict": "(?P<name>[A-Z]) is (?P<place>[0-9]+)", "ranking": "places"}, "places")
GRADES = grammar(
    verdict=r"\[\[([AB>=]+)\]\]",
    means={"A>>B": "first", "A>B": "first", "A=B": "tie", "B>A": "second", "B>>A": "second"},
)


# Why there is no verdict


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("Both have merits.", "no_verdict"),
        ("", "no_verdict"),
        ("[[A]] or rather [[B]]", "contradiction"),
        ("[[D]]", "not_offered"),
        ("I'm sorry, but I can't compare these.", "refusal"),
        ("I cannot choose between harmful answers.", "refusal"),
        ("I won’t judge this.", "refusal"),
        ("抱歉，我无法判断。", "refusal"),
        ("I cannot fault answer A. [[A]] [[B]]", "contradiction"),
        ("Say [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if they are equally good.", "echo"),
    ],
)
@pytest.mark.parametrize("finish", [None, "stop"])
def test_a_failure_has_a_kind(reply, kind, finish):
    assert unreadable(TEXT, reply, finish=finish) == kind


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, I cannot judge. [[C]]",
        "I'm sorry, but I can't help with that.\n\n[[A]]",
        "As an AI language model, I am unable to compare them. [[C]]",
        "I must decline to evaluate these answers. [[B]]",
        "抱歉，我无法判断。[[C]]",
    ],
)
def test_a_reply_that_declines_and_gives_a_verdict_contradicts_itself(reply):
    """A tie is an opinion on two answers; this is the form filled in by one who has none."""
    assert unreadable(TEXT, reply) == "contradiction"
    assert grammar("last").read(reply) in (FIRST, SECOND, TIE), "only where everything in a reply must agree"


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("I'm sorry, but I cannot agree with answer A. [[B]]", SECOND),
        ("I cannot decide between the two: [[C]]", TIE),
        ("Answer A says: I'm sorry, I cannot help with that. [[B]]", SECOND),
        ("\"I'm sorry, I can't help\" is all that answer A says. [[B]]", SECOND),
        (
            "I'm sorry, but I can't help with that. " + "Answer A has the sign wrong, as its second line shows. " * 9 + "[[B]]",
            SECOND,
        ),
    ],
)
def test_words_of_refusal_are_none_where_the_reply_goes_on_to_judge(reply, scores):
    assert TEXT.read(reply) == scores


def test_a_reply_ended_by_a_filter_is_a_refusal():
    assert unreadable(TEXT, "", finish="content_filter") == "refusal"
    assert TEXT.read("[[A]]", finish="content_filter") == FIRST


def test_a_grammar_may_state_its_own_refusals():
    front = {"verdict": r"\[\[([A-Z])\]\]", "means": MEANS, "refusal": ["^pass$"]}
    assert unreadable(Grammar.of(front, "mine"), "pass") == "refusal"
    assert unreadable(Grammar.of(front, "mine"), "I cannot say.") == "no_verdict"


# Where a verdict stands, and replies that were cut


@pytest.mark.parametrize("reply", ["", "Answer A is", "[[A]] is what a hasty reader would say, but"])
def test_a_reply_that_was_cut_is_no_verdict(reply):
    assert unreadable(TEXT, reply, finish="length") == "truncated"


def test_a_verdict_that_stands_first_is_there_however_the_reply_ends():
    found = Grammar.of({"verdict": "Answer ([A-C])", "stands": "first", "means": MEANS}, "first")
    assert found.read("**Answer B**, because it", finish="length") == SECOND
    assert unreadable(found, "I think that Answer B", finish="length") == "truncated"
    assert unreadable(found, "I think that Answer B is it. Answer B") == "no_verdict"


def test_a_verdict_that_stands_last_ends_the_reply():
    found = Grammar.of({"verdict": "Answer ([A-C])", "stands": "last", "means": MEANS}, "last")
    assert found.read("Answer A is long. So: **Answer B**.\n") == SECOND
    assert unreadable(found, "Answer B is better than the other.") == "no_verdict"


def test_a_bare_token_is_whole_though_its_reply_is_cut_behind_it():
    assert TOKEN.read("A", finish="length") == FIRST


def test_of_several_patterns_the_first_that_occurs_is_used():
    found = grammar(verdict=[r"\[\[([A-C])\]\]", r"\[([A-C])\]"])
    assert found.read("[A] or so, in short [[B]]") == SECOND
    assert found.read("[A]") == FIRST


def test_listed_takes_what_the_declaration_lists_first():
    found = grammar("listed")
    assert found.read("[[B]] no, [[A]]") == FIRST
    assert found.read("[[B]] no, [[C]]") == SECOND
    assert unreadable(found, "[[D]]") == "not_offered"


def test_an_option_is_taken_in_either_case_only_where_the_pattern_says_so():
    either = grammar(verdict="(?i)answer (a|b|tie)", means={"A": "first", "B": "second", "Tie": "tie"})
    assert (either.read("ANSWER b"), either.read("answer TIE")) == (SECOND, TIE)
    exact = grammar(verdict="answer ([mM])", means={"m": "first", "M": "second"})
    assert (exact.read("answer m"), exact.read("answer M")) == (FIRST, SECOND)
    assert unreadable(grammar(verdict="answer ([a-zA-Z])"), "answer a") == "not_offered"


def test_two_grades_of_the_same_winner_contradict_each_other():
    assert GRADES.read("[[A>>B]] so [[A>>B]]") == FIRST
    assert unreadable(GRADES, "[[A>>B]] rather [[A>B]]") == "contradiction"


# The instruction repeated


@pytest.mark.parametrize("occurrence", ["first", "last"])
def test_a_repeated_instruction_does_not_hide_the_decision_behind_it(occurrence):
    listed = "[[A]] if answer A is better, [[B]] if answer B is better, [[C]] for a tie."
    assert unreadable(grammar(occurrence), listed) == "echo"
    assert grammar(occurrence).read(f"{listed} My verdict: [[B]]") == SECOND
    assert unreadable(grammar("all"), f"{listed} My verdict: [[B]]") == "contradiction"


def test_two_options_make_a_list_only_with_hardly_a_word_between_them():
    two = grammar("last", means={"A": "first", "B": "second"})
    assert unreadable(two, 'Answer "[[A]]" or "[[B]]".') == "echo"
    assert two.read("[[A]] at first, but then [[B]]") == SECOND


def test_the_ends_of_a_scale_are_no_rating():
    last = Grammar.of({"verdict": r"\[\[([0-9]+)\]\]", "rating": [1, 9], "occurrence": "last"}, "last")
    assert unreadable(last, "A number from [[1]] to [[9]].") == "echo"
    assert last.read("From [[1]] to [[9]]: [[7]]") == (7.0,)
    assert unreadable(last, "[[1]] [[2]] [[3]] [[4]] [[5]] [[6]] [[7]] [[8]] [[9]]") == "echo"


def test_what_may_be_said():
    assert (TEXT.kind, TEXT.options) == ("pairwise", ("A", "B", "C"))
    assert (RATING.kind, RATING.options) == ("rating", tuple("123456789"))
    assert (RANKING.kind, RANKING.options[:3]) == ("ranking", ("A", "B", "C"))
    assert GRADES.options == ("A>>B", "A>B", "A=B", "B>A", "B>>A")


# Disarming


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("Say [[A]].", "Say [ [A]]."),
        ("[[A]][[B]]", "[ [A]][ [B]]"),
        ("[[[A]]]", "[[ [A]]]"),
        ("nothing [here] [[to]] do", "nothing [here] [[to]] do"),
    ],
)
def test_disarming_puts_a_space_into_each_match_and_leaves_the_rest(text, harmless):
    assert TEXT.disarm(text) == harmless
    assert TOKEN.disarm(text) == text


def test_a_match_that_another_one_gives_way_to_is_disarmed_too():
    found = grammar(verdict="(AB|BA)", means={"AB": "first", "BA": "second"})
    assert (found.disarm("ABA"), found.disarm("xABABx")) == ("A B A", "xA B A Bx")


@pytest.mark.parametrize(
    "verdict", ["([A-Z])", r"\b([A-Z])\b", r"\s*([A-Z])\s*", "(.)", "(.*)", "x*([A-Z]?)", r"(?s).*([A-C])"]
)
def test_patterns_that_a_space_does_not_break_are_disarmed_all_the_same(verdict):
    found = grammar(verdict=verdict)
    harmless = found.disarm("A is better than B, C")
    assert found.disarm(harmless) == harmless
    assert unreadable(found, harmless) in ("no_verdict", "not_offered", "contradiction")


@quiet
@given(reply=replies)
@pytest.mark.parametrize("found", [TEXT, RATING, RANKING, PLACES, GRADES, load_grammar("llmbar-line")])
def test_what_was_disarmed_says_nothing_and_stays_as_it_is(found, reply):
    harmless = found.disarm(reply)
    assert found.disarm(harmless) == harmless
    assert "".join(harmless.split()) == "".join(reply.split())
    with pytest.raises(Unreadable):
        found.read(harmless)


# Declarations


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ({"verdict": "(x)", "rating": [1, 9], "means": MEANS}, "one of .* is enough"),
        ({"verdict": "(x)", "rating": [9, 1]}, "from a lower to a higher"),
        ({"verdict": "(x)", "rating": [1.5, 9]}, "whole number"),
        ({"verdict": "(x)", "rating": [True, 9]}, r"not \[True, 9\]"),
        ({"verdict": "(x)", "rating": "1-9"}, "not '1-9'"),
        ({"verdict": "(x)", "rating": [1, 1000]}, "wider than 100"),
        ({"verdict": "(x)", "rating": [1, 9], "decimals": "yes"}, "not 'yes'"),
        ({"verdict": "(x)", "rating": [1, 9], "occurrence": "listed"}, "a rating has none"),
        ({"verdict": "token", "ranking": ">"}, "no single token"),
        ({"verdict": "(x)", "ranking": " "}, "`ranking` must be the text between two names"),
        ({"verdict": "(x)", "ranking": ">", "ties": ">"}, "two different texts"),
        ({"verdict": "(x)", "ranking": ">", "names": "AB"}, "got 'AB'"),
        ({"verdict": "(x)", "ranking": ">", "names": ["A", "A"]}, "are the same"),
        ({"verdict": "(x)", "ranking": "places"}, "needs the groups"),
        ({"verdict": "(x)", "means": MEANS, "stands": "middle"}, "not 'middle'"),
        ({"verdict": ["(x)", 3], "means": MEANS}, "regular expression or a list"),
        ({"verdict": "(x)", "means": MEANS, "refusal": "("}, "`refusal` is no regular expression"),
        ({"verdict": "(?u)(x)", "means": MEANS}, "no regular expression"),
    ],
)
def test_a_wrong_declaration_is_refused(front, said):
    with pytest.raises(InputError, match=said):
        Grammar.of(front, "mine")


def test_a_grammar_s_file_is_refused_by_name(tmp_path):
    file = tmp_path / "mine.yaml"
    for text, said in (("- a", "one `name: value` a line"), ("verdikt: x", "'verdikt' is no setting"), ("verdict: x", "needs")):
        file.write_text(text)
        with pytest.raises(InputError, match=said) as refused:
            load_grammar(str(file))
        assert str(file) in str(refused.value)
    with pytest.raises(InputError, match="arena-hard"):
        load_grammar("no-such-grammar")


def test_a_digest_changes_with_what_is_declared():
    fronts = [
        {"verdict": "([AB])", "means": {"A": "first", "B": "second"}},
        {"verdict": "([AB])", "means": {"B": "second", "A": "first"}},
        {"verdict": "(?i)([AB])", "means": {"A": "first", "B": "second"}},
        {"verdict": "([AB])", "means": {"A": "first", "B": "second"}, "occurrence": "last"},
        {"verdict": "([AB])", "means": {"A": "first", "B": "second"}, "refusal": []},
        {"verdict": "([0-9])", "rating": [1, 9]},
        {"verdict": "([0-9])", "rating": [1, 9], "decimals": True},
    ]
    digests = [Grammar.of(front, "mine").digest for front in fronts]
    assert len(set(digests)) == len(fronts)
    assert digests == [Grammar.of(front, "mine").digest for front in fronts]
