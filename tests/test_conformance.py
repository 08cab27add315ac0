"""Every shipped judge holds what `check_judge` asks of one, and a judge that does not is told so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rlaif
from rlaif.errors import InputError
from rlaif.judges import JurySpec, ListwiseSpec, PairwiseSpec, PointwiseSpec, RecordedSpec, RulesSpec, resolve
from rlaif.judges.llm import KINDS
from rlaif.templates import data_dir, read_yaml
from rlaif.testing import EXAMPLES, check_judge

JUDGES = data_dir() / "judges"
LLM = [p.stem for p in sorted(JUDGES.glob("*.yaml")) if read_yaml(p)["kind"] in ("adaptive", *KINDS)]
FUNCTIONS = [f"judges/{p.name}:{p.stem}" for p in sorted(JUDGES.glob("*.py"))]


@pytest.mark.parametrize("judge", [pytest.param(j, marks=pytest.mark.slow if "-" in j else ()) for j in (*LLM, *FUNCTIONS)])
def test_every_shipped_judge_holds(judge):
    held = check_judge(judge)
    assert ("the oracle's best wins" in held) == (judge in LLM) and len(held) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("principles", ["sampled", "each"])
@pytest.mark.parametrize("judge", ["adaptive", "pairwise", "pointwise", "listwise"])
def test_llm_judges_hold_in_every_mode_of_the_constitution(judge, principles):
    assert check_judge(judge, principles=principles, constitution="reasoning")


@pytest.mark.slow
def test_a_jury_and_specs_of_ones_own_hold(tmp_path):
    specs = {
        "jury": {"kind": "jury", "judges": ["pairwise", "pointwise", "own.yaml"], "weights": [2, 1, 1]},
        "own": {"kind": "function", "function": "own.py:words"},
        "few": {"kind": "listwise", "shown": 3, "orders": 4, "reason": True, "reference": True},
        "seen": {"kind": "pairwise", "reference": True},
    }
    for name, spec in specs.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(spec))
    (tmp_path / "own.py").write_text("def words(prompt, candidates):\n    return [len(c.text.split()) for c in candidates]\n")
    for name in specs:
        assert check_judge(str(tmp_path / f"{name}.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in JUDGES.glob("rules-*.yaml")))
def test_judges_of_rules_hold(name):
    pytest.importorskip("math_verify", reason="math-verify is missing: pip install 'rlaif[math]'")
    constraints = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    examples = [
        {"prompt": "2 + 2?", "reference": "4", "candidates": ['{"a": 4}', "So it is 5.", "\\boxed{4}"], **constraints},
        {"prompt": "3 * 3?", "reference": "#### 9", "candidates": ["The answer is 9.", "10"], **constraints},
    ]
    assert check_judge(name, examples=examples)


def test_recorded_verdicts_hold(tmp_path):
    """Every order of every pair is on file, so nothing changes with ids or batches but the order of the listing."""
    rows = [{"pair_id": f"g{k}", "judge": "J", "order": order, "verdict": "A"} for k in range(3) for order in ("AB", "BA")]
    (tmp_path / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"kind": "recorded", "verdicts": "verdicts.jsonl", "judge": "J"}
    (tmp_path / "replayed.yaml").write_text(json.dumps(spec))
    pairs = [{"id": f"g{k}", "prompt": f"q{k}", "response_a": "one", "response_b": "two", "gold": "A"} for k in range(3)]
    run = rlaif.judge(pairs, judge=str(tmp_path / "replayed.yaml"), out=tmp_path / "out")
    found = list(run.pairs())
    assert [(p.chosen.text, p.judge, p.flip) for p in found] == [("one", "replayed", False)] * 3
    assert run.wait()["no_verdict_rate"] == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_reward_model_holds_and_is_checked_before_the_run(tmp_path):
    pytest.importorskip("transformers", reason="transformers are missing: pip install 'rlaif[local]'")
    import tiny

    folder = tiny.save_reward(tmp_path / "reward")
    assert check_judge("reward", judge_model=f"hf/{folder}", tolerance=1e-4)
    rows = [{"prompt": f"q{k}", "candidates": ["one answer", "another, longer one"]} for k in range(3)]
    settings = {"judge": "reward", "judge_model": f"hf/{folder}", "checks": True, "accept_judge": True}
    summary = rlaif.judge(rows, out=tmp_path / "out", **settings).wait()
    (seen,) = summary["checks"]["judges"]
    assert seen["judge"] == "reward:reward" and set(seen["planted"]) >= {"empty", "garbage-short", "hijack"}
    assert summary["checks"]["calls"]["judge"] >= 9 and summary["calls"]["judge"] == 6
    again = rlaif.judge(rows, out=tmp_path / "out", **settings).wait()
    assert again["calls"]["judge"] == 0


def test_a_reward_judge_takes_no_policy_for_its_model():
    with pytest.raises(InputError, match="a reward judge needs a model"):
        resolve("reward", model=None, constitution=None, policy="fake/oracle")


def test_a_jury_s_label_holds_what_each_of_its_judges_says(tmp_path):
    def leaning(p: float, name: str):
        def judge(prompt, candidates):
            ids = tuple(c.id for c in candidates)
            first = p if candidates[0].text == "good" else 1 - p
            return rlaif.Verdict(name, ids, (first, 1 - first), scale="probability")

        judge.arity = 2
        judge.__name__ = name
        return judge

    rows = [{"prompt": "q", "candidates": ["good", "bad"]}]
    jury = [leaning(0.9, "one"), leaning(0.8, "two"), leaning(0.4, "three")]
    (pair,) = rlaif.judge(rows, judge=jury, out=tmp_path / "three").pairs()
    assert pair.chosen.text == "good" and pair.judge == "one+two+three"
    (agreed,) = rlaif.judge(rows, judge=jury[:2], out=tmp_path / "two").pairs()
    (torn,) = rlaif.judge(rows, judge=jury[1:], out=tmp_path / "torn").pairs()
    assert 0.5 < torn.p_chosen < pair.p_chosen < agreed.p_chosen < 1.0


@pytest.mark.slow
def test_specs_are_made_in_python_too(tmp_path):
    def shorter(prompt, candidates):
        return [-float(len(c.text)) for c in candidates]

    jury = JurySpec(judges=[PairwiseSpec(reason=True, constitution="honest"), shorter, "pointwise"], weights=[2, 1, 1])
    for judge in (PairwiseSpec(principles="each"), PointwiseSpec(), ListwiseSpec(shown=3, orders=4), jury):
        assert check_judge(judge)
    rules = RulesSpec(rules=[{"rule": "length", "prefer": "shorter"}])
    rows = [{"prompt": "q", "candidates": ["a long answer, it is", "short"]}]
    for judge in (rules, [rules, PairwiseSpec(model="fake/tie")]):
        (pair,) = rlaif.judge(rows, judge=judge, out=tmp_path / str(id(judge))).pairs()
        assert pair.chosen.text == "short" and pair.judge.startswith("rules")
    spec = RecordedSpec(verdicts="gone.jsonl")
    with pytest.raises(InputError, match=r"gone\.jsonl"):
        rlaif.judge(rows, judge=spec, out=tmp_path / "x").wait()


def test_a_spec_finds_what_it_names_beside_itself(tmp_path, monkeypatch):
    (tmp_path / "ours.yaml").write_text("principles: [Prefer the higher quality.]")
    (tmp_path / "own.py").write_text("def words(prompt, candidates):\n    return [len(c.text.split()) for c in candidates]\n")
    text = (data_dir() / "prompts/templates/pairwise-text.txt").read_text()
    (tmp_path / "own.txt").write_text(text.replace("Which answer", "WHICH answer"))
    inside = {"kind": "pairwise", "constitution": "ours.yaml", "text_template": "own.txt", "logprobs": False}
    (tmp_path / "panel.yaml").write_text(json.dumps({"kind": "jury", "judges": [inside, "own.py:words"]}))
    monkeypatch.chdir("/")
    assert check_judge(str(tmp_path / "panel.yaml"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "jury", "judges": []}, "judges"),
        ({"kind": "jury", "judges": [3]}, "3 is no judge"),
        ({"kind": "jury", "judges": ["pairwise", "pointwise"], "weights": [1]}, "1 weights for 2 judges"),
        ({"kind": "jury", "judges": ["pairwise"], "weights": [0]}, "weights"),
        ({"kind": "jury", "judges": ["mine.yaml"]}, "sits on itself"),
        ({"kind": "function", "function": "nothing"}, "FILE.py:FUNCTION"),
        ({"kind": "listwise", "shown": 1}, "shown"),
        ({"kind": "recorded", "verdicts": "gone.jsonl"}, "gone.jsonl"),
        ({"kind": "rules", "rules": [{"rule": "length"}]}, "prefer"),
        ({"kind": "reward", "model": "no/where/at-all"}, "no/where"),
    ],
)
def test_a_wrong_spec_is_refused(tmp_path, spec, said):
    (tmp_path / "mine.yaml").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=said):
        resolve(str(tmp_path / "mine.yaml"), model="fake/oracle", constitution=None)


def first_shown(prompt, candidates):
    return [1.0, *[0.0] * (len(candidates) - 1)]


def by_place_in_id(prompt, candidates):
    return [float(c.id.rpartition("/")[2]) for c in candidates]


class Counting:
    """A judge that remembers how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, prompt, candidates):
        self.times += 1
        return [len(c.text) + self.times for c in candidates]


