"""Pairs for a reward model, with the margin by which it should tell them apart.

The loss is -log sigmoid(r_chosen - r_rejected - margin) (Touvron et al. 2023, Llama 2, section 3.2.2), so a margin is a
difference of rewards. Rewards under Bradley-Terry are log-odds: the difference that says how surely chosen is better is the
log-odds of `p_chosen`, small where there were few comparisons. Scores may be ratings, on a scale of their own, and are no
margins.
"""

from __future__ import annotations

import math

from rlaif.export import number
from rlaif.export.parts import Row, answer, check, labels, tools_of
from rlaif.types import PreferencePair

SUREST = 0.999
"""The probability from which on margins grow no more: the log-odds of a judge that is certain are infinite, and what lies
between 0.999 and 1 says how sharp its distribution is, not how often it is right. The largest margin is 6.9."""


def margin(p: float) -> float:
    """The log-odds of `p`, a probability of at least one half: 0 for 0.5, 2.94 for 0.95, 6.91 from 0.999 on."""
    sure = min(p, SUREST)
    return number(math.log(sure / (1.0 - sure)))


def row(pair: PreferencePair) -> Row:
    """Explicit prompt, `chosen`, `rejected`, `margin`. Raises ValueError if the pair is none."""
    check(pair)
    return {
        "id": pair.prompt.id,
        "prompt": list(pair.prompt.messages),
        "chosen": answer(pair.chosen.text),
        "rejected": answer(pair.rejected.text),
        "margin": margin(pair.p_chosen),
        **labels(pair),
        **tools_of(pair.prompt),
    }


def implicit_row(pair: PreferencePair) -> Row:
    """`chosen` and `rejected` as whole conversations, each with the prompt; `margin`. Raises ValueError if the pair is none."""
    check(pair)
    return {
        "id": pair.prompt.id,
        "chosen": [*pair.prompt.messages, *answer(pair.chosen.text)],
        "rejected": [*pair.prompt.messages, *answer(pair.rejected.text)],
        "margin": margin(pair.p_chosen),
        **labels(pair),
        **tools_of(pair.prompt),
    }
