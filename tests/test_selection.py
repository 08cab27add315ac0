"""Selection rules: what each picks out of a prompt's candidates, what limits drop, and what the summary says of both."""

from __future__ import annotations

import json
import math
from itertools import combinations, permutations
from pathlib import Path

import pytest
from helpers import rlaif as command
from hypothesis import given, settings
from hypothesis import strategies as st

import rlaif
from rlaif import pairs, results
from rlaif.audit import Choices
from rlaif.errors import InputError
from rlaif.ranking.bradley_terry import rank
from rlaif.selection import NAMES, Rule, Selection, best, parse, select
from rlaif.types import Candidate, Prompt, Ranking, Record, Verdict

PROMPT = Prompt("p", ({"role": "user", "content": "q"},))
PAIR_RULES = [name for name in NAMES if name != "best-of-n"]


def rated(*scores: float, texts: list[str] | None = None, prompt: Prompt = PROMPT) -> tuple[Record, Ranking]:
    """A record whose candidates have these ratings, and a ranking on the same scale: a difference is the log-odds."""
    candidates = tuple(
        Candidate(f"p/{k}", (texts or [f"answer {k}" for k in range(len(scores))])[k]) for k in range(len(scores))
    )
    said = tuple(Verdict("j", (c.id,), (score,)) for c, score in zip(candidates, scores, strict=True))
    return Record(prompt, candidates, said), Ranking(tuple(c.id for c in candidates), scores, scores)


def picked(rule: str, *scores: float, **more) -> list[tuple[int, int]]:
    return places(select(parse(rule), *rated(*scores, **more)))


def places(found: Selection) -> list[tuple[int, int]]:
    assert bool(found.pairs) is (found.reason is None)
    return [(int(p.chosen.id[2:]), int(p.rejected.id[2:])) for p in found.pairs]


@pytest.mark.parametrize(
    ("rule", "scores", "expected"),
    [
        ("best-worst", (1.0, 3.0, 0.0, 2.0), [(1, 2)]),
        ("margin:3", (1.0, 3.0, 0.0, 2.0), [(1, 2)]),
        ("margin:3.1", (1.0, 3.0, 0.0, 2.0), []),
        ("top-k", (1.0, 3.0, 0.0, 2.0), [(1, 2), (1, 0), (3, 2), (3, 0)]),
        ("top-k:1", (1.0, 3.0, 0.0, 2.0), [(1, 2)]),
        ("top-k:2,cap=3", (1.0, 3.0, 0.0, 2.5), [(1, 2), (3, 2), (1, 0)]),
        ("top-k:9", (1.0, 3.0, 0.0), [(1, 2)]),
        ("all-pairs", (1.0, 3.0, 0.0), [(1, 2), (1, 0), (0, 2)]),
        ("all-pairs:0.8", (1.0, 3.0, 0.0), [(1, 2), (1, 0)]),
        ("all-pairs:0.8,cap=1", (1.0, 3.0, 0.0), [(1, 2)]),
        ("all-pairs", (1.0, 1.0, 0.0), [(0, 2), (1, 2)]),
        ("best-worst,p=0.9", (1.0, 2.0), []),
        ("best-worst,p=0.73", (1.0, 2.0), [(1, 0)]),
    ],
)
def test_what_each_rule_picks(rule, scores, expected):
    assert picked(rule, *scores) == expected


def test_mu_2sigma_rejects_no_outlier():
    """The mean of ten less two deviations may be nearest to the one that is far off; of many, it is not."""
    scores = (0.4, 0.3, 0.2, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -9.0)
    assert picked("mu-2sigma", *scores) == [(0, 9)]
    normal = [1.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.5, -1.7, -3.5]
    mean = sum(normal) / len(normal)
    target = mean - 2 * (sum((s - mean) ** 2 for s in normal) / len(normal)) ** 0.5
    assert -2.9 < target < -2.4  # nearer to -1.7 or -3.5? by 0.1
    assert picked("mu-2sigma", *normal) == [(0, min(range(14), key=lambda k: abs(normal[k] - target)))]
    assert picked("best-worst", *normal) == [(0, 13)]
    few = (2.0, 1.0, 0.0)  # the target lies below them all
    assert picked("mu-2sigma", *few) == [(0, 2)]


