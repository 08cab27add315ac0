"""What a run will cost, before it is bought: a low, an expected and a high figure, from assumptions or from a probe.

Without a probe the three stand on assumptions, which the forecast repeats as sentences (`assumed`):

                        low         expected    high
    an answer           15 %        50 %        100 % of max_tokens (as long as it is, where answers are given)
    n in one request    honoured    honoured    ignored: a call for every sample
    a verdict, letter   one token   one token   no log-probabilities: every letter is asked for again as text
    a verdict as text   5 tokens    100         400 (recorded judges: bare verdicts 4, with reasons 50 to 170 in the mean,
                                                under the most talkative template 380)
    a call takes        0.5 s +     1 s +       3 s +
                        100 tok/s   50 tok/s    20 tok/s for each of its choices, side by side

Retries, thinking that is not part of the answer, and discounts for cached input are not foreseen.

With a probe, K prompts run for real, the expected figure is the sum of those K and the mean of them for every other
prompt; low and high are a 90 % interval for that total by a studentised bootstrap (Efron and Tibshirani 1993, ch. 12,
turned into a prediction interval). Measured over 2000 seeded trials each with lognormal lengths and 500 prompts, it holds
the true total in 92, 91, 90 and 88 % of them for K = 20 and sigma 0.3, 0.5, 1.0 and 1.3, and in 91, 91, 89 and 87 % for
K = 50; a percentile interval in 80 % for K = 20 and sigma 1. Time is that of the probe's calls over the concurrency.

In both, time is never less than one prompt's calls one after another, nor than the rate limits allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlaif.prices import Price
from rlaif.tables import aligned

Bound = Literal["low", "expected", "high"]
BOUNDS: tuple[Bound, ...] = ("low", "expected", "high")

_ANSWER_SHARE = {"low": 0.15, "expected": 0.5, "high": 1.0}
_VERDICT_TOKENS = {"low": 5, "expected": 100, "high": 400}
_WAIT_S = {"low": 0.5, "expected": 1.0, "high": 3.0}
_TOKENS_PER_S = {"low": 100.0, "expected": 50.0, "high": 20.0}
_CONFIDENCE = 0.9
_RESAMPLES = 2000
_MANY = 100
"""The sum of more unseen prompts than these is as good as normal."""
_FEWEST = 10
"""Fewer probed prompts than these say too little of the spread: low and high stay the assumed ones."""
_COUNTS = ("policy_calls", "judge_calls", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class PolicyWork:
    """A policy: its price (None: unknown) and the most choices it gives in a response."""

    name: str
    price: Price | None
    max_n: int


@dataclass(frozen=True, slots=True)
class JudgeWork:
    """A judge that asks a model: `name` is the model's, `calls` how many a prompt (a mean, where prompts differ).

    `template_tokens` are those of template and constitution together; `letter` says that it asks for the bare letter with
    log-probabilities; `shown` is how many answers a call shows.
    """

    name: str
    calls: float
    price: Price | None
    template_tokens: int
    letter: bool
    shown: int = 2


@dataclass(frozen=True, slots=True)
class Work:
    """All that a run is to do. `prompt_tokens` is a guess for each prompt, or their sum.

    `rpm` and `tpm` are the endpoint's limits, requests and tokens a minute. `answer_tokens` is the mean length of the answers
    where these are given and not sampled.
    """

    prompts: int
    prompt_tokens: Sequence[int] | int
    n: int
    policies: Sequence[PolicyWork]
    judges: Sequence[JudgeWork]
    max_tokens: int
    concurrency: int
    rpm: float | None = None
    tpm: float | None = None
    answer_tokens: float | None = None

    @property
    def mean_prompt_tokens(self) -> float:
        """Tokens of a prompt, on average."""
        total = self.prompt_tokens if isinstance(self.prompt_tokens, int) else sum(self.prompt_tokens)
        return total / self.prompts if self.prompts else 0.0


@dataclass(frozen=True, slots=True)
class ProbeCall:
    """One call that was made for a probed prompt. `role` is policy or judge, `model` the name that `Work` has for it."""

    role: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """K prompts of the same work, run for real: the calls of each."""

    prompts: Sequence[Sequence[ProbeCall]]


@dataclass(slots=True)
class _Figures:
    """The sums of one bound. `cost_usd` is None as soon as a part has no price; `busy_s` counts every call's seconds."""

    policy_calls: float = 0.0
    judge_calls: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    cost_usd: float | None = 0.0
    busy_s: float = 0.0
    chain_s: float = 0.0

    def add(self, role: str, calls: float, prompt: float, completion: float, price: Price | None, seconds: float) -> None:
        """Adds `calls` calls with `prompt` and `completion` tokens and `seconds` each."""
        if role == "policy":
            self.policy_calls += calls
        else:
            self.judge_calls += calls
        self.prompt_tokens += calls * prompt
        self.completion_tokens += calls * completion
        self.busy_s += calls * seconds
        if price is None:
            self.cost_usd = None if calls else self.cost_usd
        elif self.cost_usd is not None:
            self.cost_usd += calls * (prompt * price.input + completion * price.output) / 1e6


