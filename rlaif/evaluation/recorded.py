"""Verdicts from files on the gold pairs at hand."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rlaif.data.gold import GoldPair
from rlaif.errors import InputError
from rlaif.evaluation.judged import Judged, of_recorded
from rlaif.judges.recorded import RecordedJudge, load_all

_SHOWN = 10


def judged(
    paths: Sequence[str], gold: Sequence[GoldPair], only: Sequence[str] = (), others: Collection[str] = ()
) -> tuple[list[Judged], int]:
    """Every judge and config in the files that spoke of a gold pair; and how many (pair, judge) in the files join none.

    With `only`, those alone with one of the texts in `judge config`. `others` are ids of gold pairs that are left aside on
    purpose. Raises InputError if no judge is left.
    """
    everyone = load_all(paths)
    meant = [judge for judge in everyone if not only or any(text in named(judge) for text in only)]
    if not meant:
        there = ", ".join(map(named, everyone[:_SHOWN])) + (", ..." if len(everyone) > _SHOWN else "")
        raise InputError(f"--only {' '.join(map(repr, only))}: no recorded judge has it in its name; there are {there}")
    ids = {pair.id for pair in gold}
    joined = [judge for judge in meant if judge.pairs() & ids]
    apart = sum(len(judge.pairs() - ids - set(others)) for judge in meant)
    if not joined:
        example = next((pair for judge in meant for pair in judge.pairs()), "")
        raise InputError(
            f"no verdict joins a gold pair: `pair_id` there is such as {example!r}, `id` here such as {gold[0].id!r}"
        )
    return [of_recorded(judge, gold) for judge in joined], apart


def named(judge: RecordedJudge) -> str:
    """The judge with its config, as tables show it."""
    return judge.judge if judge.config is None else f"{judge.judge} {judge.config}"
