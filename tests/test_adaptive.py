"""The judge `adaptive` in real runs against the real test server: what it asks, what that costs, and what comes of it."""

from __future__ import annotations

import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import Room, committed, quality, read_rows, start, stored_records, write_rows

import rlaif as library
from rlaif.errors import InputError, StopRun
from rlaif.judges import AdaptiveSpec, JurySpec, resolve
from rlaif.ranking.adaptive import Adaptive, default_calls
from rlaif.types import Record

pytestmark = pytest.mark.slow

LOGPROBS: dict[str, dict[str, Any]] = {
    "given": {},
    "ignored": {"logprobs": "ignored"},
    "vague": {"logprobs": "vague"},
    "held to the options": {"logprobs": "vague", "owner": "vllm"},
    "refused": {"refuses": "logprobs"},
}


def rows(n: int, count: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with n answers of known quality."""
    draw = random.Random(seed)
    return [
        {
            "id": f"p{i}",
            "prompt": f"Question {i}: why?",
            "candidates": [f"Answer {k}, of quality {draw.random():.3f}." for k in range(n)],
        }
        for i in range(count)
    ]


def run(room: Room, out: Path, n: int, count: int = 3, **more: Any) -> dict[str, Any]:
    """The summary of answers judged by the judge that is there by default, unless another is named."""
    judged = {"judge": "adaptive", "judge_model": room.model(), "out": out, "checks": False} | more
    return library.judge(rows(n, count), **judged).wait()


def form(body: dict[str, Any]) -> str:
    """How a request asks: rate, pair or rank; with ? if for the bare option."""
    text = body["messages"][-1]["content"]
    kind = "rank" if "[[B > A" in text else "rate" if "from 1 (" in text else "pair"
    return kind + "?" * bool(body.get("logprobs"))


def asked(room: Room) -> dict[str, Counter[str]]:
    """Of each prompt, how many requests of each form were answered."""
    found: dict[str, Counter[str]] = {}
    for entry in room.log():
        if entry["status"] == 200:
            (prompt,) = re.findall(r"Question \d+", entry["body"]["messages"][-1]["content"])
            found.setdefault(prompt, Counter())[form(entry["body"])] += 1
    return found


def duels(record: Record) -> list[set[int]]:
    """The ranks by quality, 0 for the best, of those compared in each duel."""
    ranked = sorted(record.candidates, key=lambda c: -quality(c.text))
    place = {c.id: rank for rank, c in enumerate(ranked)}
    return [{place[c] for c in v.shown} for v in record.verdicts if len(v.shown) == 2][::2]


# What is asked


@pytest.mark.parametrize(
    ("logprobs", "n", "forms"),
    [
        ("given", 8, {"rate?": 8, "pair?": 6}),
        ("given", 3, {"pair?": 6}),
        ("ignored", 8, {"rate?": 1, "rank": 2, "pair": 6}),
        ("ignored", 2, {"pair?": 1, "pair": 2}),
        ("vague", 8, {"rate?": 1, "rank": 2, "pair": 6}),
        ("held to the options", 8, {"rate?": 16, "pair?": 12}),
        ("refused", 8, {"rank": 2, "pair": 6}),
        ("ignored", 30, {"rate?": 1, "rank": 4, "pair": 10}),
    ],
)
def test_what_is_asked_of_a_prompt(room: Room, tmp_path: Path, logprobs: str, n: int, forms: dict[str, int]) -> None:
    room.set(**LOGPROBS[logprobs])
    said = run(room, tmp_path, n)
    found = asked(room)
    assert len(found) == 3
    for counts in found.values():
        assert {kind: counts[kind] for kind in (*forms, *counts) if not kind.startswith("pair")} == {
            kind: count for kind, count in forms.items() if not kind.startswith("pair")
        }
        assert all(counts[kind] <= forms.get(kind, 0) for kind in counts), "duels that change nothing are left out"
    assert (said["pairs"], said["no_verdict_rate"]) == (3, 0.0)
    for record, row in zip(stored_records(tmp_path), read_rows(tmp_path / "dpo.jsonl"), strict=True):
        best = max(record.candidates, key=lambda c: quality(c.text))
        assert row["chosen"][0]["content"] == best.text and row["judge"] == "adaptive:openai/m"


@pytest.mark.parametrize("logprobs", LOGPROBS)
def test_no_prompt_takes_more_calls_than_allowed(new_room: Callable[[], Room], tmp_path: Path, logprobs: str) -> None:
    for most in (2, 3, 4, 7, 9, 20):
        room = new_room()
        room.set(**LOGPROBS[logprobs])
        said = run(room, tmp_path / str(most), 6, 2, judge_calls=most)
        found = [counts.total() for counts in asked(room).values()]
        assert len(found) == 2 and max(found) <= most, (most, found)
        assert sum(found) == said["calls"]["judge"]
        for record, total in zip(stored_records(tmp_path / str(most)), found, strict=True):
            assert total - 1 <= sum(verdict.calls for verdict in record.verdicts) <= total, "None may have cost one"
            compared = {verdict.shown for verdict in record.verdicts if len(verdict.shown) == 2}
            assert compared == {shown[::-1] for shown in compared}, "there is no half of a duel"
        assert most >= 6 or not any(counts["rate?"] for counts in asked(room).values()), "not all could be rated"
        if most >= 8:
            assert min(found) >= most // 2, "what is allowed is made use of"


@pytest.mark.parametrize("judge", ["pairwise", "swiss", "elimination", "random-pair", "pointwise", "listwise"])
def test_other_judges_take_no_more_calls_than_allowed_either(new_room: Callable[[], Room], tmp_path: Path, judge: str) -> None:
    for logprobs, most in (("ignored", 7), ("refused", 12), ("held to the options", 13)):
        room, out = new_room(), tmp_path / f"{logprobs}-{most}"
        room.set(**LOGPROBS[logprobs])
        run(room, out, 5, 2, judge=judge, judge_calls=most)
        found = [counts.total() for counts in asked(room).values()]
        assert 2 <= max(found) <= most, (logprobs, most, found)


def test_what_is_shipped_is_what_is_measured() -> None:
    (plan,) = resolve("adaptive", model="fake/oracle", constitution=None)
    (made,) = resolve(AdaptiveSpec(), model="fake/oracle", constitution=None)
    assert plan.schedule == made.schedule == Adaptive()


def test_what_may_not_be_is_said_before_anything_is_spent(room: Room, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"judge-calls = 1: .*2"):
        run(room, tmp_path, 4, judge_calls=1)
    for settings in ({"calls": 1}, {"target": 0.5}, {"target": 1.1}):
        (tmp_path / "own.yaml").write_text("kind: adaptive\n" + "".join(f"{k}: {v}\n" for k, v in settings.items()))
        with pytest.raises(InputError, match=f"own.*{next(iter(settings))}"):
            run(room, tmp_path / "out", 4, judge=str(tmp_path / "own.yaml"))
    assert room.count() == 0


def test_more_answers_and_more_calls_buy_only_what_is_new(room: Room, tmp_path: Path) -> None:
    def sampled(n: int, most: int | None) -> dict[str, Any]:
        given = {"policy": room.model(), "n": n, "judge_calls": most, "out": tmp_path, "checks": False}
        return library.generate(["Question 1: why?", "Question 2: how?"], **given).wait()

    for n, most in ((4, None), (6, None), (8, None), (8, 20), (8, 30), (8, 56)):
        said = sampled(n, most)
        assert room.repeats() == 0 and said["pairs"] == 2
    bought = room.count()
    assert sampled(8, None)["calls"] == {"policy": 0, "judge": 0, "reused": 3 * 2 + 2 * default_calls(8)}
    assert room.count() == bought


def test_a_dry_run_says_at_least_what_is_asked(new_room: Callable[[], Room], tmp_path: Path) -> None:
    for n in (2, 8):
        for most in (None, 9):
            for judge in ("adaptive", "swiss"):
                room, out = new_room(), tmp_path / f"{n}-{most}-{judge}"
                given = {"judge": judge, "judge_model": room.model(), "judge_calls": most, "checks": False, "out": out}
                planned = library.judge(rows(n), **given).dry_run()["judge_calls"]
                assert room.count() == 0
                assert 3 * 2 <= run(room, out, n, judge=judge, judge_calls=most)["calls"]["judge"] <= planned
                assert most or judge == "swiss" or planned == 3 * default_calls(n)


# What it is for


def test_best_of_n_compares_those_who_may_be_the_best(room: Room, tmp_path: Path) -> None:
    prompts = [f"Question {i}: why?" for i in range(6)]
    library.best_of_n(prompts, policy=room.model(), n=8, out=tmp_path / "best").wait()
    library.generate(prompts, policy=room.model(), n=8, out=tmp_path / "pair").wait()
    best = [ranks for record in stored_records(tmp_path / "best") for ranks in duels(record)]
    pair = [ranks for record in stored_records(tmp_path / "pair") for ranks in duels(record)]
    assert all(min(ranks) <= 2 for ranks in best) and {0, 1} in best
    assert any(min(ranks) >= 5 for ranks in pair) and any(max(ranks) <= 2 for ranks in pair)
    for row in read_rows(tmp_path / "best" / "sft.jsonl"):
        record = next(r for r in stored_records(tmp_path / "best") if r.prompt.id == row["id"])
        assert quality(row["completion"][0]["content"]) == max(quality(c.text) for c in record.candidates)
    assert library.generate(prompts, policy=room.model(), n=8, out=tmp_path / "best", select="best-random").wait()["pairs"] == 6
    assert [r.verdicts for r in stored_records(tmp_path / "best")] != [r.verdicts for r in stored_records(tmp_path / "pair")]


def test_numbers_of_a_run_are_those_of_its_duels(room: Room, tmp_path: Path) -> None:
    said = run(room, tmp_path, 8, 10)
    assert (said["flip_rate"], said["no_verdict_rate"], said["first_shown_rate"]) == (0.0, 0.0, 0.5)
    assert said["judges"] == ["adaptive:openai/m"] and said["dropped"] == {}
    room.set(judge="first")
    said = run(room, tmp_path / "first", 8, 10)
    assert (said["flip_rate"], said["first_shown_rate"]) == (1.0, 1.0)


@pytest.mark.parametrize(("n", "logprobs"), [(2, "given"), (4, "ignored"), (8, "given"), (8, "ignored")])
def test_a_judge_that_says_nothing_makes_no_labels(new_room: Callable[[], Room], tmp_path: Path, n: int, logprobs: str) -> None:
    for judge, why in (("first", "tied"), ("tie", "tied"), ("unreadable", "no_verdict"), ("contradictory", "no_verdict")):
        room, out = new_room(), tmp_path / judge
        room.set(judge=judge, **LOGPROBS[logprobs])
        said = run(room, out, n)
        assert (said["pairs"], said["dropped"]) == (0, {why: 3}), judge
        assert judge in ("first", "tie") or (said["no_verdict_rate"], said["flip_rate"]) == (1.0, None)


def test_planted_checks_stop_one_that_always_names_the_first(room: Room, tmp_path: Path) -> None:
    room.set(judge="first")
    with pytest.raises(StopRun, match=r"adaptive:openai/m.*shown first"):
        run(room, tmp_path, 8, 50, checks=True)
    assert room.count() < 20, "before the run has paid for anything"
    room.set()
    fine = run(room, tmp_path / "fine", 8, checks=True)
    assert fine["checks"]["judges"][0]["degenerate"] is None and fine["pairs"] == 3


# The same whatever happens


@pytest.mark.parametrize(
    ("judge", "logprobs"), [("adaptive", "given"), ("adaptive", "ignored"), ("adaptive", "refused"), ("pairwise", "refused")]
)
def test_concurrency_changes_no_byte(new_room: Callable[[], Room], tmp_path: Path, logprobs: str, judge: str) -> None:
    files = []
    for concurrency in (1, 64):
        room, out = new_room(), tmp_path / str(concurrency)
        room.set(**LOGPROBS[logprobs])
        run(room, out, 6, 6, judge=judge, judge_calls=14, concurrency=concurrency)
        files.append((out / "dpo.jsonl").read_bytes())
        files.append([(r.prompt.id, r.verdicts) for r in stored_records(out)])
    assert files[:2] == files[2:] and files[0]


@pytest.mark.parametrize("judge", ["adaptive", "swiss", "elimination"])
def test_answers_on_file_change_nothing(room: Room, tmp_path: Path, judge: str) -> None:
    """What is asked is the same, whether the answers before it come from the endpoint or at once from the ledger."""
    room.set(logprobs="ignored")
    run(room, tmp_path / "new", 12, judge=judge, judge_calls=9)
    for most in (8, 9):
        run(room, tmp_path / "again", 12, judge=judge, judge_calls=most)
    new, again = ([record.verdicts for record in stored_records(tmp_path / name)] for name in ("new", "again"))
    assert new == again and sum(len(verdicts) for verdicts in new) > 9


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_questions(new_room: Callable[[], Room], tmp_path: Path) -> None:
    room, whole = new_room(), new_room()
    run(whole, tmp_path / "whole", 6, 12)
    room.set(latency_s=0.02)
    command = ("judge", write_rows(tmp_path / "rows.jsonl", rows(6, 12)), "--judge", "adaptive", "--concurrency", 4)
    with start(*command, "--judge-model", room.model(), "--out", tmp_path / "run") as process:
        while process.poll() is None and room.count() < 70:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    while room.in_flight():
        time.sleep(0.01)
    bought, before = committed(tmp_path / "run"), room.count()
    room.set()
    library.judge(str(tmp_path / "rows.jsonl"), judge="adaptive", judge_model=room.model(), out=tmp_path / "run").wait()
    assert len(bought) > 40 and not bought & {entry["id"] for entry in room.log()[before:]}
    assert (tmp_path / "run" / "dpo.jsonl").read_bytes() == (tmp_path / "whole" / "dpo.jsonl").read_bytes()
    assert whole.count() <= room.count() <= whole.count() + 4


# With others, and in other ways


def test_a_jury_may_hold_one(room: Room, tmp_path: Path) -> None:
    jury = JurySpec(judges=["adaptive", "pairwise", AdaptiveSpec(constitution="honest", calls=5)], weights=[2, 1, 1])
    said = run(room, tmp_path, 5, judge=jury)
    records = stored_records(tmp_path)
    counts = [Counter((v.judge, v.weight) for v in record.verdicts) for record in records]
    assert said["pairs"] == 3 and len(said["judges"]) == 3
    for found in counts:
        by_weight = sorted((weight, count) for (_, weight), count in found.items())
        assert by_weight[-1][0] == 1.5 and by_weight[-1][1] <= default_calls(5)
        assert sorted(count for weight, count in by_weight if weight == 0.75) == [5, 20]
    capped = run(room, tmp_path / "capped", 5, judge=jury, judge_calls=6)
    assert all(Counter(v.judge for v in r.verdicts).most_common(1)[0][1] <= 6 for r in stored_records(tmp_path / "capped"))
    assert capped["pairs"] == 3


@pytest.mark.parametrize("principles", ["each", "sampled"])
def test_one_principle_at_a_time(room: Room, tmp_path: Path, principles: str) -> None:
    said = run(room, tmp_path, 6, constitution="hhh", principles=principles)
    for record in stored_records(tmp_path):
        named = {v.principle for v in record.verdicts}
        assert None not in named and said["pairs"] == 3
        if principles == "each":
            assert all(sum(v.principle == one for v in record.verdicts) <= default_calls(6) for one in named) and len(named) > 1
        else:
            rated = {v.principle for v in record.verdicts if len(v.shown) == 1}
            assert len(rated) == 1, "ratings that are set against each other are by one principle"


def test_reasons_and_a_reference_are_asked_for_in_every_form(room: Room, tmp_path: Path) -> None:
    given = [row | {"reference": "Because of 42."} for row in rows(6)]
    spec = AdaptiveSpec(reason=True, reference=True)
    library.judge(given, judge=spec, judge_model=room.model(), out=tmp_path / "run", checks=False).wait()
    texts = [entry["body"]["messages"][-1]["content"] for entry in room.log()]
    assert all("Because of 42." in text and "reason" in text for text in texts)
    assert all(counts.keys() == {"rank", "pair"} and counts["rank"] == 2 for counts in asked(room).values())
    assert all(v.reason for record in stored_records(tmp_path / "run") for v in record.verdicts)
    room.set()
    before = room.count()
    rated = AdaptiveSpec(reference=True)
    library.judge(given, judge=rated, judge_model=room.model(), out=tmp_path / "rated", checks=False).wait()
    texts = [entry["body"]["messages"][-1]["content"] for entry in room.log()[before:]]
    assert len(texts) >= 18 and all("Because of 42." in text for text in texts)


def test_two_constitutions_are_set_side_by_side(room: Room, tmp_path: Path) -> None:
    said = run(room, tmp_path, 6, constitution="helpful", against="harmless")["against"]
    assert (said["prompts"], said["pairs"], said["same"]) == (3, 45, 45)
    assert 3 * 6 <= said["calls"]["judge"] <= 3 * default_calls(6)


def test_a_failing_endpoint_costs_verdicts_and_no_prompt(room: Room, tmp_path: Path) -> None:
    """It refuses whatever shows one of the answers: the others are made use of."""
    room.set(failure="echo_400", fail_when="Answer 3, of")
    said = run(room, tmp_path, 8, 6)
    assert (said["prompts"], said["pairs"]) == (6, 6)
    for record in stored_records(tmp_path):
        shown = [v.shown for v in record.verdicts if v.scores is not None]
        assert len(set(shown)) == len(shown) and not any(record.candidates[3].id in one for one in shown)
        assert {c for one in shown for c in one} == {c.id for c in record.candidates if c is not record.candidates[3]}


def by_form(records: Sequence[Record]) -> Counter[int]:
    return Counter(len(v.shown) for record in records for v in record.verdicts)


def test_the_fake_models_take_every_form(tmp_path: Path) -> None:
    for name, forms in (("oracle", {1: 12}), ("oracle-text", {6: 4})):
        library.judge(rows(6, 2), judge="adaptive", judge_model=f"fake/{name}", out=tmp_path / name).wait()
        found = by_form(stored_records(tmp_path / name))
        assert forms.items() <= found.items() and 4 <= found[2] <= 12