def test_best_random_draws_a_weaker_one_by_seed_and_prompt():
    def drawn(seed: int, name: str) -> tuple[int, int]:
        record, ranking = rated(1.0, 3.0, 0.0, 2.0, 3.0, prompt=Prompt(name, PROMPT.messages))
        (found,) = places(select(parse("best-random"), record, ranking, seed=seed))
        return found

    assert all(drawn(seed, "p") == drawn(seed, "p") for seed in range(5))
    for found in ({drawn(seed, "p") for seed in range(60)}, {drawn(0, f"p{k}") for k in range(60)}):
        assert found == {(1, 0), (1, 2), (1, 3)}  # never its equal, number 4


def test_length_matched_takes_the_closest_lengths_among_pairs_as_sure():
    texts = ["x" * 10, "y" * 40, "z" * 41, "w" * 12]
    scores = (5.0, 4.9, 0.0, 0.1)  # sure: 0 and 1 over 2 and 3, all at 0.99
    assert picked("length-matched", *scores, texts=texts) == [(1, 2)]
    assert picked("length-matched:0", *scores, texts=texts) == [(0, 2)]
    assert picked("max-length-ratio:1.2", *scores, texts=texts) == [(0, 3)]
    assert picked("max-length-ratio:99", *scores, texts=texts) == picked("best-worst", *scores, texts=texts)
    assert picked("length-matched,max-length-ratio=1.01", *scores, texts=texts) == []


def test_a_tie_is_never_a_pair_and_every_rule_gives_its_reason():
    for name in PAIR_RULES:
        rule = parse(f"{name}:2" if name in ("margin", "max-length-ratio") else name)
        assert select(rule, *rated(1.0, 1.0, 1.0)).reason == "tied"
        silent = Record(PROMPT, (Candidate("p/0", "x"), Candidate("p/1", "y")))
        assert select(rule, silent, Ranking(("p/0", "p/1"), (0.0, 0.0), (0.0, 0.0))).reason == "no_verdict"
        assert select(rule, Record(PROMPT, silent.candidates[:1]), Ranking(("p/0",), (0.0,), (0.0,))).reason == "ineligible"


@pytest.mark.parametrize(
    ("rule", "reason", "limited"),
    [
        ("best-worst,p=0.99", "p_too_low", ["p_too_low"]),
        ("all-pairs:0.99", "p_too_low", []),
        ("margin:5", "margin_too_small", ["margin_too_small"]),
        ("best-worst,max-length-ratio=1.5", "lengths_too_different", ["lengths_too_different"]),
        ("max-length-ratio:1.05", "lengths_too_different", []),
        ("all-pairs,max-length-ratio=1.5,p=0.7", None, ["lengths_too_different", "p_too_low"]),
        ("all-pairs,cap=1", None, ["over_cap", "over_cap"]),
    ],
)
def test_a_limit_says_what_it_dropped(rule, reason, limited):
    found = select(parse(rule), *rated(2.0, 1.0, 0.5, texts=["x" * 10, "y" * 9, "z" * 20]))
    assert (found.reason, list(found.limited)) == (reason, limited)


RULES = st.builds(
    lambda name, limits: ",".join([name, *limits]),
    st.sampled_from(
        [
            "best-worst",
            "best-random",
            "mu-2sigma",
            "top-k:3",
            "all-pairs:0.6",
            "length-matched:0.2",
            "margin:0.1",
            "max-length-ratio:3",
        ]
    ),
    st.lists(st.sampled_from(["p=0.55", "max-length-ratio=2", "cap=2"]), unique=True, max_size=3),
)
SCORES = st.lists(st.floats(-4, 4), min_size=2, max_size=8)


