"""What a run will cost: the arithmetic without a probe, the interval with one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.forecast import BOUNDS, JudgeWork, PolicyWork, Probe, ProbeCall, Work, forecast, lines
from rlaif.prices import FREE, Price

CHEAP, DEAR = Price(1.0, 2.0), Price(10.0, 20.0, 5.0)
POLICY = PolicyWork("p", CHEAP, max_n=128)
JUDGE = JudgeWork("j", calls=12, price=DEAR, template_tokens=400, letter=True)
WORK = Work(1000, 100_000, n=4, policies=[POLICY], judges=[JUDGE], max_tokens=500, concurrency=50)
FIGURES = ("policy_calls", "judge_calls", "prompt_tokens", "completion_tokens", "cost_usd", "time_s")


def of(found: dict[str, Any], name: str) -> list[Any]:
    return [found[bound][name] for bound in BOUNDS]


# Without a probe


def test_every_figure_follows_from_the_stated_assumptions():
    found = forecast(WORK)
    assert of(found, "policy_calls") == [1000, 1000, 4000], "high: an endpoint that ignores n"
    assert of(found, "judge_calls") == [12_000, 12_000, 24_000], "high: every letter is asked for again as text"
    shown = [400 + 100 + 2 * 75, 400 + 100 + 2 * 250, 400 + 100 + 2 * 500]
    prompts = [100_000 + 12_000 * shown[0], 100_000 + 12_000 * shown[1], 400_000 + 24_000 * shown[2]]
    said = [4000 * 75 + 12_000, 4000 * 250 + 12_000, 4000 * 500 + 12_000 * 401]
    assert (of(found, "prompt_tokens"), of(found, "completion_tokens")) == (prompts, said)
    policy = [(100_000 + 2 * 4000 * 75) / 1e6, (100_000 + 2 * 4000 * 250) / 1e6, (400_000 + 2 * 4000 * 500) / 1e6]
    judge = [(10 * 12_000 * shown[0] + 20 * 12_000) / 1e6, (10 * 12_000 * shown[1] + 20 * 12_000) / 1e6]
    judge.append((10 * 24_000 * shown[2] + 20 * 12_000 * 401) / 1e6)
    assert of(found, "cost_usd") == pytest.approx([a + b for a, b in zip(policy, judge, strict=True)])
    busy = [1000 * (0.5 + 0.75) + 12_000 * 0.51, 1000 * (1 + 5) + 12_000 * 1.02]
    busy.append(4000 * (3 + 25) + 12_000 * (3.05 + 23))
    assert of(found, "time_s") == pytest.approx([round(seconds / 50, 1) for seconds in busy])
    assert found["probed"] == 0 and found["unpriced"] == []


def test_more_samples_than_a_response_holds_are_several_calls():
    found = forecast(replace(WORK, n=10, policies=[replace(POLICY, max_n=4), replace(POLICY, name="q")]))
    assert of(found, "policy_calls") == [4000, 4000, 20_000]


def test_prompts_may_be_guessed_one_by_one():
    assert forecast(replace(WORK, prompt_tokens=[100] * 1000)) == forecast(WORK)


def test_a_judge_that_writes_its_verdict_is_asked_once():
    found = forecast(replace(WORK, policies=[], judges=[replace(JUDGE, letter=False)], answer_tokens=80.0))
    assert of(found, "judge_calls") == [12_000] * 3
    assert of(found, "completion_tokens") == [60_000, 1_200_000, 4_800_000]
    assert of(found, "prompt_tokens") == [12_000 * (400 + 100 + 160)] * 3, "answers that are given have the length they have"


def test_an_unknown_price_makes_the_cost_unknown_and_says_whose():
    found = forecast(replace(WORK, judges=[JUDGE, replace(JUDGE, name="x", price=None)]))
    assert of(found, "cost_usd") == [None] * 3
    assert found["unpriced"] == ["x"]
    assert any("no price for x" in line for line in lines(found)) and "unknown" in "\n".join(lines(found))


def test_free_models_cost_nothing():
    found = forecast(replace(WORK, policies=[replace(POLICY, price=FREE)], judges=[replace(JUDGE, price=FREE)]))
    assert of(found, "cost_usd") == [0.0] * 3


def test_rate_limits_bound_the_time_from_below():
    found = forecast(replace(WORK, rpm=100))
    assert of(found, "time_s") == [60 * 13_000 / 100] * 2 + [60 * 28_000 / 100]
    free, slow = forecast(WORK), forecast(replace(WORK, tpm=1000))
    for bound in BOUNDS:
        tokens = free[bound]["prompt_tokens"] + free[bound]["completion_tokens"]
        assert slow[bound]["time_s"] == pytest.approx(60 * tokens / 1000)


def test_no_concurrency_is_faster_than_one_prompt():
    found = forecast(replace(WORK, prompts=1, prompt_tokens=100, concurrency=10_000))
    assert of(found, "time_s") == pytest.approx([1.25 + 0.51, 6 + 1.02, 28 + 26.05], abs=0.05)


def test_nothing_to_do_is_free():
    found = forecast(replace(WORK, prompts=0, prompt_tokens=0, policies=[replace(POLICY, price=None)]))
    assert all(of(found, name) == [0] * 3 for name in FIGURES)
    assert forecast(replace(WORK, policies=[], judges=[], answer_tokens=9.0))["high"]["time_s"] == 0.0


@given(
    st.integers(0, 50),
    st.integers(1, 9),
    st.integers(1, 4000),
    st.integers(1, 64),
    st.booleans(),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_the_three_are_in_order(prompts, n, max_tokens, concurrency, letter, max_n, calls):
    work = Work(
        prompts,
        prompts * 50,
        n,
        [replace(POLICY, max_n=max_n)],
        [replace(JUDGE, letter=letter, calls=calls)],
        max_tokens,
        concurrency,
    )
    found = forecast(work)
    for name in FIGURES:
        low, expected, high = of(found, name)
        assert 0 <= low <= expected <= high, name
    json.dumps(found, allow_nan=False)


# With one


def probed(lengths: Any, *, judge_s: float = 0.5) -> Probe:
    """A policy call of 4 answers with so many tokens in all, and 12 judge calls."""
    judged = [ProbeCall("judge", "j", 900, 1, judge_s)] * 12
    return Probe([[ProbeCall("policy", "p", 100, int(length), 2.0 + length / 50), *judged] for length in lengths])


def test_a_probe_of_equal_prompts_leaves_nothing_open():
    found = forecast(WORK, probed([500] * 20))
    assert of(found, "policy_calls") == [1000] * 3 and of(found, "judge_calls") == [12_000] * 3
    assert of(found, "completion_tokens") == [1000 * 512] * 3
    cost = 1000 * ((100 + 2 * 500) + 12 * (10 * 900 + 20)) / 1e6
    assert of(found, "cost_usd") == pytest.approx([cost] * 3)
    assert of(found, "time_s") == pytest.approx([1000 * (12 + 12 * 0.5) / 50] * 3)
    assert found["probed"] == 20 and not any("15 %" in sentence for sentence in found["assumed"])


def test_cached_input_is_cheaper_in_a_probe():
    calls = [ProbeCall("judge", "j", 1000, 1, 1.0, cached_tokens=800)]
    found = forecast(replace(WORK, policies=[]), Probe([calls] * 10))
    assert found["expected"]["cost_usd"] == pytest.approx(1000 * (200 * 10 + 800 * 5 + 20) / 1e6)


def test_a_probe_of_all_prompts_is_the_answer():
    lengths = [10, 200, 35, 4000, 9]
    found = forecast(replace(WORK, prompts=5, prompt_tokens=500), probed(lengths))
    assert of(found, "completion_tokens") == [sum(lengths) + 60] * 3


def test_calls_that_were_made_again_are_in_the_forecast():
    rows = list(probed([100] * 20).prompts)
    rows[3] = [*rows[3], *rows[3]]
    found = forecast(WORK, Probe(rows))
    assert found["expected"]["policy_calls"] == 1050
    assert 1000 <= found["low"]["policy_calls"] < 1050 < found["high"]["policy_calls"]


def test_few_probed_prompts_leave_low_and_high_to_the_assumptions():
    plain, found = forecast(WORK), forecast(WORK, probed([500, 9, 80]))
    assert found["expected"]["completion_tokens"] == round(589 * 1000 / 3) + 12_000
    for name in FIGURES:
        assert found["low"][name] <= min(plain["low"][name], found["expected"][name])
        assert found["high"][name] >= max(plain["high"][name], found["expected"][name])


def test_an_unknown_price_stays_unknown_with_a_probe():
    assert of(forecast(replace(WORK, policies=[replace(POLICY, price=None)]), probed([500] * 9)), "cost_usd") == [None] * 3
    assert of(forecast(replace(WORK, judges=[]), probed([500] * 9)), "cost_usd") == [None] * 3, (
        "calls of a model it does not know"
    )


def test_a_probe_without_clock_leaves_time_to_the_assumptions():
    untimed = Probe([[replace(call, seconds=None) for call in calls] for calls in probed([500] * 20).prompts])
    assert of(forecast(WORK, untimed), "time_s") == of(forecast(WORK), "time_s")
    half = Probe(
        [
            [replace(calls[0], seconds=None), *calls[1:]] if i % 2 else calls
            for i, calls in enumerate(probed([500] * 20).prompts)
        ]
    )
    assert of(forecast(WORK, half), "time_s") == of(forecast(WORK, probed([500] * 20)), "time_s")


def test_one_seed_gives_one_forecast():
    probe = probed(np.random.default_rng(0).lognormal(5, 1, 20))
    assert forecast(WORK, probe) == forecast(WORK, probe)
    assert forecast(WORK, probe, seed=1)["high"] != forecast(WORK, probe)["high"]


@pytest.mark.parametrize(
    ("count", "sigma"),
    [(20, 1.0), *(pytest.param(*some, marks=pytest.mark.slow) for some in ((20, 0.5), (50, 1.0)))],
)
def test_nine_in_ten_intervals_hold_the_true_total(count, sigma):
    trials, prompts, held = 600, 500, {"completion_tokens": 0, "cost_usd": 0, "time_s": 0}
    for trial in range(trials):
        lengths = np.random.default_rng(trial).lognormal(6, sigma, prompts).astype(int)
        calls = [[ProbeCall("policy", "p", 100, int(length), 2.0 + length / 50)] for length in lengths[:count]]
        found = forecast(replace(WORK, prompts=prompts, judges=[]), Probe(calls), seed=trial)
        true = {
            "completion_tokens": lengths.sum(),
            "cost_usd": (100 * prompts + 2 * lengths.sum()) / 1e6,
            "time_s": (2.0 * prompts + lengths.sum() / 50) / 50,
        }
        for name, value in true.items():
            held[name] += found["low"][name] <= value <= found["high"][name]
    assert all(0.85 <= hits / trials <= 0.95 for hits in held.values()), held


@settings(max_examples=40)
@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=3), max_size=15))
def test_any_probe_gives_numbers_in_order_and_no_less_than_was_bought(rows):
    calls = [[ProbeCall("policy" if p else "judge", "p" if p else "j", a, b, b / 50) for p, a, b in row] for row in rows]
    found = forecast(WORK, Probe(calls))
    for name in FIGURES:
        low, expected, high = of(found, name)
        assert low <= expected <= high
    if len(calls) >= 10:
        assert found["low"]["prompt_tokens"] >= sum(a for row in rows for _, a, _ in row)
    json.dumps(found, allow_nan=False)


# The table


def test_the_table_is_aligned_and_says_what_it_rests_on():
    found = forecast(replace(WORK, rpm=100))
    shown = lines(found)
    table = [line for line in shown if not line.startswith("assumed: ")]
    assert [line.split("  ")[0] for line in table] == [
        *("", "policy calls", "judge calls", "prompt tokens", "completion tokens", "cost in USD", "time"),
    ]
    assert len({len(line) for line in table}) == 1
    assert table[0].split() == ["low", "expected", "high"]
    assert table[1].split()[2:] == ["1,000", "1,000", "4,000"]
    assert table[6].split("  ")[-1].strip() == "4 h 40 min"
    assert [line.removeprefix("assumed: ") for line in shown[7:]] == found["assumed"]
    assert "at most 100 requests a minute" in shown[-1]


@pytest.mark.parametrize(
    ("cost", "shown"), [(None, "unknown"), (0.0, "0.00"), (0.000004, "< 0.0001"), (0.0042, "0.0042"), (1234.5, "1,234.50")]
)
def test_small_sums_are_not_shown_as_zero(cost, shown):
    found = forecast(WORK)
    found["low"]["cost_usd"] = cost
    assert lines(found)[5].removeprefix("cost in USD").split("  ")[-3:][0].strip() == shown or shown in lines(found)[5]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0.4 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 00 min"), (90_000, "25 h 00 min")]
)
def test_times_are_shown_in_units_of_their_size(seconds, shown):
    found = forecast(WORK)
    found["low"]["time_s"] = seconds
    assert f" {shown} " in lines(found)[6]
