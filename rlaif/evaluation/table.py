"""An evaluation as lines of text: a table of judges beside the baselines, and what needs saying. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlaif import tables
from rlaif.tables import GAP, aligned

_WIDEST_NAME = 44
_MOST_CATEGORIES, _MOST_COMPARED = 12, 10

Column = tuple[str, Callable[[dict[str, Any]], str]]


def readable(text: str, most: int = _WIDEST_NAME) -> str:
    """A name as tables show it."""
    return tables.readable(text, most)


def percent(rate: dict[str, Any] | None) -> str:
    """A rate as 71.8, in percent; - where there is none."""
    return "-" if rate is None or rate["value"] is None else f"{100 * rate['value']:.1f}"


def span(rate: dict[str, Any] | None) -> str:
    """A rate's interval as 66.1-76.9, in percent."""
    return "-" if rate is None or rate["interval"] is None else "-".join(f"{100 * end:.1f}" for end in rate["interval"])


def number(found: dict[str, Any] | None, key: str = "value", digits: int = 3) -> str:
    """A number as 0.412."""
    return "-" if found is None or found[key] is None else f"{found[key]:.{digits}f}"


def _rate(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda found: percent(found[name])


def _tokens(found: dict[str, Any]) -> str:
    spent = found["spend"]["tokens_per_right_label"]
    return "-" if spent is None else f"{spent:,.0f}"


def _cost(found: dict[str, Any]) -> str:
    spent = found["spend"]["cost_usd_per_right_label"]
    return "-" if spent is None else f"{spent:.3g}"


COLUMNS: tuple[Column, ...] = (
    ("pairs", lambda found: str(found["pairs"]["judged"])),
    ("accuracy", _rate("accuracy")),
    ("95 %", lambda found: span(found["accuracy"])),
    ("label", _rate("accuracy_labelled")),
    ("consistent", _rate("consistent")),
    ("right if so", _rate("accuracy_consistent")),
    ("flip", _rate("flip_rate")),
    ("first", _rate("first_shown")),
    ("longer", _rate("longer_chosen")),
    ("none", _rate("no_verdict")),
    ("kappa", lambda found: number(found["kappa"], digits=2)),
    ("Brier", lambda found: number(found["brier"])),
    ("log loss", lambda found: number(found["log_loss"])),
    ("ECE", lambda found: number(found["calibration"], "ece")),
    ("tokens/right", _tokens),
    ("USD/right", _cost),
)
_EXPLAINED = (
    "accuracy: single orders, ties and failures are wrong; label: both orders together, as a run would label; consistent: both"
    " orders name the same winner. Percent; intervals 95 %, clustered by prompt."
)


def lines(found: dict[str, Any], width: int | None = None) -> list[str]:
    """The table and its notes; columns beyond `width` characters go on in a table below, under the same names."""
    judges, plain = found["judges"], found["baselines"]
    columns = [c for c in COLUMNS if any(c[1](row) != "-" for row in (*judges, *plain))]
    said = [f"{found['pairs']} gold pairs of {found['prompts']} prompts, {found['gold_ties']} of them ties, which are left out"]
    if any(row["pairs"]["without_verdicts"] for row in judges):
        said.append("gold pairs without verdicts: " + _missing(judges))
    while columns:
        shown = _fitting(columns, [*judges, *plain], width)
        said += ["", *_table(columns[:shown], [*judges, None, *plain])]
        columns = columns[shown:]
    said += ["", _EXPLAINED]
    return [*said, *_causes(judges), *_compared(found["paired"]), *_categories(judges)]


def _fitting(columns: Sequence[Column], rows: Sequence[dict[str, Any]], width: int | None) -> int:
    """How many of the columns fit, two at least."""
    used = max((len(readable(row["judge"])) for row in rows), default=0)
    for place, (name, cell) in enumerate(columns):
        used += len(GAP) + max(len(name), *(len(cell(row)) for row in rows))
        if width is not None and used > width and place > 1:
            return place
    return len(columns)


def _table(columns: Sequence[Column], rows: Sequence[dict[str, Any] | None]) -> list[str]:
    cells = [["judge", *(name for name, _ in columns)]]
    cells += [
        [""] * (len(columns) + 1) if row is None else [readable(row["judge"]), *(c(row) for _, c in columns)] for row in rows
    ]
    return aligned(cells)


def _missing(judges: Sequence[dict[str, Any]]) -> str:
    counts = [row["pairs"]["without_verdicts"] for row in judges]
    if len(set(counts)) == 1:
        return f"{counts[0]}" + (" by each judge" if len(judges) > 1 else "")
    return f"{min(counts)} to {max(counts)} by judge"


def _causes(judges: Sequence[dict[str, Any]]) -> list[str]:
    found = [row for row in judges if row["no_verdict_causes"]]
    shown = [
        f"no verdict from {readable(row['judge'])}: "
        + ", ".join(f"{readable(cause)} {count}" for cause, count in list(row["no_verdict_causes"].items())[:5])
        for row in found[:_MOST_COMPARED]
    ]
    more = len(found) - len(shown)
    return [*shown, *([f"... and from {more} more judges"] if more > 0 else [])]


def _compared(paired: Sequence[dict[str, Any]]) -> list[str]:
    said: list[str] = []
    for one in paired:
        listed = [d for d in one["differences"] if d["value"] is not None]
        if not listed:
            continue
        said += ["", f"accuracy, in points, less that of {readable(one['reference'])} on the same pairs:"]
        widest = max(len(readable(d["judge"])) for d in listed[:_MOST_COMPARED])
        for difference in listed[:_MOST_COMPARED]:
            ends = difference["interval"]
            within = "" if ends is None else f"  [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
            p = "" if difference["p_holm"] is None else f"  p {_p(difference['p_holm'])} (Holm)"
            words = f"  {readable(difference['judge']):{widest}}  {100 * difference['value']:+6.1f}{within}{p}"
            said.append(f"{words}  {difference['of']} pairs")
        if len(listed) > _MOST_COMPARED:
            said.append(f"  ... and {len(listed) - _MOST_COMPARED} more judges, in summary.json")
    return said


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"


def _categories(judges: Sequence[dict[str, Any]]) -> list[str]:
    """The accuracy by category of a lone judge, or of the best of several."""
    if not judges or not judges[0].get("by_category"):
        return []
    best = judges[0]
    listed = list(best["by_category"].items())
    said = ["", f"accuracy of {readable(best['judge'])} by category:"]
    for name, rates in listed[:_MOST_CATEGORIES]:
        rate = rates["accuracy"]
        said.append(
            f"  {readable(name) or '(none)':{_WIDEST_NAME}}  {percent(rate):>5}  [{span(rate)}]  {rates['pairs']} pairs"
        )
    if len(listed) > _MOST_CATEGORIES:
        said.append(f"  ... and {len(listed) - _MOST_CATEGORIES} more categories, in summary.json")
    return said
