"""The evaluation of several judges on the same gold pairs as one JSON value: what the table and the page show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.data.gold import GoldPair
from rlaif.evaluation.judged import Judged, baselines
from rlaif.evaluation.numbers import BINS, CLIP, calibration_map, clusters_of, numbers
from rlaif.evaluation.paired import against
from rlaif.intervals import LEVEL


def maps(judged: Sequence[Judged], gold: Sequence[GoldPair]) -> dict[str, Any]:
    """What calibration.json holds: a map of each judge whose probabilities tell anything."""
    clusters = clusters_of(gold)
    found = [calibration_map(one, gold, clusters) for one in judged]
    return {"method": "p' = sigmoid(slope * logit(p))", "maps": [one for one in found if one is not None]}


def evaluate(judged: Sequence[Judged], gold: Sequence[GoldPair]) -> dict[str, Any]:
    """`judges`, the most accurate first, and `baselines`, each as of `numbers`; `paired` differences, as of `paired.against`.

    Judges are compared with the most accurate of them (which is so partly by luck: the more judges, the more) and with the
    baseline longest. Which pairs a judge was asked about is its own affair: `pairs` of each says how many these were.
    """
    clusters = clusters_of(gold)
    scored = [(numbers(one, gold, clusters), one) for one in judged]
    scored.sort(key=lambda both: -((both[0]["accuracy"] or {}).get("value") or 0.0))
    ranked = [one for _, one in scored]
    plain = baselines(gold)
    compared = [against(plain[0], ranked, gold, clusters)]
    if len(ranked) > 1:
        compared.insert(0, against(ranked[0], ranked[1:], gold, clusters))
    return {
        "pairs": len(gold),
        "gold_ties": sum(pair.gold == "tie" for pair in gold),
        "prompts": len(set(clusters)),
        "level": LEVEL,
        "log_loss_clip": CLIP,
        "calibration_bins": BINS,
        "judges": [found for found, _ in scored],
        "baselines": [numbers(one, gold, clusters) for one in plain],
        "paired": compared,
    }
