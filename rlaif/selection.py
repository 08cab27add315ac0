"""Which pairs a finished record gives: the rules behind `--select`. Pure.

A rule is a name, perhaps with a value, and perhaps limits: `top-k:2,p=0.7,cap=3`. It picks from a prompt's pool: all pairs of
candidates that verdicts have set against each other and that are not tied, each with the stronger one as chosen.

    best-worst          the strongest against the weakest
    best-random         the strongest against one of the weaker ones, drawn by the run's seed and the prompt's id
    mu-2sigma           the strongest against the one whose score is nearest to the mean less two standard deviations of the
                        prompt's scores: with many samples the very worst is too easy to tell (Xiao et al. 2025,
                        "Finding the Sweet Spot", ACL)
    top-k[:K]           each of the K strongest against each of the K weakest (2); nobody is on both sides
    all-pairs[:P]       every pair whose probability is at least P (0.5)
    length-matched[:W]  of the pairs as sure as the surest, within W (0.05) of its probability, the one closest in length
    max-length-ratio:R  the surest of the pairs whose longer text is at most R times the shorter one
    margin:M            best-worst,margin=M
    best-of-n           for SFT: the strongest answer, as it is

Limits drop what a rule picked: `margin=M`, scores at least M apart; `p=P`, a probability of at least P;
`max-length-ratio=R`, the longer text at most R times the shorter one; `cap=N`, only the N surest of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from rlaif import pairs
from rlaif.errors import InputError
from rlaif.keys import seed_of
from rlaif.pairs import TIE, Best
from rlaif.types import PreferencePair, Ranking, Record

BEST_OF_N = "best-of-n"
_DIGITS = 9
_LIMITS = {"margin": (0.0, math.inf), "p": (0.5, 1.0), "max-length-ratio": (1.0, math.inf), "cap": (1, math.inf)}


@dataclass(frozen=True, slots=True)
class Rule:
    """A selection rule: `value` is its own number where it has one, the limits are None where there is none."""

    name: str
    value: float = 0.0
    margin: float | None = None
    p: float | None = None
    max_length_ratio: float | None = None
    cap: int | None = None

    def __str__(self) -> str:
        value = f":{self.value:g}" if self.name in _VALUES else ""
        limits = {name: getattr(self, name.replace("-", "_")) for name in _LIMITS}
        return self.name + value + "".join(f",{name}={limit:g}" for name, limit in limits.items() if limit is not None)


class Pool(NamedTuple):
    """What a rule picks from: places in the ranking, strongest first; scores and texts by place."""

    order: list[int]
    ranking: Ranking
    texts: list[str]
    draw: Callable[[int], int]

    def p(self, pair: tuple[int, int]) -> float:
        """The probability that the first of the pair is the better one, equal for pairs that differ in rounding alone."""
        return round(self.ranking.p(*pair), _DIGITS)

    def length_ratio(self, pair: tuple[int, int]) -> float:
        """The longer text's length over the shorter one's."""
        short, long = sorted((len(self.texts[pair[0]]), len(self.texts[pair[1]])))
        return long / short

    def decided(self) -> list[tuple[int, int]]:
        """All pairs that are not tied, stronger first."""
        return [pair for pair in combinations(self.order, 2) if self.p(pair) >= 0.5 + TIE]


_Picks = list[tuple[int, int]]


def _best_worst(pool: Pool, value: float) -> _Picks:
    return [(pool.order[0], pool.order[-1])]


def _best_random(pool: Pool, value: float) -> _Picks:
    weaker = [pair for pair in ((pool.order[0], other) for other in pool.order[1:]) if pool.p(pair) >= 0.5 + TIE]
    return [weaker[pool.draw(len(weaker))]] if weaker else []


def _mu_2sigma(pool: Pool, value: float) -> _Picks:
    largest = max(abs(pool.ranking.scores[k]) for k in pool.order) or 1.0  # in shares of it no square leaves the floats
    scores = {k: pool.ranking.scores[k] / largest for k in pool.order}
    mean = sum(scores.values()) / len(scores)
    target = mean - 2.0 * math.sqrt(sum((s - mean) ** 2 for s in scores.values()) / len(scores))
    best, *others = pool.order
    weaker = [k for k in others if pool.p((best, k)) >= 0.5 + TIE]
    return [(best, min(weaker, key=lambda k: abs(scores[k] - target)))] if weaker else []


def _top_k(pool: Pool, value: float) -> _Picks:
    k = min(int(value), len(pool.order) // 2)
    return [(one, other) for one in pool.order[:k] for other in pool.order[-k:]]


def _all_pairs(pool: Pool, value: float) -> _Picks:
    return [pair for pair in pool.decided() if pool.p(pair) >= value - TIE]


def _length_matched(pool: Pool, value: float) -> _Picks:
    found = pool.decided()
    surest = max(map(pool.p, found), default=0.0)
    as_sure = [pair for pair in found if pool.p(pair) >= surest - value - TIE]
    return [min(as_sure, key=lambda pair: (pool.length_ratio(pair), -pool.p(pair)))] if as_sure else []


def _max_length_ratio(pool: Pool, value: float) -> _Picks:
    alike = [pair for pair in pool.decided() if pool.length_ratio(pair) <= value]
    return [max(alike, key=pool.p)] if alike else []


_RULES: dict[str, Callable[[Pool, float], _Picks]] = {
    "best-worst": _best_worst,
    "best-random": _best_random,
    "mu-2sigma": _mu_2sigma,
    "top-k": _top_k,
    "all-pairs": _all_pairs,
    "length-matched": _length_matched,
    "max-length-ratio": _max_length_ratio,
}
_VALUES: dict[str, tuple[float | None, float, float]] = {
    "top-k": (2.0, 1.0, math.inf),
    "all-pairs": (0.5, 0.5, 1.0),
    "length-matched": (0.05, 0.0, 0.5),
    "max-length-ratio": (None, *_LIMITS["max-length-ratio"]),
}
"""The default of a rule's own value (None: it has to be given), and its bounds."""
_NOTHING_PICKED = {"all-pairs": "p_too_low", "max-length-ratio": "lengths_too_different"}
NAMES = (*_RULES, "margin", BEST_OF_N)


