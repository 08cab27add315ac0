"""The audit of a run: what verdicts say of their judge, the sentences about it, and the page."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from html.parser import HTMLParser
from itertools import combinations, permutations

import pytest
from helpers import Room, read_rows, rlaif, start, summary, write_prompts
from hypothesis import given, settings
from hypothesis import strategies as st

import rlaif as package
from rlaif import trust
from rlaif.audit import Audit, Choices
from rlaif.bias import GAPS, OTHERS, Bias, cycles, gap_of, kappa, winners
from rlaif.errors import InputError
from rlaif.report import page, report
from rlaif.selection import Selection, parse
from rlaif.types import Candidate, PreferencePair, Prompt, Record, Verdict

pytestmark = pytest.mark.slow

PROMPT = Prompt("p", ({"role": "user", "content": "q"},))
TEXTS = {"a": "x" * 10, "b": "x" * 10, "c": "x" * 14, "d": "x" * 100}
CANDIDATES = tuple(Candidate(name, text) for name, text in TEXTS.items())


def vote(shown: str, winner: str | None, judge: str = "j", **more) -> Verdict:
    """`winner` "?" is an unreadable verdict, None a tie."""
    if winner == "?":
        return Verdict(judge, tuple(shown), None, error="unreadable: it says nothing", **more)
    scores = (0.5, 0.5) if winner is None else tuple(float(c == winner) for c in shown)
    return Verdict(judge, tuple(shown), scores, "vote", **more)


def rating(one: str, score: float, judge: str = "j", **more) -> Verdict:
    return Verdict(judge, (one,), (score,), "rating", **more)


def ranking(shown: str, best_first: str, judge: str = "j") -> Verdict:
    return Verdict(judge, tuple(shown), tuple(float(-best_first.index(c)) for c in shown), "vote")


def numbers(*records: list[Verdict]) -> dict:
    bias = Bias()
    for verdicts in records:
        bias.add(Record(PROMPT, CANDIDATES, tuple(verdicts)))
    return bias.numbers()


def counted(rate: dict) -> tuple[int, int]:
    """(successes, trials)"""
    return rate["count"], rate["of"]


def test_nothing_counted_is_null_and_not_zero():
    found = numbers()
    nothing = {"value": None, "count": 0, "of": 0, "prompts": 0, "interval": None}
    assert found["by_judge"] == {} and found["agreement"] == [] and found["no_verdict"] == {}
    assert found["intransitive"] == nothing
    assert all(gap[kind] == nothing for gap in found["by_length_gap"] for kind in ("first_shown", "flip", "longer"))
    assert list(trust.lines(found)) == []


def test_ratings_rankings_and_comparisons_under_one_name_are_each_counted_for_what_they_are():
    """As a judge does that rates all, ranks them and then compares two: a rating has no place, a ranking no flip."""
    rated = [rating(c, score) for c, score in zip("abcd", (3.0, 2.0, 9.0, 1.0), strict=True)]
    ranked = [ranking("abc", "acb"), ranking("cba", "cab")]
    duels = [vote("ab", "a"), vote("ba", "b")]
    found = numbers([*rated, *ranked, *duels])
    judge = found["by_judge"]["j"]
    assert counted(judge["first_shown"]) == (2, 2) and counted(judge["flip"]) == (1, 1)
    assert counted(judge["first_ranked"]) == (2, 2) and judge["first_ranked"]["expected"] == pytest.approx(1 / 3, abs=1e-6)
    assert counted(judge["no_verdict"]) == (0, 8)
    # a-b: the duels contradict each other, whatever was ranked; a-c, c-b: as ranked; the others as rated
    named, compared = winners([*rated, *ranked, *duels])
    assert named == {("a", "b"): 0, ("a", "c"): 0, ("b", "c"): -1, ("a", "d"): 1, ("b", "d"): 1, ("c", "d"): 1}
    assert compared == {("a", "b"): 0}
    assert counted(judge["longer"]) == (1, 4)  # c beats the shorter b; d, the longest, loses thrice


@pytest.mark.parametrize(
    ("verdicts", "named", "compared"),
    [
        ([vote("ab", "a"), vote("ba", "a")], 1, 1),
        ([vote("ba", "a")], 1, None),  # in one order: heard, but no direct comparison
        ([vote("ba", None), vote("ab", "b")], -1, -1),
        ([vote("ab", "a"), vote("ba", "?")], 1, None),
        ([Verdict("j", ("a", "b"), (0.9, 0.1), "probability"), Verdict("j", ("b", "a"), (0.6, 0.4), "probability")], 1, 1),
        ([vote("ab", "a"), rating("a", 1.0), rating("b", 5.0)], 1, None),
        ([rating("a", 1.0, "j#x", principle="x", weight=0.2), rating("b", 5.0, "j#x", principle="x", weight=0.2)], -1, None),
        (
            [
                *(rating(c, s, "j#x", principle="x", weight=0.2) for c, s in (("a", 1.0), ("b", 5.0))),
                *(rating(c, s, "j#y", principle="y", weight=0.8) for c, s in (("a", 5.0), ("b", 1.0))),
            ],
            1,
            None,
        ),
    ],
)
def test_whom_a_judge_names(verdicts, named, compared):
    pair = ("a", "b")
    assert winners(verdicts) == ({pair: named}, {} if compared is None else {pair: compared})


def test_principles_are_one_judge_and_judges_are_told_apart():
    by_principle = [vote(s, "a", f"j#{p}", principle=p) for s in ("ab", "ba") for p in ("x", "y")]
    found = numbers([*by_principle, vote("ab", "a", "k#1"), vote("ba", "b", "k#1")])
    assert list(found["by_judge"]) == ["j", "k#1"]
    assert counted(found["by_judge"]["j"]["first_shown"]) == (2, 4)
    assert counted(found["by_judge"]["k#1"]["flip"]) == (1, 1)


def test_a_single_order_says_nothing_of_place():
    """A function that is shown all at once, in the order of the file, is not asked where it looks."""
    found = numbers([vote("ab", "a"), ranking("abc", "abc"), ranking("abcd", "abcd")])["by_judge"]["j"]
    assert found["first_shown"]["of"] == found["flip"]["of"] == 0 and "first_ranked" not in found


def test_by_length_gap():
    assert [gap_of(*two) for two in ((10, 10), (10, 11), (15, 10), (20, 10), (400, 100), (0, 5), (0, 0))] == [
        0,
        1,
        2,
        3,
        4,
        4,
        0,
    ]
    both = lambda pair, winner: [vote(pair, winner), vote(pair[::-1], winner)]  # noqa: E731
    found = numbers([*both("ab", "a"), *both("ac", "c"), *both("ad", "d"), vote("bd", "b"), vote("db", "d")])["by_length_gap"]
    assert [gap["from"] for gap in found] == list(GAPS) and found[-1]["to"] is None
    assert [counted(gap["longer"]) for gap in found] == [(0, 0), (1, 1), (0, 0), (0, 0), (1, 1)]
    assert [counted(gap["flip"]) for gap in found] == [(0, 1), (0, 1), (0, 0), (0, 0), (1, 2)]
    assert [counted(gap["first_shown"]) for gap in found] == [(1, 2), (1, 2), (0, 0), (0, 0), (3, 4)]


def test_agreement_is_over_pairs_that_both_decide():
    rated = [rating(c, s, "k") for c, s in zip("abc", (3.0, 2.0, 2.0), strict=True)]
    found = numbers([*rated, *(vote(s, w) for s, w in (("ab", "a"), ("ba", "a"), ("bc", "b"), ("cb", "b"), ("ac", "c")))])
    (one,) = found["agreement"]
    assert one["judges"] == ["k", "j"] and counted(one) == (1, 2)  # b-c is a tie to k


def test_kappa_is_that_of_the_pairs_seen_from_both_sides():
    assert kappa({(1, 1): 30, (-1, -1): 30, (1, -1): 20, (-1, 1): 20}) == pytest.approx(0.2)
    assert kappa({(1, 1): 60, (1, -1): 40}) == pytest.approx(0.2)  # the same, every pair turned so that the first judge says 1
    assert kappa({(0, 0): 9}) is None and kappa({}) is None
    assert kappa({(1, -1): 5}) == -1.0


@settings(database=None, deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(list(combinations("abcdef", 2))), st.sampled_from([1, 0, -1])))
def test_cycles_against_looking_at_every_triple(named):
    beats = {(a, b) if sign > 0 else (b, a) for (a, b), sign in named.items() if sign}
    met = [t for t in combinations("abcdef", 3) if all((x, y) in beats or (y, x) in beats for x, y in combinations(t, 2))]
    cyclic = [t for t in met if any({(x, y), (y, z), (z, x)} <= beats for x, y, z in permutations(t))]
    assert cycles(named) == (len(met), len(cyclic))


def test_coins_go_round_in_a_quarter_of_the_triples():
    toss = random.Random(3)
    found = numbers(
        *(
            [vote(s + t, w) for a, b in combinations("abcd", 2) for w in [toss.choice(a + b)] for s, t in (a + b, b + a)]
            for _ in range(400)
        )
    )
    cyclic = found["intransitive"]
    assert cyclic["of"] == 1600 and cyclic["interval"][0] < 0.25 < cyclic["interval"][1]
    assert any("coins would" in line for line in trust.warnings(found))


def test_memory_does_not_grow_with_judges_and_causes():
    found = numbers(*([Verdict(f"j{k}", ("a",), None, error=f"e{k}: x")] for k in range(300)))
    assert len(found["by_judge"]) == 17 and found["by_judge"][OTHERS]["no_verdict"]["of"] == 284
    assert len(found["no_verdict"]) == 51 and found["no_verdict"]["other"] == 250


def test_the_intervals_hold_their_level_where_verdicts_of_a_prompt_depend_on_each_other():
    """A judge whose lean to the first place differs from prompt to prompt (mean 0.6), four candidates in both orders."""
    draw, held, runs = random.Random(11), 0, 300
    shown = list(permutations("abcd", 2))
    for _ in range(runs):
        bias = Bias()
        for _ in range(40):
            lean = draw.choice((0.35, 0.85))
            bias.add(Record(PROMPT, CANDIDATES, tuple(vote("".join(s), s[draw.random() > lean]) for s in shown)))
        low, high = bias.numbers()["by_judge"]["j"]["first_shown"]["interval"]
        held += low <= 0.6 <= high
    assert 0.92 <= held / runs <= 0.98


def test_what_is_exported():
    choices, rule = Choices(), parse("all-pairs:0.5")

    def pair(chosen: str, rejected: str, p: float) -> PreferencePair:
        return PreferencePair(PROMPT, Candidate("a", chosen), Candidate("b", rejected), 1.0, 0.0, p, "j")

    choices.add(Selection([pair("long", "s", 0.59999999), pair("same", "size", 0.95)]))
    choices.add(Selection([pair("s", "long", 0.5), pair("longer", "s", 1.0)]))
    found = choices.trust(rule)
    assert counted(found["longer_chosen"]) == (2, 3) and found["longer_chosen"]["prompts"] == 2
    assert [b["rows"] for b in found["p_chosen"]["bins"]] == [1, 1, 0, 0, 0, 2]  # 0.6, as it is written
    assert found["p_chosen"]["below"] == {"0.6": 0.25, "0.7": 0.5, "0.8": 0.5, "0.9": 0.5, "0.95": 0.5}


# In words


def leaning(prompts: int, first: int, of: int) -> dict:
    """So many prompts, the first shown named in `first` of each `of` of them (in both orders), nobody else."""
    records = []
    for k in range(prompts):
        flip = k % of < first
        records.append([vote("ac", "a"), vote("ca", "c" if flip else "a")])
    return numbers(*records)


def test_a_lean_to_one_place_is_told_and_none_is_not():
    told = [line for line in trust.lines(leaning(100, 3, 4)) if "Careful" in line]
    assert len(told) == 1 and "leans to the answer shown first: it named it in 88%" in told[0]
    assert not list(trust.warnings(leaning(100, 0, 4)))
    assert not list(trust.warnings(leaning(8, 4, 4))), "eight prompts are no evidence"


def test_a_name_that_would_move_the_cursor_does_not():
    (line,) = [line for line in trust.lines(numbers([vote("ab", "a", "\x1b[2J evil\n" + "x" * 90)])) if "evil" in line]
    assert line.isprintable() and len(line) < 100


class Looked(HTMLParser):
    """The tags of a page, and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links |= {value or "" for name, value in attrs if name in ("href", "src", "xlink:href")}


