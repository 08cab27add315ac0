"""`rlaif report DIR`: the audit of a run directory, finished or not, in the terminal and as DIR/report.html. Buys nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif import html, results, trust
from rlaif.export import write_whole
from rlaif.rundir import writing
from rlaif.tables import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {"first_shown": "first shown wins", "flip": "flips", "longer": "prefers the longer"}
_COLOUR, _LONGEST_NAME = "#2f6690", 40


def report_command(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, finished or not.")]) -> None:
    """Say whether a run's judge can be trusted, and write DIR/report.html; no model is called."""
    for line in report(directory):
        typer.echo(line)


def report(directory: Path) -> Iterator[str]:
    """Writes DIR/report.html; yields the same in lines. Raises InputError if there is no run, or the page cannot be written."""
    found = results.examine(directory)
    path = directory / "report.html"
    yield f"{directory}: {found['finished']:,} of {found['prompts']:,} prompts are finished; {found['pairs']:,} {_made(found)}"
    for reason, count in found["dropped"].items():
        yield f"  no {_made(found)[:-1]}, {reason}: {count:,}"
    audited = list(trust.lines(found["audit"]))
    yield from audited or ["  nothing was judged yet"]
    with writing(path):
        write_whole(path, page(str(directory), found).encode())
    yield f"{path}: the same as a page, with plots"


def page(name: str, found: Mapping[str, Any]) -> str:
    """The page about the run `name`, from the numbers of `results.examine`."""
    audit = found["audit"]
    compared = {judge: of["first_shown"] for judge, of in audit["by_judge"].items() if of["first_shown"]["of"]}
    parts = [
        f"<p>{found['finished']:,} of {found['prompts']:,} prompts are finished; {found['pairs']:,} {_made(found)}.",
        "<br><small>In brackets: 95 % intervals over prompts; n counts verdicts or pairs.</small></p>",
        *(f'<p class="careful">{escape(line.strip())}</p>' for line in trust.warnings(audit)),
        "<h2>Judges</h2>",
        _judges(audit["by_judge"]),
        _plot("first shown wins", lambda axes: _places(axes, compared), 1.2 + 0.4 * len(compared)) if compared else "",
        *_others(audit),
        "<h2>By length</h2>",
        _gaps(audit["by_length_gap"]),
        _plot("by length", lambda axes: _by_gap(axes, audit["by_length_gap"])),
        *_rows(audit),
        *_counts("No verdict", "cause", audit["no_verdict"]),
        *_counts(f"Prompts without a {_made(found)[:-1]}", "reason", found["dropped"]),
        *_counts("Degenerate answers", "kind", found["degenerate"]),
    ]
    return html.document(name, parts)


def _made(found: Mapping[str, Any]) -> str:
    return "answers" if found["command"] == "best-of-n" else "pairs"


# Tables


def _judges(judges: Mapping[str, Any]) -> str:
    kinds = {**_KINDS, "no_verdict": "no verdict", "intransitive": "triples that go round"}
    rows = [[name, *(_cell(found[kind]) for kind in kinds)] for name, found in judges.items()]
    return html.table(["judge", *kinds.values()], rows)


def _others(audit: Mapping[str, Any]) -> Iterator[str]:
    ranked = {name: found["first_ranked"] for name, found in audit["by_judge"].items() if "first_ranked" in found}
    if ranked:
        rows = [[name, _cell(found), f"{found['expected']:.0%}"] for name, found in ranked.items()]
        yield html.table(["judge, in rankings", "first shown ranked first", "by chance"], rows)
    if audit["agreement"]:
        rows = [
            [*one["judges"], _cell(one), "-" if one["kappa"] is None else f"{one['kappa']:.2f}"] for one in audit["agreement"]
        ]
        yield html.table(["judge", "and judge", "agree where both name a winner", "Cohen's kappa"], rows)
    if audit["intransitive"]["of"]:
        told = trust.told(audit["intransitive"], 1)
        yield (
            f"<p>Of {audit['intransitive']['of']:,} triples of answers that a judge compared directly {told} go round:"
            " a better than b, b better than c, c better than a. Of a judge that tossed coins it would be 25 %.</p>"
        )


