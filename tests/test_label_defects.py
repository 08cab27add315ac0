"""Bugs that silently corrupted labels in preference data elsewhere, each as a run that would show it here.

    B1   the judge's verdict ignored        open-instruct, rejection sampling       test_b1
    B2   ranks used as an order             llm-swarm, pair ranking                 test_b2_b3
    B3   the same                           distilabel, PairRM                      test_b2_b3
    B4   all-tied ratings make a pair       distilabel, DPO formatting              test_b4
    B5   answers joined by position         distilabel, batch jobs                  test_b5
    B6   one failure blanks a batch         distilabel, step wrapper                test_b6
    B7   a shape right for two only         distilabel, reward model                test_b7
    B8   1 - (-1) = 2 for a swapped pair    TRL judges                              test_b8
    B9   equal rewards; equal prompt texts  OpenRLHF, iterative DPO                 test_b9
    B10  a parse failure is the worst       llm-swarm, self-reward                  test_b10
    B11  a parse failure averaged; NaN      open-instruct, preference parsing       test_b11
    B12  a failure scores 0; pairs in RAM   afterimage                              test_b12
    B13  a status that ends no wait         open-instruct, batch annotation         does not apply: no batch job is polled. What
         is waited for has a deadline: see the faults that do not end in test_faults.py, and judges that hang in
         test_code_judge.py
    B14  a test split out of the training   SPPO                                    does not apply: nothing is split here
    B15  another file than announced        SimPO, reward annotation                test_b15
    B16  1 stored as 10                     UltraFeedback                           test_b16
    B17  a tie drops the rest of a batch    self-rewarding-lm                       test_b17

All of them are whole runs: candidates in a file or from a server, judges as anybody could write them, rows as they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from helpers import Room, read_rows, stored_records, summary, write_prompts, write_rows
from helpers import rlaif as command

import rlaif
from rlaif import Candidate, Prompt, Verdict
from rlaif.judges.parse import load_grammar
from rlaif.judges.recorded import load

pytestmark = pytest.mark.slow

NewRoom = Callable[[], Room]
Function = Callable[[Prompt, Sequence[Candidate]], Any]


def row(name: str, *candidates: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": more.pop("prompt", f"question {name}"), "candidates": list(candidates), **more}


def run(tmp_path: Path, rows: list[dict[str, Any]], judge: Any, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """({id: (chosen, rejected, row)} as written, summary). What comes in goes out, or is accounted for."""
    out = tmp_path / "run"
    said = rlaif.judge(rows, judge=judge, out=out, **settings).wait()
    written = read_rows(out / "dpo.jsonl")
    assert said["prompts"] == len(rows) == len(written) + sum(said["dropped"].values())
    found = {r["id"]: (r["chosen"][0]["content"], r["rejected"][0]["content"], r) for r in written}
    assert len(found) == len(written)
    for chosen, rejected, _ in found.values():
        assert chosen.strip() and rejected.strip() and chosen.split() != rejected.split()
    return found, said


def quality(text: str) -> float:
    return float(text.rpartition(" ")[2])


def by_length(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
    return [float(len(c.text)) for c in candidates]


PERMUTED = {"".join(map(str, p)): [f"quality 0.{9 - rank}" for rank in p] for p in permutations(range(4))}
"""Four answers in every order; in `2013` the first is the third best."""


@pytest.mark.parametrize("model", ["fake/oracle", "fake/oracle-text"])
def test_b1_the_verdict_decides_wherever_the_best_answer_stands(tmp_path, model):
    """A swap condition that could never hold let every verdict be ignored: the lower index was chosen, the last rejected."""
    rows = [row(name, *answers[:3]) for name, answers in PERMUTED.items()]
    found, said = run(tmp_path, rows, "pairwise", judge_model=model)
    assert said["pairs"] == len(rows) and said["flip_rate"] == 0.0
    for name, (chosen, rejected, _) in found.items():
        three = PERMUTED[name][:3]
        assert (chosen, rejected) == (max(three, key=quality), min(three, key=quality)), name


def one_at_a_time(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
    return [quality(c.text) for c in candidates]


one_at_a_time.arity = 1  # type: ignore[attr-defined]


def two_at_a_time(prompt: Prompt, candidates: Sequence[Candidate]) -> Verdict:
    """As text, which a grammar reads."""
    first, second = (quality(c.text) for c in candidates)
    scores = load_grammar("pairwise").read("[[A]]" if first > second else "[[B]]")
    return Verdict("two", tuple(c.id for c in candidates), scores, "vote")


two_at_a_time.arity = 2  # type: ignore[attr-defined]


def ranks(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
    """Minus the rank of each candidate."""
    order = sorted(candidates, key=lambda c: -quality(c.text))
    return [-float(order.index(c)) for c in candidates]


def ranking(prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[float, ...]:
    """An order of letters as text, which a grammar reads."""
    order = sorted(range(len(candidates)), key=lambda k: -quality(candidates[k].text))
    return load_grammar("ranking").read(f"[[{' > '.join('ABCD'[k] for k in order)}]]", shown=len(candidates))


@pytest.mark.parametrize("judge", [one_at_a_time, two_at_a_time, ranks, ranking])
def test_b2_b3_a_rank_belongs_to_its_candidate_and_is_no_order(tmp_path, judge):
    """chosen = candidates[rank of the first one]: the best or the worst was wrong for 58 % of the orders of four."""
    found, said = run(tmp_path, [row(name, *answers) for name, answers in PERMUTED.items()], judge)
    assert said["pairs"] == 24 and said["flip_rate"] in (None, 0.0)
    assert {(chosen, rejected) for chosen, rejected, _ in found.values()} == {("quality 0.9", "quality 0.6")}


def test_b4_tied_ratings_make_no_pair_and_a_missing_one_harms_nobody_else(tmp_path):
    """All-tied ratings became chosen == rejected, and a rating of None blanked the whole batch."""

    def rate(prompt: Prompt, candidates: Sequence[Candidate]) -> list[Any]:
        value = {"tied": 3.0, "none": None}.get(prompt.id)
        return [value if prompt.id in ("tied", "none") else float(len(c.text)) for c in candidates]

    rows = [row(name, "a", "bb", "ccc") for name in ("before", "tied", "none", "after")]
    rows.append(row("alike", "the  same", "the same\n"))
    found, said = run(tmp_path, rows, rate)
    assert {name: pair[:2] for name, pair in found.items()} == {"before": ("ccc", "a"), "after": ("ccc", "a")}
    assert said["dropped"] == {"identical": 1, "no_verdict": 1, "tied": 1}


def generate(room: Room, prompts: Path, out: Path, *more: object) -> dict[str, dict[str, Any]]:
    """The rows by id of a run whose policy and judge are the server's."""
    command("generate", prompts, "--policy", room.model(), "--out", out, "-n", 2, *more)
    return {r["id"]: r for r in read_rows(out / "dpo.jsonl")}


