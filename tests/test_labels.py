"""A judge against the labels in a file: every labelled pair is counted once, and the interval is as wide as it has to be."""

from __future__ import annotations

import json
import math
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from helpers import read_rows, summary, write_rows
from hypothesis import given
from hypothesis import strategies as st

import rlaif
from rlaif.errors import InputError
from rlaif.intervals import ClusteredRate, wilson
from rlaif.labels import Agreement
from rlaif.ranking import bradley_terry
from rlaif.types import Candidate, Prompt, Record, Verdict

LENGTH = "judges/longest.py:longest"
KINDS = ("agree", "disagree", "undecided", "no_verdict", "not_judged")


def record(scores: list[float | None], said: list[float] | None, *, texts: list[str] | None = None) -> Record:
    """A prompt with candidates that are labelled by `scores` and rated by a judge as `said`, None: unreadably."""
    words = texts or [f"answer number {k}" + "!" * k for k in range(len(scores))]
    candidates = [Candidate(f"p/{k}", text, score=score) for k, (text, score) in enumerate(zip(words, scores, strict=True))]
    shown = tuple(c.id for c in candidates if c.text)
    verdict = Verdict("j", shown, None if said is None else tuple(said), error=None if said else "no_verdict")
    return Record(Prompt("p", ({"role": "user", "content": "Why?"},)), tuple(candidates), (verdict,))


def compared(*records: Record) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    agreement, rows = Agreement(), []
    for one in records:
        (ranking,) = bradley_terry.rank([one], [[c.id for c in one.candidates if c.text]])
        rows += agreement.add(one, ranking)
    return agreement.numbers(), rows


def test_every_labelled_pair_has_one_end() -> None:
    found, rows = compared(
        record([1, 0], [2, 1]),
        record([1, 0], [1, 2]),
        record([1, 0], [3, 3]),
        record([1, 0], None),
        record([1, 0], [5], texts=["something", ""]),
        record([1, 1], [2, 1]),
        record([1, None], [2, 1]),
    )
    assert [found[kind] for kind in KINDS] == [1] * 5 and (found["prompts"], found["pairs"]) == (5, 5)
    assert found["agreement"] == 0.5 and len(rows) == 1
    assert rows[0]["chosen"][0]["content"] == "answer number 1!" and (rows[0]["label_chosen"], rows[0]["label_rejected"]) == (
        0,
        1,
    )
    assert 0.5 < rows[0]["p_chosen"] < 1 and rows[0]["id"] == "p"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=5))
def test_a_judge_that_says_the_opposite_agrees_where_the_other_does_not(told: list[tuple[int, int]]) -> None:
    scores, said = [float(s) for s, _ in told], [float(j) for _, j in told]
    found, rows = compared(record(list(scores), said))
    other, _ = compared(record(list(scores), [-s for s in said]))
    assert (found["agree"], found["disagree"], found["undecided"]) == (other["disagree"], other["agree"], other["undecided"])
    pairs = [(a, b) for a, b in combinations(range(len(told)), 2) if scores[a] != scores[b]]
    assert found["pairs"] == len(pairs) == sum(found[kind] for kind in KINDS)
    assert found["agree"] == sum((scores[a] - scores[b]) * (said[a] - said[b]) > 0 for a, b in pairs)
    assert len(rows) == found["disagree"] and sum(b["pairs"] for b in found["by_p"]) == found["agree"] + found["disagree"]


def test_length_is_told_of_the_labels_and_of_the_judge() -> None:
    found, _ = compared(record([1, 0], [2, 1]), record([1, 0], [1, 2]), record([0, 1], [1, 2]))
    assert found["longer"] == {"pairs": 3, "labels": round(1 / 3, 6), "judge": round(2 / 3, 6)}


