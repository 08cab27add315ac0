"""Constitutions at work: all principles in one call, one drawn a comparison, a verdict for each; two set side by side."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers import read_rows, rlaif, stored_records, summary, write_rows

import rlaif as library
from rlaif.audit import outcomes
from rlaif.errors import InputError, StopRun
from rlaif.pairs import judge_name
from rlaif.ranking.bradley_terry import rank
from rlaif.templates import load_constitution
from rlaif.types import Candidate, Prompt, Record, Verdict

WEIGHTED = {
    "principles": [
        {"id": "brief", "text": "Prefer the BRIEF answer.", "weight": 3},
        {"id": "warm", "text": "Prefer the WARM answer."},
    ]
}
CANDIDATES = [{"id": f"p{k}", "prompt": f"Question {k}?", "candidates": ["brief one", "warm two"]} for k in range(40)]
SCRIPT = [
    {"when": r"(?s)BRIEF.*answer A\]\nbrief", "say": "A", "logprobs": {"A": 0.9, "B": 0.1}},
    {"when": r"(?s)BRIEF.*answer A\]\nwarm", "say": "B", "logprobs": {"A": 0.1, "B": 0.9}},
    {"when": r"(?s)WARM.*answer A\]\nwarm", "say": "A", "logprobs": {"A": 0.8, "B": 0.2}},
    {"when": r"(?s)WARM.*answer A\]\nbrief", "say": "B", "logprobs": {"A": 0.2, "B": 0.8}},
]


@pytest.fixture
def constitution(tmp_path: Path) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(WEIGHTED))
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A judge that goes by one principle: what it prefers depends on which one it was shown."""
    path = tmp_path / "script.yaml"
    path.write_text(json.dumps(SCRIPT))
    return f"fake/{path}"


def run(tmp_path: Path, model: str, **settings) -> tuple[list[Record], dict]:
    out = tmp_path / "out"
    said = library.judge(CANDIDATES, judge="pairwise", judge_model=model, out=out, **settings).wait()
    return stored_records(out), said


def test_a_verdict_a_principle_counts_by_its_weight(tmp_path, constitution, model):
    records, said = run(tmp_path, model, constitution=constitution, principles="each")
    assert {(v.principle, v.weight) for r in records for v in r.verdicts} == {("brief", 0.75), ("warm", 0.25)}
    assert all(len(r.verdicts) == 4 for r in records)
    row = read_rows(tmp_path / "out" / "dpo.jsonl")[0]
    assert row["chosen"][0]["content"] == "brief one" and row["flip"] is False
    assert 0.7 < row["p_chosen"] < 0.9
    assert row["judge"].startswith("pairwise:") and "#" not in row["judge"] and "+" not in row["judge"]
    assert said["principles"] == {n: {"decided": 40, "tied": 0, "flipped": 0} for n in ("brief", "warm")}


def test_one_principle_a_comparison_is_drawn_by_the_weights_and_the_seed(tmp_path, constitution, model):
    records, said = run(tmp_path, model, constitution=constitution, principles="sampled")
    drawn = [{v.principle for v in r.verdicts} for r in records]
    assert all(len(one) == 1 for one in drawn), "both orders of a pair are judged by one principle"
    counts = Counter(next(iter(one)) for one in drawn)
    assert 22 <= counts["brief"] <= 38 and counts.total() == 40
    assert {name: sum(found.values()) for name, found in said["principles"].items()} == dict(counts)
    again, _ = run(tmp_path / "again", model, constitution=constitution, principles="sampled")
    other, _ = run(tmp_path / "other", model, constitution=constitution, principles="sampled", seed=1)
    assert [r.verdicts for r in again] == [r.verdicts for r in records] != [r.verdicts for r in other]


