"""Every shipped judge holds what `check_judge` asks of one, and a judge that does not is told so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.judges.llm import KINDS
from rlaif.templates import data_dir, read_yaml
from rlaif.testing import EXAMPLES, check_judge

JUDGES = data_dir() / "judges"
LLM = [p.stem for p in sorted(JUDGES.glob("*.yaml")) if read_yaml(p)["kind"] in KINDS]
FUNCTIONS = [f"judges/{p.name}:{p.stem}" for p in sorted(JUDGES.glob("*.py"))]


@pytest.mark.parametrize("judge", [*LLM, *FUNCTIONS])
def test_every_shipped_judge_holds(judge):
    held = check_judge(judge)
    assert ("the oracle's best wins" in held) == (judge in LLM) and len(held) >= 6


@pytest.mark.parametrize("principles", ["sampled", "each"])
@pytest.mark.parametrize("judge", ["pairwise", "pointwise", "listwise"])
def test_llm_judges_hold_in_every_mode_of_the_constitution(judge, principles):
    assert check_judge(judge, principles=principles, constitution="reasoning")


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