def all_fail(prompt, candidates):
    raise ValueError("nothing to say")


def biased_pair(prompt, candidates):
    return [len(candidates[0].text) + 20.0, float(len(candidates[1].text))]


biased_pair.arity = 2


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (first_shown, "swap symmetry"),
        (biased_pair, "swap symmetry"),
        (by_place_in_id, "ids, not positions"),
        (Counting(), "batch equals single"),
        (all_fail, "readable"),
    ],
)
def test_a_judge_that_does_not_hold_is_told_what_was_seen(judge, said):
    with pytest.raises(AssertionError, match=said):
        check_judge(judge)


def test_a_judge_that_fails_from_the_start_says_why():
    examples = [{"prompt": f"Question {k}?", "candidates": ["one", "two"]} for k in range(8)]
    with pytest.raises(AssertionError, match="nothing to say"):
        check_judge(all_fail, examples=examples)


def test_an_llm_judge_whose_template_swaps_the_letters_does_not_hold(tmp_path):
    """The template says A where it means the second answer: swap symmetry holds, and the oracle's best loses."""
    text = (data_dir() / "prompts/templates/pairwise-text.txt").read_text()
    (tmp_path / "swapped.txt").write_text(text.replace("A: first, B: second", "A: second, B: first"))
    spec = {"kind": "pairwise", "logprobs": False, "text_template": str(tmp_path / "swapped.txt")}
    (tmp_path / "swapped.yaml").write_text(json.dumps(spec))
    with pytest.raises(AssertionError, match=r"1 of 7:\n  the oracle's best wins"):
        check_judge(str(tmp_path / "swapped.yaml"))


def test_examples_of_ones_own_are_used():
    seen = []

    def judge(prompt, candidates):
        seen.append(prompt.text)
        return [float(len(c.text)) for c in candidates]

    check_judge(judge, examples=[{"prompt": "Only this.", "candidates": ["one", "three"]}])
    assert set(seen) == {"Only this.", "Name a colour."} and all(row["candidates"] for row in EXAMPLES)
    assert not list(Path().glob("rlaif-*"))