def test_the_whole_constitution_is_shown_with_its_weights_and_names_no_principle(tmp_path, constitution, model):
    whole = load_constitution(constitution)
    assert "(weight 3) Prefer the BRIEF" in whole.text and "(weight" not in load_constitution("hhh").text
    assert whole.share(whole.principles[0]) == 0.75 and whole.alone(whole.principles[0]).text == "- Prefer the BRIEF answer."
    assert whole.digest != load_constitution("hhh").digest
    records, said = run(tmp_path, model, constitution=constitution)
    assert {v.principle for r in records for v in r.verdicts} == {None} and "principles" not in said


@pytest.mark.parametrize(
    ("principle", "said"),
    [
        ({"text": "x", "weight": 0}, "weight 0"),
        ({"text": "x", "weight": "much"}, "'much'"),
        ({"text": "x", "weight": True}, "True"),
        ({"text": "x", "wieght": 2}, "'wieght'"),
    ],
)
def test_a_wrong_principle_is_refused(tmp_path, principle, said):
    (tmp_path / "wrong.yaml").write_text(json.dumps({"principles": [principle]}))
    with pytest.raises(InputError, match=said):
        load_constitution(str(tmp_path / "wrong.yaml"))


def verdict(principle: str | None, shown: str, *scores: float) -> Verdict:
    return Verdict("j" if principle is None else f"j#{principle}", tuple(shown), scores, "vote", principle=principle)


def test_what_a_principle_came_to():
    found = outcomes(
        [
            *(verdict("kind", "ab", 1, 0), verdict("kind", "ba", 0, 1)),
            *(verdict("short", "ab", 1, 0), verdict("short", "ba", 1, 0)),
            *(verdict("true", "ab", 0.5, 0.5), verdict("true", "ba", 0.5, 0.5)),
            *(verdict("calm", "ab", 0.5, 0.5), verdict("calm", "ba", 0, 1)),
            *(verdict("alone", "a", 3), verdict("alone", "b", 3), verdict("alone", "c", 5)),
            verdict(None, "ab", 1, 0),
        ]
    )
    assert Counter(found) == {
        ("kind", "decided"): 1,
        ("short", "flipped"): 1,
        ("true", "tied"): 1,
        ("calm", "decided"): 1,
        ("alone", "decided"): 2,
        ("alone", "tied"): 1,
    }


def test_weights_are_multiples_of_a_verdict():
    """A verdict of weight 2 says what two of weight 1 say; judges by principle are one judge in the label."""
    prompt = Prompt("p", ({"role": "user", "content": "?"},))
    candidates = (Candidate("a", "x"), Candidate("b", "y"))

    def p_of(*verdicts: Verdict) -> float:
        (ranking,) = rank([Record(prompt, candidates, verdicts)], [("a", "b")])
        return ranking.p(0, 1)

    def probable(p: float, weight: float = 1.0, judge: str = "j") -> Verdict:
        return Verdict(judge, ("a", "b"), (p, 1 - p), "probability", weight=weight)

    assert p_of(probable(0.9, 2.0), probable(0.3)) == pytest.approx(p_of(probable(0.9), probable(0.9), probable(0.3)), abs=1e-6)
    both = (verdict("kind", "ab", 1, 0), verdict("true", "ab", 0, 1), Verdict("other", ("a", "b"), (1.0, 0.0)))
    assert judge_name(Record(prompt, candidates, both)) == "j+other"


