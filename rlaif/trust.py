"""The audit of a run in some ten lines: can this judge be trusted? Pure: the `audit` of summary.json in, lines out.

A warning needs evidence: an interval over ten prompts and thirty trials at least that excludes what is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlaif.bias import RANDOM_CYCLES

_LEAST_TRIALS, _LEAST_PROMPTS = 30, 10
_LENGTHS = (0.4, 0.6)
_NAME, _CELL = 28, 17
_MOST_JUDGES, _MOST_CAUSES = 4, 5
Rate = Mapping[str, Any]


def lines(audit: Mapping[str, Any]) -> Iterator[str]:
    """The audit in words; none where nothing was judged."""
    judges = audit["by_judge"]
    if not judges:
        return
    yield "audit (95 % intervals over prompts in brackets):"
    yield from _table(judges)
    yield from _gaps(audit["by_length_gap"])
    yield from _pairs(audit)
    for one in audit["agreement"]:
        if one["of"]:
            sure = "" if one["kappa"] is None else f", kappa {one['kappa']:.2f}"
            yield f"  {_cut(one['judges'][0])} and {_cut(one['judges'][1])} agree on {told(one)} of {one['of']:,} pairs{sure}"
    cyclic = audit["intransitive"]
    if cyclic["of"]:
        yield (
            f"  of {cyclic['of']:,} triples compared directly {told(cyclic, 1)} go round (a > b > c > a);"
            f" coins: {RANDOM_CYCLES:.0%}"
        )
    if causes := audit["no_verdict"]:
        shown = ", ".join(f"{cause} {count:,}" for cause, count in list(causes.items())[:_MOST_CAUSES])
        yield f"  no verdict: {shown}" + (", ..." if len(causes) > _MOST_CAUSES else "")
    yield from warnings(audit)


def warnings(audit: Mapping[str, Any]) -> Iterator[str]:
    """What a person should know before training on the labels, a sentence each."""
    for name, found in audit["by_judge"].items():
        first = found["first_shown"]
        if side := _side(first, 0.5, 0.5):
            which = "first" if side > 0 else "second"
            share = first["value"] if side > 0 else 1 - first["value"]
            yield (
                f"  Careful: {_cut(name)} leans to the answer shown {which}: it named it in {share:.0%} of its comparisons."
                " Pairs are shown in both orders and corrected for it; one order alone would be wrong."
            )
        ranked = found.get("first_ranked")
        if ranked and (side := _side(ranked, ranked["expected"], ranked["expected"])):
            often = "more" if side > 0 else "less"
            yield (
                f"  Careful: in its rankings {_cut(name)} puts the first shown first {often} often than chance:"
                f" {told(ranked)}, by chance {ranked['expected']:.0%}."
            )
    longer = audit.get("longer_chosen")
    if longer and (side := _side(longer, *_LENGTHS)):
        which, share = ("longer", longer["value"]) if side > 0 else ("shorter", 1 - longer["value"])
        yield (
            f"  Careful: the {which} answer is chosen in {share:.0%} of the pairs. A model trained on them learns length first:"
            " compare --select length-matched."
        )
    cyclic = audit["intransitive"]
    if cyclic["interval"] and _enough(cyclic) and cyclic["interval"][1] > RANDOM_CYCLES > cyclic["interval"][0]:
        yield "  Careful: its comparisons contradict each other as often as coins would."


def told(rate: Rate, digits: int = 0) -> str:
    """A rate and its interval as a person reads them, in per cent."""
    if rate["value"] is None:
        return "-"
    low, high = rate["interval"]
    return f"{100 * rate['value']:.{digits}f} % ({100 * low:.{digits}f}-{100 * high:.{digits}f})"


def _table(judges: Mapping[str, Any]) -> Iterator[str]:
    columns = {"first_shown": "first shown wins", "flip": "flips", "longer": "prefers longer", "no_verdict": "no verdict"}
    yield _row("judge", *columns.values())
    for name, found in list(judges.items())[:_MOST_JUDGES]:
        yield _row(_cut(name), *(told(found[kind]) for kind in columns))
    for name, found in list(judges.items())[:_MOST_JUDGES]:
        if "first_ranked" in found:
            ranked = found["first_ranked"]
            yield f"  rankings of {_cut(name)}: first shown ranked first {told(ranked)}, by chance {ranked['expected']:.0%}"
    if len(judges) > _MOST_JUDGES:
        yield f"  and {len(judges) - _MOST_JUDGES} more judges"


def _gaps(gaps: list[Any]) -> Iterator[str]:
    """The bins by length gap that anything fell into."""
    kinds = ("first_shown", "flip", "longer")
    found = [gap for gap in gaps if any(gap[kind]["of"] for kind in kinds)]
    if found:
        yield "  longer / shorter text"
    for gap in found:
        name = f"  {gap['from']:g} and more" if gap["to"] is None else f"  {gap['from']:g} to {gap['to']:g}"
        yield _row(
            name, *(told(gap[kind]) for kind in kinds), f"{max(gap[kind]['of'] for kind in kinds):,}".rjust(7) + " verdicts"
        )


def _pairs(audit: Mapping[str, Any]) -> Iterator[str]:
    longer = audit.get("longer_chosen")
    if longer and longer["of"]:
        yield f"  the longer answer is chosen in {told(longer)} of {longer['of']:,} pairs of unequal length"
    name = "p_win" if "p_win" in audit else "p_chosen"
    if (p := audit.get(name)) and p["of"]:
        below = ", ".join(f"{share:.0%} below {edge}" for edge, share in p["below"].items() if edge != "0.5")
        yield f"  {name}: {below}"


def _row(name: str, *cells: str) -> str:
    return ("  " + name.ljust(_NAME) + "".join(cell.ljust(_CELL) for cell in cells)).rstrip()


def _cut(name: str) -> str:
    """A name that fits, without what would move the cursor."""
    plain = "".join(letter if letter.isprintable() else " " for letter in name)
    return plain if len(plain) < _NAME else f"{plain[: _NAME - 17]}...{plain[-12:]}"


def _enough(rate: Rate) -> bool:
    return bool(rate["of"] >= _LEAST_TRIALS and rate["prompts"] >= _LEAST_PROMPTS)


def _side(rate: Rate, low: float, high: float) -> int:
    """1 where the rate is surely above `high`, -1 where it is surely below `low`, else 0."""
    if not _enough(rate):
        return 0
    return 1 if rate["interval"][0] > high else -1 if rate["interval"][1] < low else 0