def texts(row: dict[str, Any]) -> list[Any]:
    """What a pair is; how sure it is depends on all prompts a little."""
    return [row["prompt"], row["chosen"], row["rejected"], row["flip"]]


@pytest.mark.parametrize("failing", ["Question 0", "Question 2"])
def test_b5_b6_answers_are_joined_by_id_when_others_fail(new_room: NewRoom, tmp_path: Path, failing: str) -> None:
    """B5: failed rows were left out and the rest zipped to the inputs by position, each answer on the wrong prompt.
    B6: one failed request blanked 50 rows, and that was cached as done."""
    prompts = write_prompts(tmp_path / "p.jsonl", 6)
    expected = generate(new_room(), prompts, tmp_path / "clean")
    assert len(expected) == 6
    room, out, lost = new_room(), tmp_path / "run", "p" + failing[-1]
    room.set(failure="policy", fail_when=failing, service_s=0.02, service_cv=2.0, slots=3)
    found = generate(room, prompts, out)
    assert {name: texts(r) for name, r in found.items()} == {name: texts(r) for name, r in expected.items() if name != lost}
    assert list(found) == sorted(found)
    assert summary(out)["dropped"] == {"sampling_failed": 1}
    room.set()
    assert generate(room, prompts, out, "--retry-failed") == expected


