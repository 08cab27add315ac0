"""Plots of an evaluation, each drawn into an empty figure of matplotlib's; what draws says whether there was anything to draw.

Colours are those of Okabe and Ito (2008), which people who are colour-blind tell apart; markers differ as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlaif.evaluation.table import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP"
_GREY, _WIDTH = "#666666", 8.4
_MOST_LINES, _MOST_CATEGORIES, _NAME = len(_COLOURS), 24, 40
Rows = Sequence[dict[str, Any]]
Draw = Callable[["Figure", dict[str, Any]], bool]


def accuracy(figure: Figure, found: dict[str, Any]) -> bool:
    """Each judge's accuracy with its interval, and the baselines'."""
    rows = [row for row in (*found["judges"], *found["baselines"]) if row["accuracy"]]
    axes = _wide(figure, rows, "Accuracy over single orders (%), with 95 % interval")
    _dots(
        axes, [(row["accuracy"], _GREY if row["baseline"] else _COLOURS[0], "o", 0.0, place) for place, row in enumerate(rows)]
    )
    axes.axvline(50, color=_GREY, linewidth=1, linestyle="--")
    return bool(found["judges"])


def categories(figure: Figure, found: dict[str, Any]) -> bool:
    """The accuracy by category of the best judges, the largest categories."""
    judges = [row for row in found["judges"] if row.get("by_category")][:_MOST_LINES]
    sizes: dict[str, int] = {}
    for row in judges:
        for name, rates in row["by_category"].items():
            sizes[name] = max(sizes.get(name, 0), rates["pairs"])
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:_MOST_CATEGORIES]
    if not names:
        return False
    labels = [{"judge": f"{readable(name, _NAME) or '(none)'} ({sizes[name]})"} for name in names]
    axes = _wide(
        figure, labels, "Accuracy over single orders (%), by category (pairs), with 95 % interval", per_row=max(1, len(judges))
    )
    dots = []
    for number, row in enumerate(judges):
        shift = (number - (len(judges) - 1) / 2) * 0.8 / max(1, len(judges))
        dots += [
            (row["by_category"][name]["accuracy"], _COLOURS[number], _MARKERS[number], shift, place)
            for place, name in enumerate(names)
            if name in row["by_category"]
        ]
    _dots(axes, dots)
    axes.axvline(50, color=_GREY, linewidth=1, linestyle="--")
    _legend(axes, judges)
    return True


def reliability(figure: Figure, found: dict[str, Any]) -> bool:
    """How often labels of a probability are right."""
    judges = [row for row in found["judges"] if row["calibration"]][:_MOST_LINES]
    figure.set_size_inches(_WIDTH, 5.0)
    axes = figure.add_subplot()
    axes.plot([50, 100], [50, 100], color=_GREY, linewidth=1, linestyle="--")
    most = max((b["pairs"] for row in judges for b in row["calibration"]["bins"]), default=1)
    for number, row in enumerate(judges):
        bins = row["calibration"]["bins"]
        x, y = ([100 * b[key] for b in bins] for key in ("mean_p", "accuracy"))
        axes.plot(x, y, color=_COLOURS[number], linewidth=1)
        sizes = [20 + 140 * b["pairs"] / most for b in bins]
        axes.scatter(x, y, sizes, color=_COLOURS[number], marker=_MARKERS[number], alpha=0.75, linewidths=0)
    axes.set(xlim=(49, 101), ylim=(-2, 102))
    axes.set_xlabel("Probability of the label (%); on the dashed line it is as often right as it says")
    axes.set_ylabel("Labels that are right (%)")
    _legend(axes, judges)
    return bool(judges)


def consistency(figure: Figure, found: dict[str, Any]) -> bool:
    """Consistency against accuracy where consistent, a point each judge."""
    return _scatter(
        figure,
        found,
        ("consistent", "Both orders name the same winner (% of pairs)"),
        ("accuracy_consistent", "Right where they do (%)"),
    )


def lengths(figure: Figure, found: dict[str, Any]) -> bool:
    """Accuracy where gold is the longer answer against that where it is the shorter."""
    drawn = _scatter(
        figure,
        found,
        ("accuracy_gold_shorter", "Accuracy where gold is the shorter answer (%)"),
        ("accuracy_gold_longer", "Accuracy where gold is the longer answer (%)"),
    )
    if drawn:
        figure.axes[0].axline((50, 50), slope=1, color=_GREY, linewidth=1, linestyle="--")
    return drawn


PLOTS: tuple[tuple[str, Draw], ...] = (
    ("Accuracy of judges and baselines", accuracy),
    ("Accuracy by category", categories),
    ("Reliability: is a probability what it says?", reliability),
    ("Consistency and accuracy", consistency),
    ("Length: does the judge only like long answers?", lengths),
)


def _wide(figure: Figure, rows: Rows, label: str, per_row: int = 1) -> Axes:
    """Axes with a row for each of `rows`, the first on top, from 0 to 100 %."""
    height = 0.19 + 0.07 * (per_row - 1)
    figure.set_size_inches(_WIDTH, 0.9 + height * len(rows))
    axes = figure.add_subplot()
    axes.set_yticks(range(len(rows)), [readable(row["judge"], _NAME) for row in rows], parse_math=False)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0)
    return axes


def _dots(axes: Axes, dots: Sequence[tuple[dict[str, Any], str, str, float, int]]) -> None:
    """(rate, colour, marker, shift, row) each: a dot with its interval."""
    for rate, colour, marker, shift, place in dots:
        if rate["interval"] is not None:
            axes.plot([100 * end for end in rate["interval"]], [place + shift] * 2, color=colour, linewidth=1.5)
        axes.plot([100 * rate["value"]], [place + shift], marker, color=colour, markersize=4.5, clip_on=False)


def _legend(axes: Axes, judges: Rows) -> None:
    """Which colour and marker is whose, below the axes."""
    if len(judges) < 2:
        return
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=_COLOURS[k], marker=_MARKERS[k], linewidth=1.5) for k in range(len(judges))]
    height = float(axes.get_window_extent().height) / 100.0  # in inches: a figure has 100 dots an inch
    legend = axes.legend(
        marks,
        [readable(row["judge"], _NAME) for row in judges],
        loc="upper left",
        bbox_to_anchor=(0.0, -0.55 / height),
        ncols=2,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _scatter(figure: Figure, found: dict[str, Any], x: tuple[str, str], y: tuple[str, str]) -> bool:
    rows = [row for row in (*found["judges"], *found["baselines"]) if row[x[0]] and row[y[0]]]
    figure.set_size_inches(_WIDTH, 5.0)
    axes = figure.add_subplot()
    named = [row for row in rows if not row["baseline"]][:_MOST_LINES]
    baselines: dict[tuple[float, float], list[str]] = {}
    for row in rows:
        place = named.index(row) if row in named else None
        colour, marker = (_GREY, "x" if row["baseline"] else ".") if place is None else (_COLOURS[place], _MARKERS[place])
        where = 100 * row[x[0]]["value"], 100 * row[y[0]]["value"]
        axes.plot(*([value] for value in where), marker, color=colour, markersize=7)
        if row["baseline"]:
            baselines.setdefault(where, []).append(row["judge"])
    for where, names in baselines.items():
        axes.annotate(", ".join(names), where, (5, 4), textcoords="offset points", color=_GREY)
    axes.set(xlim=(-3, 103), ylim=(-3, 103))
    axes.set_xlabel(x[1])
    axes.set_ylabel(y[1])
    _legend(axes, named)
    if len(named) == 1:
        axes.set_title(readable(named[0]["judge"], _NAME), fontsize=9, parse_math=False)
    return any(not row["baseline"] for row in rows)
