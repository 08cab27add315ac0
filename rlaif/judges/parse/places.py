"""Rankings: every candidate shown has exactly one place, and scores as many points as it has others below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlaif.judges.parse.unreadable import Unreadable, short

_LONGEST = 9  # digits of a place


def of_list(text: str, above: str, level: str | None) -> list[tuple[str, str]]:
    """(name, place) of each name in `B > A = C`, best first."""
    tiers = [tier.split(level) if level else [tier] for tier in text.split(above)]
    return [(name.strip(), str(place)) for place, tier in enumerate(tiers, 1) for name in tier]


def scores(places: Iterable[tuple[str, str]], names: Sequence[str]) -> tuple[float, ...]:
    """For each of `names`, how many others it stands above, an equal counting half (Borda). Raises Unreadable.

    A name may be said again if its place is the same.
    """
    found: dict[str, int] = {}
    for name, place in places:
        if name not in names:
            raise Unreadable("not_offered", f"{short(name)!r} was not offered")
        if not place.isdecimal() or len(place) > _LONGEST:
            raise Unreadable("out_of_range", f"{short(place)!r} is no place")
        if found.setdefault(name, int(place)) != int(place):
            raise Unreadable("contradiction", f"contradictory places of {name!r}")
    missing = [name for name in names if name not in found]
    if missing:
        raise Unreadable("no_verdict", f"the ranking leaves out {', '.join(missing)}")
    at = [found[name] for name in names]
    return tuple((sum(p > own for p in at) + sum(p >= own for p in at) - 1) / 2 for own in at)
