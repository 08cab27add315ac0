"""Which of two judges is better, on the pairs that both were asked about. Pure.

The difference is that of accuracy over opinions: of each pair the share of right opinions (0, 1/2 or 1 with both orders), one
judge's less the other's; its mean, interval and p-value are clustered by prompt (`intervals.clustered_mean`). What two judges
find easy or hard together cancels out, so that this tells more than two intervals that overlap.

Beside it McNemar's test (1947) of the labels, by statsmodels: on how many pairs is the one right and the other not, and how
likely is that of judges as good as each other. It takes pairs for independent. Where many judges are compared with one,
p-values are also adjusted by Holm's method (1979) over all of them; intervals are of one comparison, not adjusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.data.gold import GoldPair
from rlaif.evaluation.judged import Judged
from rlaif.intervals import clustered_mean

_EXACT_BELOW = 25


def against(reference: Judged, others: Sequence[Judged], gold: Sequence[GoldPair], clusters: Sequence[int]) -> dict[str, Any]:
    """Each of `others` less `reference`: the name of the reference, and a difference each in the same order."""
    found = [difference(one, reference, gold, clusters) for one in others]
    known = [one for one in found if one["p"] is not None]
    if known:
        from statsmodels.stats.multitest import multipletests

        for one, p in zip(known, multipletests([one["p"] for one in known], method="holm")[1], strict=True):
            one["p_holm"] = float(p)
    return {"reference": reference.name, "differences": found}


def difference(one: Judged, other: Judged, gold: Sequence[GoldPair], clusters: Sequence[int]) -> dict[str, Any]:
    """Accuracy of `one` less that of `other`, with `of` pairs and all as JSON; without a pair in common the values are None.

    The interval and the p-value are None where all pairs differ alike.
    """
    shared = [k for k, pair in enumerate(gold) if pair.gold != "tie" and one.opinions[k] and other.opinions[k]]
    blank = {"judge": one.name, "value": None, "of": len(shared), "prompts": len({clusters[k] for k in shared})}
    if not shared:
        return blank | {"interval": None, "p": None, "p_holm": None, "mcnemar": None}
    found = clustered_mean([_share(one, k, gold) - _share(other, k, gold) for k in shared], [clusters[k] for k in shared])
    return blank | {
        "value": round(found.value, 6),
        "interval": None if found.interval is None else [round(min(max(end, -1.0), 1.0), 6) for end in found.interval],
        "p": found.p,
        "p_holm": None,
        "mcnemar": _mcnemar(one, other, gold, shared),
    }


def _share(judged: Judged, place: int, gold: Sequence[GoldPair]) -> float:
    opinions = judged.opinions[place]
    return sum(o.winner == gold[place].gold for o in opinions) / len(opinions)


def _mcnemar(one: Judged, other: Judged, gold: Sequence[GoldPair], shared: Sequence[int]) -> dict[str, Any] | None:
    if one.by_chance or other.by_chance:
        return None
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[0, 0], [0, 0]]
    for k in shared:
        table[one.label(k) == gold[k].gold][other.label(k) == gold[k].gold] += 1
    only_one, only_other = table[1][0], table[0][1]
    split = only_one + only_other
    p = float(mcnemar(table, exact=split < _EXACT_BELOW, correction=True).pvalue) if split else 1.0
    return {"only_this_right": only_one, "only_reference_right": only_other, "p": min(p, 1.0)}