# Intervals


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (52, 120, 0.3481, 0.5227), (1, 1, 0.2065, 1.0)],
)
def test_wilson_s_interval(successes: int, n: int, low: float, high: float) -> None:
    """Against the closed form worked out by hand."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-4)
    z, p = 1.959964, successes / n
    for end in wilson(successes, n):
        assert abs(p - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-6)


def test_what_is_no_rate_is_refused() -> None:
    for successes, n in ((0, 0), (2, 1), (-1, 3)):
        with pytest.raises(ValueError, match="trials"):
            wilson(successes, n)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_with_one_trial_a_cluster_it_is_wilson_s(outcomes: list[bool]) -> None:
    rate = ClusteredRate()
    for outcome in outcomes:
        rate.add(int(outcome), 1)
    assert rate.interval() == pytest.approx(wilson(sum(outcomes), len(outcomes)))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=2, max_size=30))
def test_trials_that_all_say_the_same_count_once(clusters: list[tuple[bool, int]]) -> None:
    """Each cluster of one mind: the interval is at least as wide as that of as many trials as there are clusters."""
    rate, size = ClusteredRate(), clusters[0][1]
    for outcome, _ in clusters:
        rate.add(size * outcome, size)
    right = sum(outcome for outcome, _ in clusters)
    low, high = wilson(right, len(clusters))
    found = rate.interval()
    assert found is not None and found[0] <= low + 0.02 and found[1] >= high - 0.02


def test_no_trial_no_interval() -> None:
    assert ClusteredRate().interval() is None and ClusteredRate().rate is None


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Pairs of a prompt that lean one way together: the plain interval misses far too often, this one does not."""
    random.seed(5)
    held = plain = 0
    runs = 400
    for _ in range(runs):
        rate = ClusteredRate()
        for _ in range(60):
            p = random.choice((0.4, 0.95))
            rate.add(sum(random.random() < p for _ in range(21)), 21)
        low, high = rate.interval() or (0, 0)
        held += low <= 0.675 <= high
        low, high = wilson(rate.successes, rate.trials)
        plain += low <= 0.675 <= high
    assert 0.92 <= held / runs <= 0.98 and plain / runs < 0.75


# Runs


def pairs_file(path: Path) -> Path:
    rows = [
        {"prompt": f"Question {k}?", "chosen": f"reply {k}" + " more" * (k % 3), "rejected": f"other {k} more"}
        for k in range(9)
    ]
    return write_rows(path, rows)


def test_a_preference_file_is_judged_again(tmp_path: Path) -> None:
    path, out = pairs_file(tmp_path / "dpo.jsonl"), tmp_path / "run"
    said = rlaif.judge(path, judge=LENGTH, out=out, compare_labels=True).wait()["labels"]
    assert (said["pairs"], said["prompts"], said["agree"], said["disagree"], said["undecided"]) == (9, 9, 3, 3, 3)
    assert said["agreement"] == 0.5 and said["interval"] == [round(end, 6) for end in wilson(3, 6)]
    assert said == summary(out)["labels"]
    rows = read_rows(out / "disagreements.jsonl")
    assert [row["prompt"][0]["content"] for row in rows] == ["Question 0?", "Question 3?", "Question 6?"]
    assert all(row["chosen"][0]["content"].startswith("other") and row["label_rejected"] == 1.0 for row in rows)
    content = (out / "disagreements.jsonl").read_bytes()
    again = rlaif.judge(path, judge=LENGTH, out=out, compare_labels=True).wait()
    assert (again["labels"], again["calls"]["judge"]) == (said, 0) and (out / "disagreements.jsonl").read_bytes() == content
    assert "labels" not in rlaif.judge(path, judge=LENGTH, out=out).wait() and not (out / "disagreements.jsonl").exists()


def test_a_run_s_own_pairs_are_judged_again(tmp_path: Path) -> None:
    rlaif.judge(pairs_file(tmp_path / "p.jsonl"), judge=LENGTH, out=tmp_path / "one").wait()
    again = rlaif.judge(tmp_path / "one" / "dpo.jsonl", judge=LENGTH, out=tmp_path / "two", compare_labels=True).wait()
    assert (again["labels"]["agree"], again["labels"]["disagree"], again["labels"]["agreement"]) == (6, 0, 1.0)
    assert (tmp_path / "two" / "disagreements.jsonl").read_bytes() == b""
    shortest = "judges/shortest.py:shortest"
    worst = rlaif.judge(tmp_path / "one" / "dpo.jsonl", judge=shortest, out=tmp_path / "three", compare_labels=True).wait()
    assert worst["labels"]["agreement"] == 0.0