def test_the_page_stands_by_itself_and_escapes_what_it_is_told():
    evil = "</title><script>alert('$x$')</script>评委"
    audit = Audit()
    audit.add(Record(PROMPT, CANDIDATES, (vote("ac", "a", evil), vote("ca", "a", evil), vote("ac", "?", "<b>"))))
    made = {"command": "judge", "prompts": 2, "finished": 1, "pairs": 1, "dropped": {evil: 1}, "degenerate": {}}
    shown = page(evil, made | {"audit": audit.bias.numbers() | Choices().trust(parse("best-worst"))})
    looked = Looked()
    looked.feed(shown)
    assert "svg" in looked.tags and not looked.tags & {"script", "link", "img", "iframe", "b"}
    assert all(link.startswith("#") for link in looked.links) and "http" not in shown and "url(h" not in shown
    assert shown == page(evil, made | {"audit": audit.bias.numbers() | Choices().trust(parse("best-worst"))})


# In a run


def test_the_audit_of_a_run_by_a_jury_of_functions_and_a_model(tmp_path):
    """Recounted from the records that were stored, by another way."""
    rows = [
        {"id": f"p{k}", "prompt": "Why?", "candidates": [f"Because {'x' * (k * j % 7)} {j}." for j in range(3)]}
        for k in range(30)
    ]
    judges = [lambda p, c: [float(len(x.text)) for x in c], "pairwise"]
    judges[0].__name__ = "longest"  # type: ignore[union-attr]
    run = package.judge(rows, judge=judges, judge_model="fake/first", out=tmp_path / "out", checks=False)
    audit = run.wait()["audit"]
    assert list(audit["by_judge"]) == ["longest", "pairwise:fake/first"]
    first = audit["by_judge"]["pairwise:fake/first"]
    assert first["first_shown"]["value"] == first["flip"]["value"] == 1.0 and first["first_shown"]["prompts"] == 30
    unequal = sum(len(a) != len(b) for row in rows for a, b in combinations(row["candidates"], 2))
    assert counted(audit["by_judge"]["longest"]["longer"]) == (unequal, unequal)
    assert audit["agreement"][0]["of"] == 0  # one finds no winner in any pair
    pairs = read_rows(tmp_path / "out" / "dpo.jsonl")
    longer = [len(r["chosen"][0]["content"]) - len(r["rejected"][0]["content"]) for r in pairs]
    assert counted(audit["longer_chosen"]) == (sum(x > 0 for x in longer), sum(x != 0 for x in longer))
    assert [b["rows"] for b in audit["p_chosen"]["bins"]] == [
        sum(low <= r["p_chosen"] < high for r in pairs)
        for low, high in ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 2))
    ]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["audit"] == audit