def parse(text: str) -> Rule:
    """The rule that `text` names: NAME[:VALUE][,LIMIT=VALUE]... Raises InputError saying what is wrong with it."""
    head, *given = (part.strip() for part in text.split(","))
    name, sign, value = (part.strip() for part in head.replace("=", ":").partition(":"))
    if name not in NAMES:
        raise InputError(f"the selection rule {text!r} is unknown; there are {', '.join(NAMES)}")
    limits: dict[str, float] = {}
    if name == "margin":
        given, name, sign, value = [head, *given], "best-worst", "", ""
    for part in given:
        limit, _, size = (piece.strip() for piece in part.replace(":", "=").partition("="))
        if limit not in _LIMITS:
            raise InputError(f"the selection rule {text!r}: the limit {limit!r} is unknown; there are {', '.join(_LIMITS)}")
        if limit in limits:
            raise InputError(f"the selection rule {text!r}: the limit {limit!r} stands twice")
        limits[limit] = _number(text, limit, size, *_LIMITS[limit], whole=limit == "cap")
    if name == BEST_OF_N and limits.keys() - {"p"}:
        raise InputError(
            f"the selection rule {text!r}: best-of-n knows no limit but p, the winner's mean probability of winning"
        )
    if sign and name not in _VALUES:
        raise InputError(f"the selection rule {text!r}: {name} takes no value")
    own = 0.0
    if name in _VALUES:
        default, *within = _VALUES[name]
        own = _number(text, name, value, *within, whole=name == "top-k") if sign or default is None else default
    cap = limits.pop("cap", None)
    return Rule(name, own, cap=None if cap is None else int(cap), **{k.replace("-", "_"): v for k, v in limits.items()})