def test_b5_recorded_verdicts_are_joined_by_id_when_some_are_missing(tmp_path: Path) -> None:
    """The same with a file of verdicts, that is in another order than the prompts and lacks some."""
    best = {"p0": "A", "p1": "B", "p3": "B", "p4": "A"}
    said = [
        {"pair_id": name, "judge": "J", "order": order, "verdict": letter}
        for name, letter in reversed(best.items())
        for order in ("BA", "AB")
    ]
    judge = load(write_rows(tmp_path / "verdicts.jsonl", said))
    found, summed = run(tmp_path, [row(f"p{k}", f"{k}: A", f"{k}: B") for k in range(5)], judge)
    assert {name: pair[0] for name, pair in found.items()} == {name: f"{name[1]}: {letter}" for name, letter in best.items()}
    assert summed["dropped"] == {"no_verdict": 1}


@pytest.mark.parametrize("n", range(1, 5))
@pytest.mark.parametrize("nested", [False, True])
def test_b7_scores_have_one_shape_for_every_number_of_candidates_and_of_prompts(tmp_path, n, nested):
    """A squeeze for batches of exactly two left every other score a list of one."""

    def rate(prompt: Prompt, candidates: Sequence[Candidate]) -> list[Any]:
        return [[float(len(c.text))] if nested else float(len(c.text)) for c in candidates]

    rows = [row(f"p{k}", *("a" * (size + 1) for size in range(k + 2))) for k in range(n)]
    found, said = run(tmp_path, rows, rate)
    if nested:
        assert said["dropped"] == {"no_verdict": n}
    for name, (_, _, written) in found.items():
        assert (written["score_chosen"], written["score_rejected"]) == (float(name[1:]) + 2.0, 1.0)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("wins", ["A", "B"])
def test_b8_an_invalid_verdict_on_a_swapped_pair_stays_invalid(tmp_path, swapped, wins):
    """-1 for an invalid verdict was turned to 1 - (-1) = 2 on a swapped pair: a win by more than can be won."""
    orders = {"AB": wins, "BA": wins} | {"BA" if swapped else "AB": None}
    said = [{"pair_id": "p", "judge": "J", "order": order, "verdict": verdict} for order, verdict in orders.items()]
    both = [{"pair_id": "q", "judge": "J", "order": order, "verdict": wins} for order in orders]
    judge = load(write_rows(tmp_path / "verdicts.jsonl", [*said, *both]))
    found, summed = run(tmp_path, [row("p", "A", "B"), row("q", "A", "B")], judge)
    half, whole = found["p"], found["q"]
    assert half[0] == whole[0] == wins
    assert (half[2]["flip"], whole[2]["flip"]) == (None, False) and summed["no_verdict_rate"] == 0.25
    assert 0.5 < half[2]["p_chosen"] < whole[2]["p_chosen"] < 1.0


def test_b9_equal_rewards_make_no_pair_and_equal_prompts_stay_apart(tmp_path):
    """All-equal rewards gave chosen == rejected, and prompts with equal texts were grouped into one."""
    texts = {"one": ("short", "a longer one"), "two": ("tiny", "same"), "three": ("the longest of all", "brief")}
    found, said = run(tmp_path, [row(name, *answers, prompt="q") for name, answers in texts.items()], by_length)
    assert said["dropped"] == {"tied": 1}
    assert {name: pair[:2] for name, pair in found.items()} == {
        "one": ("a longer one", "short"),
        "three": ("the longest of all", "brief"),
    }