def test_without_labels_nothing_is_spent(tmp_path: Path) -> None:
    path, out = write_rows(tmp_path / "c.jsonl", [{"prompt": "Why?", "candidates": ["a", "bb"]}]), tmp_path / "run"
    for source in (path, [{"prompt": "Why?", "candidates": [{"text": "a", "score": 1}, {"text": "bb", "score": 1}]}]):
        with pytest.raises(InputError, match="--compare-labels"):
            rlaif.judge(source, judge=LENGTH, out=out, compare_labels=True).wait()
        assert not out.exists()
        with pytest.raises(InputError, match="--compare-labels"):
            rlaif.judge(source, judge=LENGTH, out=out, compare_labels=True).dry_run()
    rlaif.judge(path, judge=LENGTH, out=out).wait()
    with pytest.raises(InputError, match="--compare-labels"):  # the file is known, and not read again
        rlaif.judge(path, judge=LENGTH, out=out, compare_labels=True).wait()
    with pytest.raises(InputError, match="goes with"):
        rlaif.generate(["Why?"], policy="fake/oracle", out=out, compare_labels=True)


def test_a_changed_label_is_a_changed_candidate(tmp_path: Path) -> None:
    """Judges may read `c.score`: what they said of another score is no longer true."""
    row = {"id": "x", "prompt": "Why?", "response_a": "a", "response_b": "bb"}
    rlaif.judge([row | {"gold": "B"}], judge=LENGTH, out=tmp_path).wait()
    for changed in (row | {"gold": "A"}, row):
        with pytest.raises(InputError, match="candidates changed"):
            rlaif.judge([changed], judge=LENGTH, out=tmp_path).wait()


# Rows that were left out


def test_every_row_ends_in_a_pair_or_in_a_reason_also_on_a_resume(tmp_path: Path) -> None:
    def turns(prompt: str, answer: str) -> str:
        return f"\n\nHuman: {prompt}\n\nAssistant: {answer}"

    rows = [{"chosen": turns("One?", "a"), "rejected": turns("One?", "bb")}] * 2
    rows += [{"chosen": turns("Two?", "a"), "rejected": turns("Three?", "bb")}]
    rows += [{"chosen": turns("Four?", "a"), "rejected": turns("Four?", "b")}]
    path, out = write_rows(tmp_path / "hh.jsonl", rows), tmp_path / "run"
    for number in range(2):
        found = rlaif.judge(path, judge=LENGTH, out=out, dedupe=True).wait()
        assert found["left_out"] == {"different_prompts": 1, "duplicate": 1} and found["dropped"] == {"tied": 1}
        assert found["pairs"] + sum(found["dropped"].values()) + sum(found["left_out"].values()) == len(rows)
        assert found["calls"]["judge"] == (2 if number == 0 else 0)
    write_rows(path, [*rows, rows[0]])
    assert rlaif.judge(path, judge=LENGTH, out=out, dedupe=True).wait()["left_out"]["duplicate"] == 2
    assert rlaif.generate(["Why?"], policy="fake/oracle", n=2, out=tmp_path / "other").wait()["left_out"] == {}


def test_another_mapping_reads_anew_and_a_change_names_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": "One?", "question": "Two?", "answer": "2"}])
    settings: dict[str, Any] = {"policy": "fake/oracle", "n": 2, "out": tmp_path / "run"}
    rlaif.generate(path, prompt_field="question", **settings).wait()
    assert [row["prompt"][0]["content"] for row in read_rows(tmp_path / "run" / "dpo.jsonl")] == ["Two?"]
    with pytest.raises(InputError, match=r"prompt 1 .*the earlier run was made with --prompt-field question\)"):
        rlaif.generate(path, **settings).wait()
    with pytest.raises(InputError, match=r"reference changed.*the earlier run was made without --reference-field\)"):
        rlaif.generate(path, prompt_field="question", reference_field="answer", **settings).wait()
    again = rlaif.generate(path, prompt_field="question", **settings).wait()
    assert again["calls"]["policy"] == 0 and json.loads((tmp_path / "run" / "summary.json").read_text())["pairs"] == 1
