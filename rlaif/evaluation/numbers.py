"""The numbers of one judge on gold pairs. Pure: (gold pairs, what was judged) in, JSON values out.

Pairs whose gold is a tie are counted and left out of every number but kappa. A rate is an object: `value`, `count` of `of`, the
prompts these come from (`prompts`), and its 95 % `interval`, clustered by prompt (`ClusteredRate`); a mean likewise
(`clustered_mean`). What there is nothing to count for is null.

    accuracy            over opinions, each order by itself: ties and failures count as wrong
    accuracy_labelled   over pairs, of the label that a run would make of all verdicts on the pair (p > 1/2): a tie or no
                        label counts as wrong
    consistent          both orders name the same winner (two ties do not), over pairs with both orders
    accuracy_consistent of these pairs, how often that winner is gold;  both_right: consistent and right, over pairs with both
    flip_rate           both orders name different winners, over pairs with two readable verdicts
    first_shown         the first shown is named, over opinions that name a winner and have an order
    longer_chosen       the longer answer (characters) is named, over opinions that name one of two unequally long ones
    accuracy_gold_longer, accuracy_gold_shorter   accuracy over opinions on pairs whose gold is the longer, the shorter one
    no_verdict          opinions without a readable verdict, by cause
    kappa               Cohen's, between gold and label over {A, B, tie}; pairs without a label are left out
    brier, log_loss     of P(A is better) as a run would export it: mean (p - y)^2, and mean -ln P(gold) with p kept 1e-6 away
                        from 0 and 1; over pairs with a label
    calibration         bins of the label's probability max(p, 1 - p), and the expected calibration error over them: the mean
                        distance between probability and accuracy, by the pairs in a bin (Naeini et al. 2015, Guo et al. 2017);
                        a tie counts as half right
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlaif.calibration import fit
from rlaif.data.gold import GoldPair
from rlaif.evaluation.judged import Judged, Opinion
from rlaif.intervals import ClusteredRate, Estimate, clustered_kappa, clustered_mean, rounded, written
from rlaif.pairs import TIE

CLIP = 1e-6
BINS = 10
_LABELS = ("A", "B", "tie")

Asked = list[tuple[int, Opinion]]
Both = list[tuple[int, Opinion, Opinion]]


def clusters_of(gold: Sequence[GoldPair]) -> list[int]:
    """A number for each pair, the same for pairs of the same prompt."""
    seen: dict[str, int] = {}
    return [seen.setdefault(pair.prompt.text, len(seen)) for pair in gold]


def numbers(judged: Judged, gold: Sequence[GoldPair], clusters: Sequence[int]) -> dict[str, Any]:
    """All numbers of a judge; `clusters` as of `clusters_of`."""
    count = _Counting(judged, gold, clusters)
    decided = [k for k, pair in enumerate(gold) if pair.gold != "tie"]
    asked = [k for k in decided if judged.opinions[k]]
    found: dict[str, Any] = {
        "judge": judged.name,
        "baseline": judged.baseline,
        "pairs": {
            "gold": len(gold),
            "gold_ties": len(gold) - len(decided),
            "without_verdicts": len(decided) - len(asked),
            "judged": len(asked),
            "prompts": len({clusters[k] for k in asked}),
        },
        "labels": _labels(judged, gold, asked),
        **count.rates(asked),
        **count.of_labels(asked),
    }
    if any(pair.category is not None for pair in gold):
        found["by_category"] = count.by_category(asked)
    found["spend"] = _spend(judged, found)
    return found


class _Counting:
    """A judge's opinions and labels on numbered pairs, counted."""

    def __init__(self, judged: Judged, gold: Sequence[GoldPair], clusters: Sequence[int]) -> None:
        self._judged, self._gold, self._clusters = judged, gold, clusters

    def rates(self, asked: Sequence[int]) -> dict[str, Any]:
        """What is counted in opinions, over these pairs."""
        judged = self._judged
        single: Asked = [(k, o) for k in asked for o in judged.opinions[k]]
        return {
            **self.accuracies(asked),
            **self._of_both(self._both(asked)),
            "first_shown": self._rate(
                (k, bool(o.named_first)) for k, o in single if o.named_first is not None and not judged.by_chance
            ),
            "longer_chosen": self._rate(
                (k, o.winner == self._gold[k].longer)
                for k, o in single
                if o.winner in ("A", "B") and self._gold[k].longer != "tie"
            ),
            **{
                name: self._rate((k, self._right(k, o)) for k, o in single if of(self._gold[k]))
                for name, of in (("accuracy_gold_longer", _gold_longer), ("accuracy_gold_shorter", _gold_shorter))
            },
            "no_verdict": None if judged.by_chance else self._rate((k, o.winner is None) for k, o in single),
            "no_verdict_causes": dict(Counter(o.cause or "no_verdict" for _, o in single if o.winner is None).most_common()),
        }

    def accuracies(self, asked: Sequence[int]) -> dict[str, Any]:
        """Over opinions, and of labels."""
        judged, gold = self._judged, self._gold
        return {
            "accuracy": self._rate((k, self._right(k, o)) for k in asked for o in judged.opinions[k]),
            "accuracy_labelled": self._rate((k, judged.label(k) == gold[k].gold) for k in asked),
        }

    def by_category(self, asked: Sequence[int]) -> dict[str, Any]:
        """The rates that say how good it is, by category, the largest first."""
        places: dict[str, list[int]] = {}
        for k in asked:
            places.setdefault(self._gold[k].category or "", []).append(k)
        found = {}
        for name, those in sorted(places.items(), key=lambda item: (-len(item[1]), item[0])):
            both = self._of_both(self._both(those))
            found[name] = {"pairs": len(those), **self.accuracies(those), "flip_rate": both["flip_rate"]}
        return found

    def _of_both(self, both: Both) -> dict[str, Any]:
        agree = [(k, one) for k, one, other in both if one.winner == other.winner and one.winner in ("A", "B")]
        read = [(k, one, other) for k, one, other in both if one.winner is not None and other.winner is not None]
        same = {(k, one.member) for k, one in agree}
        return {
            "consistent": self._rate((k, (k, one.member) in same) for k, one, _ in both),
            "accuracy_consistent": self._rate((k, self._right(k, one)) for k, one in agree),
            "both_right": self._rate((k, self._right(k, one) and self._right(k, other)) for k, one, other in both),
            "flip_rate": self._rate((k, {one.winner, other.winner} == {"A", "B"}) for k, one, other in read),
        }

    def _both(self, asked: Sequence[int]) -> Both:
        """(pair, opinion on AB, opinion on BA) of each member that was asked in both orders."""
        found: Both = []
        for k in asked:
            by = {(o.member, o.order): o for o in self._judged.opinions[k]}
            found.extend((k, o, by[m, "BA"]) for (m, order), o in by.items() if order == "AB" and (m, "BA") in by)
        return found

    def of_labels(self, asked: Sequence[int]) -> dict[str, Any]:
        """What is counted in labels and their probabilities, over these pairs; kappa also over those whose gold is a tie."""
        judged, gold, clusters = self._judged, self._gold, self._clusters
        known = [(k, p, float(gold[k].gold == "A")) for k in asked if (p := judged.p[k]) is not None]
        where = [clusters[k] for k, _, _ in known]
        brier = [(p - y) ** 2 for _, p, y in known]
        loss = [-math.log(min(max(p if y else 1.0 - p, CLIP), 1.0 - CLIP)) for _, p, y in known]
        return {
            "kappa": self._kappa(),
            "brier": _mean(brier, where),
            "log_loss": _mean(loss, where),
            "calibration": None if judged.by_chance else calibration([(p, y) for _, p, y in known]),
        }

    def _kappa(self) -> dict[str, Any] | None:
        judged, gold = self._judged, self._gold
        if judged.by_chance:
            return {"value": 0.0, "of": len(gold), "prompts": None, "interval": None}
        both = [(k, label) for k in range(len(gold)) if (label := judged.label(k)) is not None]
        where = [self._clusters[k] for k, _ in both]
        truth = [_LABELS.index(gold[k].gold) for k, _ in both]
        found = clustered_kappa(truth, [_LABELS.index(label) for _, label in both], where)
        return None if found is None else _estimate(found, where)

    def _right(self, place: int, opinion: Opinion) -> bool:
        return opinion.winner == self._gold[place].gold

    def _rate(self, outcomes: Iterable[tuple[int, bool]]) -> dict[str, Any] | None:
        listed = list(outcomes)
        if not listed:
            return None
        found = ClusteredRate.of([right for _, right in listed], [self._clusters[k] for k, _ in listed])
        if self._judged.by_chance:
            return found.numbers() | {"value": 0.5, "count": None, "interval": None}
        return found.numbers()