def forecast(work: Work, probe: Probe | None = None, *, seed: int = 0) -> dict[str, Any]:
    """`low`, `expected` and `high`, each with calls, tokens, `cost_usd` (None: unknown) and `time_s`.

    Beside them `assumed`, the sentences that these rest on; `unpriced`, the models without a price; and `probed`, how many
    prompts were run for real. All figures are of the whole run, the probed prompts among them.
    """
    found = {bound: _assumed_figures(work, bound) for bound in BOUNDS}
    probed = len(probe.prompts) if probe is not None and work.prompts else 0
    said = _assumptions(work)
    if probe is not None and probed:
        measured = _probed_figures(work, probe, seed)
        timed = any(call.seconds is not None for calls in probe.prompts for call in calls)
        for bound in BOUNDS:
            if not timed:
                measured[bound].busy_s, measured[bound].chain_s = found[bound].busy_s, found[bound].chain_s
        if probed < min(_FEWEST, work.prompts):
            said = [f"{probed} probed prompts say too little of the spread: low and high are assumed", *said]
            found = _around(measured["expected"], found["low"], found["high"])
        else:
            found = measured
            said = [f"the other prompts are as the {probed} probed ones: low and high hold the total with 90 % probability"]
            said += ["calls take as long as in the probe"] if timed else _time_assumptions()
    names = [m.name for m in work.policies if m.price is None] + [m.name for m in work.judges if m.price is None]
    return {
        **{bound: _result(work, found[bound]) for bound in BOUNDS},
        "assumed": said + _limits_said(work),
        "unpriced": sorted(set(names)) if work.prompts else [],
        "probed": probed,
    }


# Without a probe


def _assumed_figures(work: Work, bound: Bound) -> _Figures:
    answer = _ANSWER_SHARE[bound] * work.max_tokens if work.answer_tokens is None else work.answer_tokens
    prompt, figures = work.mean_prompt_tokens, _Figures()
    for policy in work.policies:
        calls = work.n if bound == "high" else math.ceil(work.n / max(1, policy.max_n))
        seconds = _WAIT_S[bound] + answer / _TOKENS_PER_S[bound]
        figures.add("policy", work.prompts * calls, prompt, answer * work.n / calls, policy.price, seconds)
        figures.chain_s = max(figures.chain_s, seconds)
    longest = 0.0
    for judge in work.judges:
        asked, shown = work.prompts * judge.calls, judge.template_tokens + prompt + judge.shown * answer
        chain = 0.0
        for is_letter in (True, False):
            if (is_letter and judge.letter) or (not is_letter and (not judge.letter or bound == "high")):
                said = 1 if is_letter else _VERDICT_TOKENS[bound]
                seconds = _WAIT_S[bound] + said / _TOKENS_PER_S[bound]
                figures.add("judge", asked, shown, said, judge.price, seconds)
                chain += seconds
        longest = max(longest, chain if judge.calls else 0.0)
    figures.chain_s += longest
    return figures


def _assumptions(work: Work) -> list[str]:
    said = []
    if work.policies:
        said.append(f"answers have 15 % / 50 % / 100 % of {work.max_tokens} tokens")
        if work.n > 1:
            said.append("requests for several samples are honoured; high: not, and every sample is a call")
    if any(judge.letter for judge in work.judges):
        said.append("judges answer with one letter and its probability; high: they cannot, and are asked again as text")
    if work.judges:
        said.append("a verdict as text has 5 / 100 / 400 tokens")
    said.append("nothing is retried or thought over, and cached input has no discount")
    return said + _time_assumptions()


def _time_assumptions() -> list[str]:
    return ["a call takes 0.5 s and 100 tokens a second / 1 s and 50 / 3 s and 20; a model on this machine may be slower"]


def _limits_said(work: Work) -> list[str]:
    given = [f"{value:g} {name}" for name, value in (("requests", work.rpm), ("tokens", work.tpm)) if value]
    limit = f", at most {' and '.join(given)} a minute" if given else ", no rate limit"
    return [f"{work.concurrency} calls at once{limit}"]


# With one


def _probed_figures(work: Work, probe: Probe, seed: int) -> dict[Bound, _Figures]:
    prices = {("policy", p.name): p.price for p in work.policies} | {("judge", j.name): j.price for j in work.judges}
    seconds = _mean_seconds(probe)
    rows = np.array([_row(calls, prices, seconds) for calls in probe.prompts], dtype=np.float64)
    known = not np.isnan(rows[:, 4]).any()
    low, expected, high = _interval(np.nan_to_num(rows), max(0, work.prompts - len(rows)), seed)
    chain = sum(seconds.get(role, 0.0) for role in ("policy", "judge"))
    found: dict[Bound, _Figures] = {}
    for bound, values in zip(BOUNDS, (low, expected, high), strict=True):
        policy, judge, prompt, completion, cost, busy = (float(value) for value in values)
        found[bound] = _Figures(policy, judge, prompt, completion, cost if known else None, busy, chain)
    return found