@settings(database=None, deadline=None, max_examples=200)
@given(RULES, SCORES, st.data())
def test_whatever_the_rule_the_stronger_one_is_chosen_and_every_limit_holds(text, scores, data):
    texts = data.draw(st.lists(st.text("ab", min_size=1, max_size=9), min_size=len(scores), max_size=len(scores)))
    rule, (record, ranking) = parse(text), rated(*scores, texts=texts)
    found = select(rule, record, ranking)
    assert bool(found.pairs) is (found.reason is None)
    assert len({(p.chosen.id, p.rejected.id) for p in found.pairs}) == len(found.pairs) <= (rule.cap or 99)
    for pair in found.pairs:
        better, worse = (scores[int(c.id[2:])] for c in (pair.chosen, pair.rejected))
        assert better > worse and 0.5 < pair.p_chosen == pytest.approx(1 / (1 + math.exp(worse - better)))
        assert pair.p_chosen >= (rule.p or 0.5) - 1e-6
        short, long = sorted((len(pair.chosen.text), len(pair.rejected.text)))
        assert rule.max_length_ratio is None or long <= rule.max_length_ratio * short
    sure = [round(p.p_chosen, 9) for p in found.pairs]
    assert sure == sorted(sure, reverse=True)
    # the same whatever order the candidates came in
    order = data.draw(st.permutations(range(len(scores))))
    if rule.name not in ("best-random", "length-matched", "max-length-ratio") and len(set(scores)) == len(scores):
        turned = Ranking(*(tuple(row[k] for k in order) for row in (ranking.ids, ranking.strengths, ranking.scores)))
        again = select(rule, Record(PROMPT, tuple(record.candidates[k] for k in order), record.verdicts), turned)
        assert {p.chosen.id for p in again.pairs} == {p.chosen.id for p in found.pairs} or rule.cap


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("best-worst", "best-worst"),
        (" top-k : 3 , cap = 2 ", "top-k:3,cap=2"),
        ("margin=0.5", "best-worst,margin=0.5"),
        ("max-length-ratio:2,p=0.7", "max-length-ratio:2,p=0.7"),
        ("margin:2,max-length-ratio=2", "best-worst,margin=2,max-length-ratio=2"),
        ("all-pairs", "all-pairs:0.5"),
        ("all-pairs:0.75,cap=10", "all-pairs:0.75,cap=10"),
        ("length-matched", "length-matched:0.05"),
        ("best-of-n,p=0.6", "best-of-n,p=0.6"),
    ],
)
def test_a_rule_reads_back_as_it_is_shown(text, shown):
    assert str(parse(text)) == shown and parse(shown) == parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unknown; there are best-worst"),
        ("best", "'best' is unknown"),
        ("margin", "margin must be a number at least 0, got ''"),
        ("max-length-ratio", "max-length-ratio must be a number at least 1, got ''"),
        ("margin:-1", "margin must be a number at least 0, got '-1'"),
        ("margin:nan", "got 'nan'"),
        ("all-pairs:0.4", "all-pairs must be a number from 0.5 to 1, got '0.4'"),
        ("top-k:1.5", "top-k must be a whole number at least 1, got '1.5'"),
        ("best-worst:2", "best-worst takes no value"),
        ("best-worst,length=2", "the limit 'length' is unknown; there are margin, p"),
        ("best-worst,p=0.6,p=0.7", "the limit 'p' stands twice"),
        ("margin:1,margin=2", "the limit 'margin' stands twice"),
        ("max-length-ratio:0.5", "max-length-ratio must be a number at least 1"),
        ("best-of-n,margin=1", "best-of-n knows no limit but p"),
    ],
)
def test_a_rule_that_is_none_is_refused_in_words(text, words):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_best_of_n_may_ask_for_a_sure_winner():
    record, ranking = rated(2.0, 0.0, 0.0)
    found = best(parse("best-of-n,p=0.8"), record, ranking)
    assert isinstance(found, pairs.Best) and found.winner.id == "p/0"
    assert best(parse("best-of-n,p=0.9"), record, ranking) == "p_too_low"
    assert (
        best(parse("best-of-n,p=0.6"), Record(PROMPT, record.candidates[:1]), Ranking(("p/0",), (0.0,), (0.0,))) == "p_too_low"
    )


def test_pairs_come_from_fitted_verdicts_too():
    candidates = tuple(Candidate(f"p/{k}", f"answer {k}") for k in range(4))
    said = tuple(
        Verdict("j", (f"p/{i}", f"p/{j}"), (0.8, 0.2) if i < j else (0.2, 0.8), "probability")
        for i, j in permutations(range(4), 2)
    )
    record = Record(PROMPT, candidates, said)
    (ranking,) = rank([record], [[c.id for c in candidates]])
    found = places(select(parse("all-pairs"), record, ranking))
    assert set(found) == set(combinations(range(4), 2)) and found[0] == (0, 3)


# As a user meets it


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """40 prompts with four answers each, the longest best, judged; the ratings are the lengths."""
    out = tmp_path_factory.mktemp("selection") / "run"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "near", "its", "quiet", "den"]
    given = [
        {
            "id": f"q{k}",
            "prompt": f"question {k}",
            "candidates": [" ".join(words[: 2 + (k * 7 + place * 3) % 11]) for place in range(4)],
        }
        for k in range(40)
    ]
    rlaif.judge(
        [*given, {"id": "alike", "prompt": "x", "candidates": ["same", "same"]}], judge="longest.py:longest", out=out
    ).wait()
    return out