@pytest.mark.parametrize("unread", range(3))
@pytest.mark.parametrize("arity", [1, 2])
def test_b10_an_answer_whose_verdicts_cannot_be_read_is_not_the_worst(tmp_path, unread, arity):
    """A parse failure was the score -1.0, and selected as rejected."""
    answers = ["a", "bb", "ccc"]

    def rate(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
        if answers[unread] in [c.text for c in candidates]:
            load_grammar("rating").read("I cannot rate this.")
        return [float(len(c.text)) for c in candidates]

    rate.arity = arity  # type: ignore[attr-defined]
    found, said = run(tmp_path, [row("p", *answers)], rate)
    low, high = (text for text in answers if text != answers[unread])
    assert found["p"][:2] == (high, low) and said["no_verdict_rate"] == pytest.approx(1 / 3 if arity == 1 else 2 / 3)


def test_b11_a_failure_is_not_averaged_and_no_number_does_not_win(tmp_path):
    """A parse failure was averaged as the rating -1, and a NaN from padding won the argmax."""

    def steady(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
        return [float(len(c.text)) for c in candidates]

    def shaky(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
        (only,) = candidates
        if prompt.id == "failed" and len(only.text) == 3:
            raise ValueError("no score in the reply")
        return [float("nan") if prompt.id == "nan" and len(only.text) == 1 else float(len(only.text))]

    shaky.arity = 1  # type: ignore[attr-defined]
    found, _ = run(tmp_path, [row(name, "a", "bb", "ccc") for name in ("failed", "nan", "fine")], [steady, shaky])
    assert {pair[:2] for pair in found.values()} == {("ccc", "a")} and len(found) == 3
    kept = {r.prompt.id: [v for v in r.verdicts if v.judge == "shaky"] for r in stored_records(tmp_path / "run")}
    assert [v.scores for v in kept["nan"]] == [None, (2.0,), (3.0,)]
    assert [v.scores for v in kept["failed"]] == [(1.0,), (2.0,), None]


def test_b12_a_judge_that_fails_scores_nothing_and_pairs_outlive_the_run(tmp_path):
    """A judge's failure was the score 0.0, pairs were in memory only, and a bias for length was built in unseen."""

    def judge(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
        if prompt.id == "failed":
            raise ValueError("the judge is gone")
        return [-float(len(c.text)) - 1.0 for c in candidates]  # below any 0.0

    found, said = run(tmp_path, [row("failed", "a", "bb"), row("fine", "a", "bb")], judge)
    assert found["fine"][:2] == ("a", "bb") and said["dropped"] == {"no_verdict": 1}
    assert (found["fine"][2]["score_chosen"], said["longer_chosen_rate"]) == (-2.0, 0.0)
    file = tmp_path / "run" / "dpo.jsonl"
    before = file.read_bytes()
    file.unlink()
    command("export", tmp_path / "run", "--format", "dpo")
    assert file.read_bytes() == before


def test_b15_the_file_that_is_announced_is_the_one_written_and_no_other_is_touched(tmp_path):
    """One file was announced and another one, the input of the next step, written over."""
    given = write_rows(tmp_path / "answers.jsonl", [row("p", "a", "bb"), row("q", "ccc", "d")])
    out, before = tmp_path / "run", given.read_bytes()
    said = command("judge", given, "--judge", "judges/longest.py:longest", "--out", out).stdout
    assert f"{out / 'dpo.jsonl'}: 2 pairs" in said and len(read_rows(out / "dpo.jsonl")) == 2
    pairs = (out / "dpo.jsonl").read_bytes()
    for form, to in (("sft", out / "sft.jsonl"), ("dpo", tmp_path / "elsewhere.jsonl")):
        files = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
        said = command("export", out, "--format", form, *(["--out", to] if form == "dpo" else [])).stdout
        assert f"{to}: 2 rows" in said or f"{to}: 2 pairs" in said
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl") if path != to} == files
    assert (tmp_path / "elsewhere.jsonl").read_bytes() == pairs and given.read_bytes() == before


@pytest.mark.parametrize(("low", "high"), [("1", "10"), ("9", "10"), ("1.5", "7"), ("1", "2")])
def test_b16_a_score_is_stored_as_it_was_said(tmp_path, low, high):
    """An overall score of 1 was stored as 10."""

    def rate(prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[float, ...]:
        (only,) = candidates
        return load_grammar("mt-bench-rating").read(f"Rating: [[{only.text.rpartition(' ')[2]}]]", shown=1)

    rate.arity = 1  # type: ignore[attr-defined]
    found, _ = run(tmp_path, [row("p", f"worth {high}", f"worth {low}"), row("q", f"worth {low}", f"worth {high}")], rate)
    for chosen, rejected, written in found.values():
        assert (chosen, rejected) == (f"worth {high}", f"worth {low}")
        assert (written["score_chosen"], written["score_rejected"]) == (float(high), float(low))
    assert len(found) == 2


@pytest.mark.parametrize("tied", [{0}, {2}, {5}, {0, 1, 2, 3, 4}])
def test_b17_a_tie_ends_its_own_prompt_only(tmp_path, tied):
    """A tie broke out of the loop, and the rest of the batch was dropped."""
    rows = [row(f"p{k}", "quality 0.5", "quality 0.5, too" if k in tied else "quality 0.7") for k in range(6)]
    found, said = run(tmp_path, rows, "pairwise", judge_model="fake/oracle-text")
    assert set(found) == {f"p{k}" for k in range(6) if k not in tied}
    assert said["dropped"] == {"tied": len(tied)}