def _number(text: str, name: str, value: str, least: float, most: float, *, whole: bool) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and least <= number <= most) or (whole and number != int(number)):
        bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise InputError(f"the selection rule {text!r}: {name} must be a {'whole ' * whole}number {bounds}, got {value!r}")
    return number


BEST_WORST = Rule("best-worst")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a rule made of a record: `pairs`, surest first, or the `reason` why there is none.

    `limited` names the limit by which each pair that the rule had picked was dropped. `lengths` counts the pairs of the pool
    whose texts differ in length, and those of them in which the longer one wins.
    """

    pairs: Sequence[PreferencePair] = ()
    reason: str | None = None
    limited: Sequence[str] = ()
    lengths: tuple[int, int] = (0, 0)


def select(rule: Rule, record: Record, ranking: Ranking, *, seed: int = 0, **allowed: bool) -> Selection:
    """The pairs of one record by a rule. `allowed` are the answers let in besides the sound ones, as in `pairs.eligible`."""
    if len(ranking.ids) < 2:
        return Selection(reason=pairs.why_not_judged(record.candidates, **allowed))
    pool = _pool(record, ranking, seed)
    if len(pool.order) < 2:
        return Selection(reason="no_verdict")
    if pool.p((pool.order[0], pool.order[-1])) < 0.5 + TIE:
        return Selection(reason="tied")
    picked = [pair for pair in _RULES[rule.name](pool, rule.value) if pool.p(pair) >= 0.5 + TIE]
    kept, limited = _limit(rule, pool, sorted(picked, key=pool.p, reverse=True))
    by_id = {c.id: c for c in record.candidates}
    found = [pairs.pair(record, ranking, one, other, by_id) for one, other in kept]
    reason = None if found else limited[0] if limited else _NOTHING_PICKED[rule.name]
    return Selection(found, reason, limited, _lengths(pool))


def _pool(record: Record, ranking: Ranking, seed: int) -> Pool:
    judged = pairs.compared(record.verdicts)
    order = sorted((k for k, c in enumerate(ranking.ids) if c in judged), key=lambda k: (-ranking.strengths[k], k))
    by_id = {c.id: c.text for c in record.candidates}
    texts = [by_id[c] for c in ranking.ids]
    return Pool(order, ranking, texts, lambda count: seed_of(seed, record.prompt.id, "best-random") % count)


def _limit(rule: Rule, pool: Pool, picked: _Picks) -> tuple[_Picks, list[str]]:
    kept: _Picks = []
    limited: list[str] = []
    for pair in picked:
        reason = _over(rule, pool, pair) or ("over_cap" if rule.cap is not None and len(kept) >= rule.cap else None)
        if reason is None:
            kept.append(pair)
        else:
            limited.append(reason)
    return kept, limited


def _over(rule: Rule, pool: Pool, pair: tuple[int, int]) -> str | None:
    scores = pool.ranking.scores
    if rule.p is not None and pool.p(pair) < rule.p - TIE:
        return "p_too_low"
    if rule.margin is not None and scores[pair[0]] - scores[pair[1]] < rule.margin - TIE:
        return "margin_too_small"
    if rule.max_length_ratio is not None and pool.length_ratio(pair) > rule.max_length_ratio:
        return "lengths_too_different"
    return None


def _lengths(pool: Pool) -> tuple[int, int]:
    differ = [len(pool.texts[one]) - len(pool.texts[other]) for one, other in pool.decided()]
    return sum(d != 0 for d in differ), sum(d > 0 for d in differ)


def best(
    rule: Rule, record: Record, ranking: Ranking, *, accepted: Mapping[str, float] | None = None, **allowed: bool
) -> Best | str:
    """The best answer of one record by the rule best-of-n, of those `accepted` if they are given, or the reason for none."""
    found = pairs.best_of_n(record, ranking, accepted=accepted, **allowed)
    if isinstance(found, Best) and rule.p is not None and (found.p_win is None or found.p_win < rule.p - TIE):
        return "p_too_low"
    return found