@pytest.mark.slow
def test_two_constitutions_are_set_side_by_side(tmp_path, model):
    for name in ("brief", "warm"):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"principles": [f"Prefer the {name.upper()} answer."]}))
    out, one, other = tmp_path / "out", tmp_path / "brief.yaml", tmp_path / "warm.yaml"
    rows = write_rows(tmp_path / "c.jsonl", CANDIDATES[:5])
    command = ("judge", rows, "--out", out, "--judge", "pairwise", "--judge-model", model, "--constitution", one)
    done = rlaif(*command, "--against", other)
    said = summary(out)["against"]
    assert said == {
        "constitutions": [str(one), str(other)],
        "prompts": 5,
        "pairs": 5,
        "same": 0,
        "different": 5,
        "undecided": 0,
        "best_differs": 5,
        "rows": 5,
        "calls": {"policy": 0, "judge": 10, "reused": 0},
    }
    assert summary(out)["tokens"]["prompt"] > 1.5 * summary(out / "against")["tokens"]["prompt"], "both are in the books"
    row = read_rows(out / "against.jsonl")[0]
    assert (row["left"], row["right"]) == ("brief one", "warm two")
    assert row["p_left"] == {str(one): pytest.approx(0.9, abs=0.03), str(other): pytest.approx(0.2, abs=0.03)}
    assert row["best"] == {str(one): "brief one", str(other): "warm two"}
    assert "differ" in done.stdout
    rlaif(*command, "--against", other)
    assert summary(out)["calls"]["judge"] == summary(out / "against")["calls"]["judge"] == 0, "nothing is bought twice"
    rlaif(*command, "--against", one, "--out", tmp_path / "same")
    assert summary(tmp_path / "same")["against"]["same"] == 5 and not read_rows(tmp_path / "same" / "against.jsonl")


def test_a_second_constitution_is_looked_at_before_anything_is_spent(tmp_path):
    out = tmp_path / "out"
    given = {"judge": "pairwise", "judge_model": "fake/oracle", "out": out}
    with pytest.raises(InputError, match="nowhere"):
        library.judge(CANDIDATES, **given, against="nowhere").wait()
    with pytest.raises(InputError, match="no judge here reads one"):
        library.judge(CANDIDATES, judge="shortest.py:shortest", out=out, against="honest").wait()
    assert not out.exists()


@pytest.mark.slow
def test_the_budget_holds_for_both_constitutions(tmp_path):
    rows = [{**CANDIDATES[0], "id": f"p{k}", "prompt": f"Question {k}?"} for k in range(400)]
    given = {"judge": "pairwise", "judge_model": "fake/oracle", "out": tmp_path / "out", "against": "honest"}
    whole = library.judge(rows, **{**given, "out": tmp_path / "whole"}).wait()
    used = sum(whole["tokens"].values())
    with pytest.raises(StopRun, match="tokens are used"):
        library.judge(rows, **given, budget_tokens=int(0.75 * used)).wait()
    stopped = summary(tmp_path / "out")
    assert stopped["state"] == "stopped" and 0.7 * used < sum(stopped["tokens"].values()) < 0.85 * used
    assert (tmp_path / "out" / "dpo.jsonl").exists(), "the first judging was finished"
    done = library.judge(rows, **given, budget_tokens=2 * used).wait()
    assert sum(done["tokens"].values()) == used and done["against"]["prompts"] == 400
    plan = library.judge(rows, **{**given, "out": tmp_path / "dry"}).dry_run()
    assert plan["judge_calls"] == 1600


def test_what_no_verdict_compared_is_undecided_between_two_constitutions(tmp_path):
    """Under one constitution every verdict on `three` is unreadable: where it would stand is no preference."""
    (tmp_path / "one.yaml").write_text(json.dumps({"principles": ["ONE"]}))
    (tmp_path / "two.yaml").write_text(json.dumps({"principles": ["TWO"]}))
    script = [
        {"when": r"(?s)ONE.*three", "say": "no idea"},
        {"when": r"(?s)answer A\]\none|answer A\]\ntwo.*answer B\]\nthree", "say": "[[A]]"},
        {"when": "", "say": "[[B]]"},
    ]
    (tmp_path / "script.yaml").write_text(json.dumps(script))
    rows = [{"prompt": "q", "candidates": ["one", "two", "three"]}]
    said = library.judge(
        rows,
        judge="pairwise-text",
        judge_model=f"fake/{tmp_path / 'script.yaml'}",
        out=tmp_path / "out",
        constitution=str(tmp_path / "one.yaml"),
        against=str(tmp_path / "two.yaml"),
    ).wait()
    found = said["against"]
    assert (found["same"], found["different"], found["undecided"]) == (1, 0, 2)