def test_the_report_of_a_killed_run_and_of_the_whole_one(tmp_path, room: Room):
    """From the ledger alone: no call, and the run goes on as if nobody had looked."""
    prompts, out = write_prompts(tmp_path / "prompts.jsonl", 40), tmp_path / "out"
    command = ["generate", prompts, "--policy", room.model(), "-n", 2, "--concurrency", 4, "--out", out]
    room.set(latency_s=0.02)
    process = start(*command)
    while room.count() < 60:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    asked = room.count()
    said = "\n".join(report(out))
    done, whole = map(int, re.search(r"(\d+) of (\d+) prompts are finished", said).groups())
    assert 0 < done < whole == 40 and "first shown wins" in said and room.count() == asked
    room.set()
    assert "first shown wins" in rlaif(*command).stdout
    assert room.repeats() <= 4  # those in flight when it was killed
    said = "\n".join(report(out))
    ids = re.findall(r'\bid="([^"]*)"', text := (out / "report.html").read_text())
    assert "40 of 40 prompts" in said and text.count("<svg") == 3 and len(ids) == len(set(ids))
    assert f"of {summary(out)['audit']['longer_chosen']['of']} pairs of unequal length" in said


def test_a_report_of_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"run\.sqlite"):
        list(report(tmp_path / "nothing"))
    assert "run.sqlite" in rlaif("report", tmp_path, expect=2).stderr
