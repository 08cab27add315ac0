"""Planted checks: a judge that is of no use stops the run before the run pays for it, and one that is sound costs ten calls."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path

import pytest
from helpers import rlaif, summary, write_prompts, write_rows

import rlaif as library
from rlaif.errors import InputError, StopRun
from rlaif.judges.checks import EVERY, Checks, Outcome, Planted, planted_gold
from rlaif.ranking.schedule import Every
from rlaif.types import Candidate, Prompt, Record, Verdict

REAL, WORSE = "It is plain that the answer is forty-two, as the table shows.", "zzz"


class Scripted:
    """A judge that says what `say` makes of (better text?, the first text, the second)."""

    name, digest = "scripted", "0"

    def __init__(self, say, arity: int | None = 2, scale: str = "vote") -> None:
        self.say, self.arity, self.scale, self.asked = say, arity, scale, 0
        self.schedule = Every(arity)

    async def __call__(self, prompt, shown, among) -> Verdict:
        self.asked += 1
        scores = self.say(*[c.text for c in shown])
        ids = tuple(c.id for c in shown)
        if isinstance(scores, str):
            return Verdict(self.name, ids, None, error=scores)
        return Verdict(self.name, ids, tuple(scores), self.scale)

    def stop(self, reason) -> None: ...

    async def close(self) -> None: ...


def sound(text: str) -> float:
    """Sentences that end like one beat the rest; no answer, and one that gives orders, are the worst."""
    words = text.split()
    fine = bool(words) and "###" not in text and text.endswith(".") and text[0].isupper() and not words[0].startswith("Egg")
    return 1.0 if fine else 0.0


def better(one: str, other: str) -> tuple[float, float]:
    return (1.0, 0.0) if sound(one) > sound(other) else (0.0, 1.0) if sound(one) < sound(other) else (0.5, 0.5)


def longer(one: str, other: str) -> tuple[float, float]:
    return (1.0, 0.0) if len(one) > len(other) else (0.0, 1.0)


def run_before(judge: Scripted, gold=()) -> Checks:
    checks = Checks(judge, judge, gold)
    asyncio.run(checks.before())
    return checks


@pytest.mark.parametrize(
    ("say", "arity", "said"),
    [
        (better, 2, None),
        (longer, 2, None),  # length alone is a poor judge, and right more often than not: it is not for this check to tell
        (lambda one, other: (sound(one), sound(other)), None, None),
        (lambda one: (sound(one),), 1, None),
        (lambda one, other: (1.0, 0.0), 2, "shown first"),
        (lambda one, other: (0.0, 1.0), 2, "shown second"),
        (lambda one, other: (0.5, 0.5), 2, "equal"),
        (lambda one, other: better(other, one), 2, "preferred garbage"),
        (lambda one: (5.0,), 1, "the same score"),
        (lambda one: (-sound(one),), 1, "preferred garbage"),
        (lambda one, other: "no_verdict: it said nothing", 2, "could be read .*it said nothing"),
    ],
)
def test_what_is_of_no_use_is_known_before_the_run(say, arity, said):
    judge = Scripted(say, arity)
    checks = run_before(judge)
    assert judge.asked <= 11
    if said is None:
        assert checks.degenerate is None
    else:
        assert checks.degenerate is not None and re.search(said, checks.degenerate), checks.degenerate


@pytest.mark.parametrize(("bias", "useful"), [(0.35, True), (0.0, True), (0.4999, False)])
def test_a_judge_that_leans_to_a_place_is_of_use_while_its_probabilities_follow_the_answers(bias, useful):
    def say(one: str, other: str) -> tuple[float, float]:
        strength = (0.5 - bias) * (sound(one) - sound(other))
        p = min(0.99, 0.5 + bias + strength)
        return p, 1.0 - p

    assert (run_before(Scripted(say, scale="probability")).degenerate is None) is useful


@pytest.mark.parametrize(("base", "slope"), [(4.0, 2.2), (8.0, 6.0), (-6.0, 3.0)])
def test_a_judge_that_always_names_one_place_and_is_right_by_its_probabilities_is_of_use(base, slope):
    """The fit takes the place out in log-odds, and so do the checks."""

    def say(one: str, other: str) -> tuple[float, float]:
        p = 1.0 / (1.0 + math.exp(-(base + slope * (sound(one) - sound(other)))))
        return p, 1.0 - p

    assert run_before(Scripted(say, scale="probability")).degenerate is None


@pytest.mark.parametrize("jitter", range(6))
def test_a_model_that_rates_everything_alike_but_for_noise_is_of_no_use(jitter):
    def say(one: str) -> tuple[float]:
        return (5.1 + 0.002 * (hash((one, jitter)) % 100) / 100,)

    judge = Scripted(say, 1)
    checks = Checks(judge, judge, rates_in_points=True)
    asyncio.run(checks.before())
    assert "the same score" in (checks.degenerate or "")


def test_a_judge_that_is_against_the_gold_is_of_no_use():
    gold = [Planted.of(f"g{k}", f"q{k}", WORSE, REAL) for k in range(20)]
    assert "gold" in (run_before(Scripted(better), gold).degenerate or "")
    mixed = [Planted.of(f"g{k}", f"q{k}", *((WORSE, REAL) if k % 5 < 2 else (REAL, WORSE))) for k in range(20)]
    assert run_before(Scripted(better), mixed).degenerate is None


def test_what_came_of_a_hijack_and_of_identical_answers_is_reported_and_stops_nothing():
    def fooled(one: str, other: str) -> tuple[float, float]:
        return (1.0, 0.0) if "System:" in one else (0.0, 1.0) if "System:" in other else better(one, other)

    checks = run_before(Scripted(fooled))
    report = checks.report()
    assert checks.degenerate is None and report["planted"]["hijack"] == "wrong"
    assert report["first_of_identical"] == 0.5 and report["planted"]["empty"] == "right"


def test_gold_rows_are_planted_and_counted(tmp_path):
    rows = [
        {"id": f"g{k}", "prompt": f"q{k}", "response_a": REAL, "response_b": WORSE, "gold": gold}
        for k, gold in enumerate(["A", "B", "tie", "A"])
    ]
    gold = planted_gold(str(write_rows(tmp_path / "gold.jsonl", rows)))
    assert [(p.better.text, p.worse.text) for p in gold] == [(REAL, WORSE), (WORSE, REAL), (REAL, WORSE)]
    assert run_before(Scripted(better), gold).report()["gold"] == {"right": 2, "wrong": 1}
    rows[1]["gold"] = "C"
    with pytest.raises(InputError, match="'C'"):
        planted_gold(str(write_rows(tmp_path / "wrong.jsonl", rows)))


def record(ordinal: int, verdicts=()) -> Record:
    prompt = Prompt(f"p{ordinal}", ({"role": "user", "content": "Why?"},), ordinal=ordinal)
    texts = ("One answer has these several words in it, as one says.", "Another one has other words, in another order.")
    candidates = tuple(Candidate(f"{prompt.id}/{k}", text) for k, text in enumerate(texts))
    made = [Verdict("scripted", tuple(candidates[k].id for k in order), scores) for order, scores in verdicts]
    return Record(prompt, candidates, tuple(made))


def test_a_judge_that_turns_bad_is_noticed_by_shuffled_answers():
    judge = Scripted(lambda one, other: (0.0, 1.0) if one.startswith(("One", "Another")) else (1.0, 0.0))
    checks = Checks(judge, judge)

    async def during() -> list[int]:
        asked = []
        for k in range(6):
            await checks.during(record(k * EVERY + EVERY - 1), allow_truncated=False)
            await checks.during(record(k * EVERY), allow_truncated=False)
            asked.append(judge.asked)
        return asked

    assert asyncio.run(during()) == [2, 4, 6, 8, 10, 12]
    assert "shuffled words" in (checks.degenerate or "") and checks.report()["shuffled"]["wrong"] == 6


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (lambda k: ((0.9, 0.1), (0.9, 0.1)), "named the first shown"),
        (lambda k: ((0.0, 1.0), (0.0, 1.0)), "named the second shown"),
        (lambda k: ((0.5, 0.5), (0.5, 0.5)), None),  # they may be equal: shuffled answers tell
        (lambda k: ((0.9, 0.1), (0.6 + 0.39 * (k % 2), 0.4 - 0.39 * (k % 2))), None),  # it leans, and it looks
        (lambda k: ((0.9, 0.1), (0.1, 0.9)) if k % 10 == 0 else ((0.9, 0.1), (0.9, 0.1)), None),
    ],
)
def test_a_judge_that_says_the_same_of_all_pairs_of_the_run_is_noticed_for_no_call(scores, said):
    judge = Scripted(better)
    checks = Checks(judge, judge)

    async def during() -> None:
        for k in range(240):
            one, other = scores(k)
            await checks.during(record(k * EVERY, [((0, 1), one), ((1, 0), other)]), allow_truncated=False)

    asyncio.run(during())
    assert judge.asked == 0
    assert (checks.degenerate is None) if said is None else (said in checks.degenerate)


# In a run


def go(tmp_path: Path, *more: object, expect: int = 0, judge: str = "fake/first"):
    prompts = write_prompts(tmp_path / "prompts.jsonl", 3)
    command = ("generate", prompts, "--policy", "fake/oracle", "--judge-model", judge, "--out", tmp_path / "out", *more)
    return rlaif(*command, expect=expect, RLAIF_CHECKS="1")


@pytest.mark.slow
def test_the_run_stops_after_the_checks_and_goes_on_when_the_judge_is_accepted(tmp_path):
    done = go(tmp_path, expect=3)
    assert "judge_degenerate" in done.stderr and "--accept-judge" in done.stderr and "shown first" in done.stderr
    said = summary(tmp_path / "out")
    assert said["state"] == "stopped" and said["stopped"]["kind"] == "judge_degenerate"
    assert said["calls"] == {"policy": 0, "judge": 0, "reused": 0} and said["checks"]["calls"]["judge"] == 11
    go(tmp_path, expect=3)
    assert summary(tmp_path / "out")["checks"]["calls"] == {"judge": 0, "reused": 11}
    go(tmp_path, "--accept-judge")
    said = summary(tmp_path / "out")
    assert said["state"] == "done" and said["checks"]["accepted"] and said["prompts"] == 3
    assert "shown first" in said["checks"]["judges"][0]["degenerate"]


@pytest.mark.slow
def test_a_sound_judge_is_checked_once_and_a_function_never(tmp_path):
    go(tmp_path, judge="fake/oracle")
    said = summary(tmp_path / "out")
    assert said["checks"]["calls"] == {"judge": 11, "reused": 0} and said["calls"]["judge"] == 3 * 8
    assert said["checks"]["judges"][0]["degenerate"] is None
    rlaif("doctor", tmp_path / "out")
    go(tmp_path, "--out", tmp_path / "plain", "--judge", "shortest.py:shortest")
    assert "checks" not in summary(tmp_path / "plain")


@pytest.mark.slow
def test_checks_can_be_left_out(tmp_path):
    go(tmp_path, "--no-checks")
    assert "checks" not in summary(tmp_path / "out")


def test_what_the_checks_cost_is_in_the_books(tmp_path, room):
    prompts = write_prompts(tmp_path / "prompts.jsonl", 2)
    run = library.generate(
        [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()],
        policy="fake/oracle",
        judge_model=room.model(),
        out=tmp_path / "out",
        checks=True,
        accept_judge=True,
        budget_tokens=10**6,
    )
    said = run.wait()
    asked = sum(e["judge"] for e in room.log())
    assert asked == said["calls"]["judge"] + said["checks"]["calls"]["judge"]
    assert said["tokens"]["prompt"] > sum(e["prompt_tokens"] for e in room.log() if "prompt_tokens" in e)


def test_a_judge_that_loses_its_log_probabilities_on_the_way_stops_the_run(tmp_path, room):
    """The first prompts are judged by probabilities; then the server, updated on the way, ignores the field."""
    rows = [{"id": f"p{k}", "prompt": f"q{k}", "candidates": ["quality 0.9", f"quality 0.1 {k}"]} for k in range(60)]
    run = library.judge(
        rows, judge="pairwise", judge_model=room.model(), out=tmp_path / "out", checks=True, concurrency=1, accept_judge=False
    )
    seen = 0
    with pytest.raises(StopRun, match="lost its log-probabilities") as stopped:
        for _ in run:
            seen += 1
            if seen == 10:
                room.set(logprobs="ignored")
    assert stopped.value.kind == "judge_degenerate"


def test_what_was_found_wrong_stays_so_until_the_judge_is_accepted_or_forgiven(tmp_path, room):
    """The judge is sound on what is planted and names the first shown of the run's own answers; the same command again
    has nothing left to look at, and does not go on as if nothing had been seen."""
    rows = [{"id": f"p{k}", "prompt": f"q{k}", "candidates": ["quality 0.9", f"quality 0.1 {k}"]} for k in range(520)]

    def run(**more):
        given = {"judge": "pairwise", "judge_model": room.model(), "out": tmp_path / "out", "checks": True, **more}
        return library.judge(rows, **given)

    first = run()
    with pytest.raises(StopRun, match="the last 2"):
        for place, _ in enumerate(first):
            if place == 0:
                room.set(judge="first")
    room.set()
    with pytest.raises(StopRun, match="the last 2") as again:
        run().wait()
    assert again.value.kind == "judge_degenerate" and not (tmp_path / "out" / "dpo.jsonl").exists()
    said = run(accept_judge=True).wait()
    assert "the last 2" in said["checks"]["judges"][0]["degenerate"] and (tmp_path / "out" / "dpo.jsonl").exists()
    assert run(retry_failed=True).wait()["state"] == "done"


@pytest.mark.slow
def test_a_finished_directory_still_says_what_the_checks_found(tmp_path):
    go(tmp_path, "--accept-judge")
    before = summary(tmp_path / "out")["checks"]["judges"]
    go(tmp_path, "--accept-judge")
    assert summary(tmp_path / "out")["checks"]["judges"] == before and before[0]["planted"]


def test_a_judge_that_rates_everything_alike_is_noticed():
    judge = Scripted(lambda one: (5.0,), 1)
    checks = Checks(judge, judge)

    async def during() -> None:
        for k in range(120):
            one = record(k * EVERY)
            rated = [Verdict("scripted", (c.id,), (5.0,)) for c in one.candidates]
            await checks.during(Record(one.prompt, one.candidates, tuple(rated)), allow_truncated=False)

    asyncio.run(during())
    assert "gave 5 to each of the last 200 answers" in (checks.degenerate or "")


def test_a_judge_that_turns_bad_late_is_noticed_soon():
    judge = Scripted(better)
    checks = Checks(judge, judge)

    async def during() -> int:
        for k in range(3000):
            good, bad = [((0, 1), (1.0, 0.0)), ((1, 0), (0.0, 1.0))], [((0, 1), (1.0, 0.0)), ((1, 0), (1.0, 0.0))]
            await checks.during(record(k * EVERY, good if k < 1000 else bad), allow_truncated=False)
            if checks.degenerate:
                return k
        return -1

    assert 1000 < asyncio.run(during()) < 1250


def test_results_of_an_outcome():
    assert Outcome("x", 0.7, (0, 1)).result == "right" and Outcome("x", 0.2, (1, 0)).result == "wrong"
    assert Outcome("x", 0.55, (0, 0)).result == "undecided" and Outcome("x", 0.9, (0, 0)).result == "right"
    assert Outcome("x", None, ()).result == "unreadable" and Outcome("x", 0.5, (None, None)).result == "undecided"
    assert Planted.of("i", "q", "a", "b").prompt.ordinal == -1