def _row(
    calls: Iterable[ProbeCall], prices: dict[tuple[str, str], Price | None], seconds: dict[str, float]
) -> tuple[float, ...]:
    """One prompt's calls, tokens, cost (NaN: unknown) and seconds; a call that was not timed takes its role's mean."""
    policy = judge = prompt = completion = cost = busy = 0.0
    for call in calls:
        policy, judge = policy + (call.role == "policy"), judge + (call.role != "policy")
        prompt, completion = prompt + call.prompt_tokens, completion + call.completion_tokens
        price = prices.get((call.role, call.model))
        cost += price.cost_usd(call.prompt_tokens, call.cached_tokens, call.completion_tokens) if price else math.nan
        busy += seconds.get(call.role, 0.0) if call.seconds is None else call.seconds
    return policy, judge, prompt, completion, cost, busy


def _mean_seconds(probe: Probe) -> dict[str, float]:
    """Seconds a call, by role."""
    timed: dict[str, list[float]] = {}
    for calls in probe.prompts:
        for call in calls:
            if call.seconds is not None:
                timed.setdefault(call.role, []).append(call.seconds)
    return {role: math.fsum(values) / len(values) for role, values in timed.items()}


def _interval(
    rows: NDArray[np.float64], others: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Low, expected and high of the column sums over the `rows` and `others` more of their kind.

    In the resampled world the rows are all there is: K of them are drawn as the probe and `others` as the rest, and the
    rest misses its estimate by so many of the drawn probe's standard deviations. The quantiles of that, times the real
    probe's standard deviation, are the interval. A probe lacks its own tail: it is asked for 0.9 + 0.5 / K.
    """
    count = len(rows)
    total, mean = rows.sum(axis=0), rows.mean(axis=0)
    expected = total + others * mean
    low, high = expected.copy(), expected.copy()
    if count < 2 or not others:
        return low, expected, high
    rng = np.random.default_rng(seed)
    drawn = rng.integers(count, size=(_RESAMPLES, count), dtype=np.int32)
    unseen = rng.integers(count, size=(_RESAMPLES, others), dtype=np.int32) if others <= _MANY else None
    normal = rng.standard_normal(_RESAMPLES)
    level = min(0.98, _CONFIDENCE + 0.5 / count)
    for column in range(rows.shape[1]):
        centred = rows[:, column] - mean[column]
        deviation = centred.std()
        if deviation <= 1e-9 * abs(mean[column]):  # all alike, but for rounding
            continue
        probe = centred[drawn]
        rest = normal * deviation * math.sqrt(others) if unseen is None else centred[unseen].sum(axis=1)
        missed, spread = rest - others * probe.mean(axis=1), probe.std(axis=1)
        some = spread > 1e-9 * deviation  # a probe of one prompt drawn K times has none
        below, above = np.quantile(missed[some] / spread[some], [(1 - level) / 2, (1 + level) / 2]) * deviation
        least = total[column] + others * rows[:, column].min()
        low[column] = max(least, expected[column] + min(0.0, below))
        high[column] = expected[column] + max(0.0, above)
    return low, expected, high


def _around(expected: _Figures, low: _Figures, high: _Figures) -> dict[Bound, _Figures]:
    """The three, with low and high moved where the expected one is beyond them."""
    for name in (*_COUNTS, "cost_usd", "busy_s", "chain_s"):
        middle = getattr(expected, name)
        for figures, choose in ((low, min), (high, max)):
            value = getattr(figures, name)
            setattr(figures, name, None if value is None or middle is None else choose(value, middle))
    return {"low": low, "expected": expected, "high": high}


# Both


def _result(work: Work, figures: _Figures) -> dict[str, Any]:
    calls, tokens = figures.policy_calls + figures.judge_calls, figures.prompt_tokens + figures.completion_tokens
    time_s = max(
        figures.chain_s if calls else 0.0,
        figures.busy_s / max(1, work.concurrency),
        60.0 * calls / work.rpm if work.rpm else 0.0,
        60.0 * tokens / work.tpm if work.tpm else 0.0,
    )
    return {
        **{name: round(getattr(figures, name)) for name in _COUNTS},
        "cost_usd": None if figures.cost_usd is None else round(figures.cost_usd, 6),
        "time_s": round(time_s, 1),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The forecast as a table that a person reads, and what it rests on."""
    rows = [["", *BOUNDS]]
    rows += [[name.replace("_", " "), *(f"{found[bound][name]:,}" for bound in BOUNDS)] for name in _COUNTS]
    rows.append(["cost in USD", *(money(found[bound]["cost_usd"]) for bound in BOUNDS)])
    rows.append(["time", *(_duration(found[bound]["time_s"]) for bound in BOUNDS)])
    table = aligned(rows)
    if found["unpriced"]:
        table.append(f"no price for {', '.join(found['unpriced'])}: give it in a file, with --prices FILE or RLAIF_PRICES")
    return table + [f"assumed: {sentence}" for sentence in found["assumed"]]


def money(value: float | None) -> str:
    """An amount with two digits after the point; a small one with two that count."""
    if value is None:
        return "unknown"
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:#.2g}" if value >= 1e-4 else "< 0.0001"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"