def calibration_map(judged: Judged, gold: Sequence[GoldPair], clusters: Sequence[int]) -> dict[str, Any] | None:
    """The map of a judge's probabilities (`rlaif.calibration`); None where they tell nothing."""
    known = [(k, p) for k, pair in enumerate(gold) if pair.gold != "tie" and (p := judged.p[k]) is not None]
    found = fit([p for _, p in known], [gold[k].gold == "A" for k, _ in known], [clusters[k] for k, _ in known])
    if found is None:
        return None
    slope = {"slope": found.slope, "interval": written(found.interval), "pairs": len(known)}
    return {"judge": judged.name, "rubric": judged.rubric} | slope


def calibration(known: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """Bins and error from (P(A is better), 1 if A is gold else 0); None without any. Bins without a pair are left out."""
    if not known:
        return None
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for p, y in known:
        sure = max(p, 1.0 - p)
        right = 0.5 if abs(p - 0.5) < TIE else float((p > 0.5) == (y == 1.0))
        bins[min(int((sure - 0.5) * 2 * BINS), BINS - 1)].append((sure, right))
    listed = []
    for place, inside in enumerate(bins):
        if inside:
            low = 0.5 + place / (2 * BINS)
            mean, accuracy = (sum(values) / len(inside) for values in zip(*inside, strict=True))
            end = round(low + 0.5 / BINS, 6)
            listed.append({"from": low, "to": end, "pairs": len(inside), "mean_p": mean, "accuracy": accuracy})
    error = sum(b["pairs"] * abs(b["mean_p"] - b["accuracy"]) for b in listed) / len(known)
    return {
        "of": len(known),
        "ece": rounded(error),
        "bins": [{name: round(value, 6) for name, value in b.items()} for b in listed],
    }


def _labels(judged: Judged, gold: Sequence[GoldPair], asked: Sequence[int]) -> dict[str, int] | None:
    """How many pairs have the right label, the wrong one, a tie, or none; None of a coin."""
    if judged.by_chance:
        return None
    labels = [(judged.label(k), gold[k].gold) for k in asked]
    found = {"right": sum(label == right for label, right in labels), "tie": 0, "none": 0}
    found["tie"], found["none"] = (sum(label == kind for label, _ in labels) for kind in ("tie", None))
    return found | {"wrong": len(labels) - sum(found.values())}


def _gold_longer(pair: GoldPair) -> bool:
    return pair.longer == pair.gold


def _gold_shorter(pair: GoldPair) -> bool:
    return pair.longer not in ("tie", pair.gold)


def _mean(values: Sequence[float], clusters: Sequence[int]) -> dict[str, Any] | None:
    return _estimate(clustered_mean(values, clusters), clusters) if values else None


def _estimate(found: Estimate, clusters: Sequence[int]) -> dict[str, Any]:
    return {
        "value": rounded(found.value),
        "of": len(clusters),
        "prompts": len(set(clusters)),
        "interval": written(found.interval),
    }


def _spend(judged: Judged, found: dict[str, Any]) -> dict[str, Any]:
    """Tokens and cost, in all and for each pair that the label has right; null for verdicts that were bought elsewhere."""
    spend, accuracy = judged.spend, found["accuracy_labelled"]
    right = accuracy["count"] if accuracy else None
    known = spend is not None and spend.prompt_tokens is not None and spend.completion_tokens is not None
    tokens = (spend.prompt_tokens or 0) + (spend.completion_tokens or 0) if spend is not None and known else None
    cost = None if spend is None else spend.cost_usd
    return {
        "prompt_tokens": None if spend is None else spend.prompt_tokens,
        "completion_tokens": None if spend is None else spend.completion_tokens,
        "cost_usd": cost,
        "right_labels": right,
        "tokens_per_right_label": round(tokens / right, 1) if tokens is not None and right else None,
        "cost_usd_per_right_label": cost / right if cost is not None and right else None,
    }