@pytest.mark.parametrize(
    "rule",
    [
        *("all-pairs:0.6,cap=2", "margin:36"),
        *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("best-worst", "top-k:2", "mu-2sigma", "length-matched")),
    ],
)
def test_an_export_says_what_its_rule_took_and_dropped(run, tmp_path, rule):
    out = tmp_path / "pairs.jsonl"
    said = command("export", run, "--format", "dpo", "--select", rule, "--out", out).stdout
    rows, summary = rows_of(out), json.loads((tmp_path / "pairs.jsonl.summary.json").read_text())
    ids = {row["id"] for row in rows}
    assert summary["prompts"] == 41 == len(ids) + sum(summary["dropped"].values())
    assert summary["dropped"]["identical"] == 1 and summary["rows"] == summary["pairs"] == len(rows) > 20
    assert summary["rule"] == str(parse(rule)) and summary["rule"] in said and f"{len(rows)} rows from 41 prompts" in said
    assert summary["mean_p_chosen"] == pytest.approx(sum(r["p_chosen"] for r in rows) / len(rows), abs=1e-5)
    assert summary["mean_margin"] == pytest.approx(
        sum(r["score_chosen"] - r["score_rejected"] for r in rows) / len(rows), abs=1e-4
    )
    assert summary["longer_chosen"] == summary["longer_chosen_before"] == 1.0
    if rule.startswith("margin"):
        assert summary["dropped"]["margin_too_small"] == summary["limited"]["margin_too_small"] > 0
        assert all(r["score_chosen"] - r["score_rejected"] >= 36 for r in rows)


def test_best_answers_are_said_of_in_the_same_terms(run, tmp_path):
    out = tmp_path / "best.jsonl"
    said = command("export", run, "--format", "sft", "--select", "best-of-n,p=0.7", "--out", out).stdout
    rows, summary = rows_of(out), json.loads((tmp_path / "best.jsonl.summary.json").read_text())
    assert summary["rows"] == summary["answers"] == len(rows) > 20
    assert summary["prompts"] == 41 == len(rows) + sum(summary["dropped"].values())
    assert summary["mean_p_win"] == pytest.approx(sum(r["p_win"] for r in rows if r["n"] > 2) / len(rows), abs=1e-5)
    assert summary["mean_margin"] > 10 and summary["longer_chosen"] == summary["longer_chosen_before"] == 1.0
    assert "best-of-n,p=0.7: mean margin" in said


def test_a_run_goes_by_its_own_rule_and_so_does_its_export(tmp_path):
    given = [{"id": "a", "prompt": "x", "candidates": ["1", "22", "333"]}, {"id": "b", "prompt": "y", "candidates": ["1", "1"]}]
    run = rlaif.judge(given, judge="longest.py:longest", out=tmp_path / "run", select="all-pairs")
    summary = run.wait()
    assert (summary["prompts"], summary["pairs"], summary["dropped"]) == (2, 3, {"identical": 1})
    assert summary["selection"]["rule"] == "all-pairs:0.5" and summary["longer_chosen_rate"] == 1.0
    assert [row["id"] for row in run.to_dataset()] == ["a", "a", "a"]
    assert len(list(rlaif.judge(given, judge="longest.py:longest", out=tmp_path / "run", select="all-pairs").pairs())) == 3
    made = (tmp_path / "run" / "dpo.jsonl").read_bytes()
    assert results.export(tmp_path / "run", "dpo", tmp_path / "again.jsonl")["rule"] == "all-pairs:0.5"
    assert (tmp_path / "again.jsonl").read_bytes() == made
    command("export", tmp_path / "run", "--select", "best-worst")  # to the run's own place, and what it came to beside it
    assert len(rows_of(tmp_path / "run" / "dpo.jsonl")) == 1 and (tmp_path / "run" / "dpo.jsonl.summary.json").exists()
    rlaif.judge(given, judge="longest.py:longest", out=tmp_path / "run", select="all-pairs").wait()
    assert (tmp_path / "run" / "dpo.jsonl").read_bytes() == made and not (tmp_path / "run" / "dpo.jsonl.summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "sft", "--select", "best-worst"), "does not go with the format 'sft', which takes the rule best-of-n"),
        pytest.param(
            ("--format", "dpo", "--select", "best-of-n"),
            "does not go with the format 'dpo', which takes a rule for pairs",
            marks=pytest.mark.slow,
        ),
        pytest.param(("--select", "longest"), "'longest' is unknown", marks=pytest.mark.slow),
    ],
)
def test_a_rule_and_a_format_that_do_not_go_together(run, tmp_path, arguments, words):
    said = command("export", run, *arguments, "--out", tmp_path / "x.jsonl", expect=2).stderr
    assert words in said and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        ("generate", "best-of-n"),
        *(
            pytest.param(*some, marks=pytest.mark.slow)
            for some in (("best-of-n", "top-k"), ("judge", "best-of-n"), ("judge", "best"))
        ),
    ],
)
def test_a_command_refuses_a_rule_of_the_other_kind_before_anything_is_spent(tmp_path, made, rule):
    policy = ("--policy", "fake/oracle") if made != "judge" else ("--judge", "longest.py:longest")
    said = command(made, "x.jsonl", *policy, "--out", tmp_path / "run", "--select", rule, expect=2).stderr
    assert f"{rule!r}" in said and not (tmp_path / "run").exists()