def _gaps(gaps: Sequence[Mapping[str, Any]]) -> str:
    return html.table(
        ["longer / shorter text", *_KINDS.values()], [[_span(gap), *(_cell(gap[kind]) for kind in _KINDS)] for gap in gaps]
    )


def _rows(audit: Mapping[str, Any]) -> Iterator[str]:
    """What is exported: how often the longer, and how sure."""
    name = "p_win" if "p_win" in audit else "p_chosen"
    if not (found := audit.get(name)) or not found["of"]:
        return
    yield "<h2>What is exported</h2>"
    yield f"<p>The longer answer is chosen in {_cell(audit['longer_chosen'])} of the comparisons of unequal length.</p>"
    yield html.table([name, "rows", "share"], [[_span(b), f"{b['rows']:,}", f"{b['share']:.1%}"] for b in found["bins"]])
    yield _plot(f"rows by {name}", lambda axes: _histogram(axes, name, found["bins"]))


def _counts(title: str, what: str, counts: Mapping[str, int]) -> Iterator[str]:
    if counts:
        yield f"<h2>{title}</h2>"
        yield html.table([what, "count"], [[name, f"{count:,}"] for name, count in counts.items()])


def _cell(rate: Mapping[str, Any]) -> str:
    return f"{trust.told(rate, 1)}, n = {rate['of']:,}" if rate["of"] else "-"


def _span(found: Mapping[str, Any]) -> str:
    return f"{found['from']:g} and more" if found["to"] is None else f"{found['from']:g} to {found['to']:g}"


# Plots


def _plot(name: str, draw: Callable[[Axes], None], height: float = 2.8) -> str:
    """What `draw` draws into axes, so many inches high."""

    def fill(figure: Figure) -> bool:
        figure.set_size_inches(7.5, height)
        draw(figure.add_subplot())
        return True

    return html.svg(fill, name.replace(" ", "-"), name) or ""


def _places(axes: Axes, judges: Mapping[str, Any]) -> None:
    """How often the first shown wins, by judge."""
    _intervals(axes, range(len(judges)), list(judges.values()), vertical=False)
    axes.axvline(0.5, color="grey", linestyle=":")
    names = [readable(name, _LONGEST_NAME) for name in judges]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel="first shown wins (1/2 without bias)")


def _by_gap(axes: Axes, gaps: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(gaps))
    for (kind, label), marker, shift in zip(_KINDS.items(), "osD", (-0.15, 0.0, 0.15), strict=True):
        _intervals(axes, [place + shift for place in places], [gap[kind] for gap in gaps], marker=marker, label=label)
    axes.axhline(0.5, color="grey", linestyle=":")
    axes.set_xticks(places, [_span(gap) for gap in gaps])
    axes.set(xlim=(-0.5, len(gaps) - 0.5), ylim=(-0.02, 1.02), xlabel="longer / shorter text, characters")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.2))


def _histogram(axes: Axes, name: str, bins: Sequence[Mapping[str, Any]]) -> None:
    axes.bar(range(len(bins)), [b["share"] for b in bins], width=0.95, color=_COLOUR)
    axes.set_xticks(range(len(bins)), [_span(b) for b in bins])
    axes.set(xlabel=name, ylabel="share of rows")


def _intervals(axes: Axes, places: Any, rates: Sequence[Mapping[str, Any]], *, vertical: bool = True, **how: Any) -> None:
    """Rates as points with their intervals; those of nothing are left out."""
    known = [(place, rate["value"], *rate["interval"]) for place, rate in zip(places, rates, strict=True) if rate["of"]]
    if not known:
        return
    at, value, low, high = map(list, zip(*known, strict=True))
    error = [
        [max(0.0, v - x) for v, x in zip(value, low, strict=True)],
        [max(0.0, x - v) for v, x in zip(value, high, strict=True)],
    ]
    style = {"fmt": how.pop("marker", "o"), "capsize": 3, "linestyle": "none", **({} if "label" in how else {"color": _COLOUR})}
    if vertical:
        axes.errorbar(at, value, yerr=error, **style, **how)
    else:
        axes.errorbar(value, at, xerr=error, **style, **how)