def test_an_unfinished_run_exports_what_is_finished_and_says_so(tmp_path):
    given = [{"id": f"q{k}", "prompt": f"question {k}", "candidates": ["short", "a longer one"]} for k in range(10)]
    run = rlaif.judge(given, judge="longest.py:longest", out=tmp_path / "run", concurrency=1)
    for count, _ in enumerate(run, 1):
        if count == 4:
            run.interrupt()
            break
    said = command("export", tmp_path / "run", "--out", tmp_path / "part.jsonl").stdout
    rows, summary = rows_of(tmp_path / "part.jsonl"), json.loads((tmp_path / "part.jsonl.summary.json").read_text())
    assert 4 <= len(rows) < 10 and summary["dropped"] == {"unfinished": 10 - len(rows)}
    assert f"{10 - len(rows)} of the run's 10 prompts are not finished" in said
    rlaif.judge(given, judge="longest.py:longest", out=tmp_path / "run").wait()
    assert (tmp_path / "run" / "dpo.jsonl").read_bytes().startswith((tmp_path / "part.jsonl").read_bytes())


def test_a_rule_is_shown_as_it_was_meant():
    assert Rule("top-k", 2.0) == parse("top-k") and str(Rule("top-k", 2.0)) == "top-k:2"


def test_of_pairs_that_are_equally_sure_the_first_are_kept():
    """Neighbours of an even scale are told apart alike: what the solver's last bits say of them is no reason to take one."""
    for order in permutations((4.0, 3.0, 2.0, 1.0, 0.0)):
        record, _ = rated(*order)
        said = Verdict("j", tuple(c.id for c in record.candidates), order)
        (ranking,) = rank([Record(PROMPT, record.candidates, (said,))], [[c.id for c in record.candidates]])
        found = select(parse("all-pairs,cap=4"), Record(PROMPT, record.candidates, (said,)), ranking)
        kept = [(p.score_chosen, p.score_rejected) for p in found.pairs]
        assert kept == [(4.0, 0.0), (4.0, 1.0), (3.0, 0.0), (4.0, 2.0)]


@pytest.mark.parametrize("size", [1e308, 1e200, 1e-200, 5e-324])
@pytest.mark.parametrize("rule", PAIR_RULES)
def test_scores_of_any_size_can_be_told_apart(rule, size):
    record, _ = rated(size, -size, 0.0)
    said = Verdict("j", tuple(c.id for c in record.candidates), (size, -size, 0.0))
    record = Record(PROMPT, record.candidates, (said,))
    (ranking,) = rank([record], [[c.id for c in record.candidates]])
    rule = {"margin": "margin:0", "max-length-ratio": "max-length-ratio:2"}.get(rule, rule)
    found, choices = select(parse(rule), record, ranking), Choices()
    assert found.pairs[0].chosen.id == "p/0"
    choices.add(found)
    json.dumps(choices.numbers(parse(rule)), allow_nan=False)


def test_mu_2sigma_picks_alike_on_any_scale():
    scores = (9.0, 8.5, 8.0, 8.0, 7.5, 3.0)
    expected = picked("mu-2sigma", *scores)
    for scale in (1e-200, 1e-9, 1e9, 1e200):
        record, ranking = rated(*scores)
        scaled = Ranking(ranking.ids, ranking.strengths, tuple(s * scale for s in scores))
        assert places(select(parse("mu-2sigma"), record, scaled)) == expected
