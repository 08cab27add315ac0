"""`rlaif report DIR`: the audit of a run directory, finished or not, in the terminal and as DIR/report.html. Buys nothing.

The page stands by itself: styles and plots (SVG) are in it, and nothing is loaded from elsewhere. Every text in it is escaped;
in plots, where fonts differ, judges' names are ASCII.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif import results, trust
from rlaif.export import write_whole
from rlaif.keys import digest
from rlaif.rundir import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = {"first_shown": "first shown wins", "flip": "flips", "longer": "prefers the longer"}
_COLOUR, _LONGEST_NAME = "#2f6690", 40
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .9rem .25rem 0; text-align: left; }
th { border-bottom: 1px solid #999; font-weight: 600; } td { border-bottom: 1px solid #e5e5e5; }
.careful { background: #fff3d6; padding: .5rem .8rem; } svg { max-width: 100%; height: auto; } small { color: #666; }
"""


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
    compared = {judge: of["first_shown"] for judge, of in audit["by_judge"].items() if of["first_shown"]["n"]}
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p>{found['finished']:,} of {found['prompts']:,} prompts are finished; {found['pairs']:,} {_made(found)}.",
        "<br><small>In brackets: 95 % intervals over prompts; n counts verdicts or pairs.</small></p>",
        *(f'<p class="careful">{escape(line.strip())}</p>' for line in trust.warnings(audit)),
        "<h2>Judges</h2>",
        _judges(audit["by_judge"]),
        _plot(lambda axes: _places(axes, compared), 1.2 + 0.4 * len(compared)) if compared else "",
        *_others(audit),
        "<h2>By length</h2>",
        _gaps(audit["by_length_gap"]),
        _plot(lambda axes: _by_gap(axes, audit["by_length_gap"])),
        *_rows(audit),
        *_counts("No verdict", "cause", audit["no_verdict"]),
        *_counts(f"Prompts without a {_made(found)[:-1]}", "reason", found["dropped"]),
        *_counts("Degenerate answers", "kind", found["degenerate"]),
    ]
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title><style>{_STYLE}</style>'
    return head + "</head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"


def _made(found: Mapping[str, Any]) -> str:
    return "answers" if found["command"] == "best-of-n" else "pairs"


# Tables


def _judges(judges: Mapping[str, Any]) -> str:
    kinds = {**_KINDS, "no_verdict": "no verdict", "intransitive": "triples that go round"}
    rows = [[name, *(_cell(found[kind]) for kind in kinds)] for name, found in judges.items()]
    return _table(["judge", *kinds.values()], rows)


def _others(audit: Mapping[str, Any]) -> Iterator[str]:
    ranked = {name: found["first_ranked"] for name, found in audit["by_judge"].items() if "first_ranked" in found}
    if ranked:
        rows = [[name, _cell(found), f"{found['expected']:.0%}"] for name, found in ranked.items()]
        yield _table(["judge, in rankings", "first shown ranked first", "by chance"], rows)
    if audit["agreement"]:
        rows = [
            [*one["judges"], _cell(one), "-" if one["kappa"] is None else f"{one['kappa']:.2f}"] for one in audit["agreement"]
        ]
        yield _table(["judge", "and judge", "agree where both name a winner", "Cohen's kappa"], rows)
    if audit["intransitive"]["triples"]:
        told = trust.told(audit["intransitive"], 1)
        yield (
            f"<p>Of {audit['intransitive']['triples']:,} triples of answers that a judge compared directly {told} go round:"
            " a better than b, b better than c, c better than a. Of a judge that tossed coins it would be 25 %.</p>"
        )


def _gaps(gaps: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ["longer / shorter text", *_KINDS.values()], [[_span(gap), *(_cell(gap[kind]) for kind in _KINDS)] for gap in gaps]
    )


def _rows(audit: Mapping[str, Any]) -> Iterator[str]:
    """What is exported: how often the longer, and how sure."""
    name = "p_win" if "p_win" in audit else "p_chosen"
    if not (found := audit.get(name)) or not found["n"]:
        return
    yield "<h2>What is exported</h2>"
    yield f"<p>The longer answer is chosen in {_cell(audit['longer_chosen'])} of the comparisons of unequal length.</p>"
    yield _table([name, "rows", "share"], [[_span(b), f"{b['n']:,}", f"{b['share']:.1%}"] for b in found["bins"]])
    yield _plot(lambda axes: _histogram(axes, name, found["bins"]))


def _counts(title: str, what: str, counts: Mapping[str, int]) -> Iterator[str]:
    if counts:
        yield f"<h2>{title}</h2>"
        yield _table([what, "count"], [[name, f"{count:,}"] for name, count in counts.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return "<table><tr>" + top + "</tr>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _cell(rate: Mapping[str, Any]) -> str:
    return f"{trust.told(rate, 1)}, n = {rate['n']:,}" if rate["n"] else "-"


def _span(found: Mapping[str, Any]) -> str:
    return f"{found['from']:g} and more" if found["to"] is None else f"{found['from']:g} to {found['to']:g}"


# Plots


def _plot(draw: Any, height: float = 2.8) -> str:
    """What `draw` draws into axes, as an SVG element without a head, metadata, names of namespaces or clickable parts.

    Its ids begin with a hash of the plot, as those of several plots on a page would be the same.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "rlaif", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.5, height), layout="constrained")
        draw(figure.add_subplot())
        into = io.StringIO()
        figure.savefig(into, format="svg", metadata={"Date": None})
    svg = into.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # inside a page these are known
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1p{digest(svg, 8)}-", svg)


def _places(axes: Axes, judges: Mapping[str, Any]) -> None:
    """How often the first shown wins, by judge."""
    _intervals(axes, range(len(judges)), list(judges.values()), vertical=False)
    axes.axvline(0.5, color="grey", linestyle=":")
    names = [name.encode("ascii", "replace").decode()[:_LONGEST_NAME] for name in judges]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel="first shown wins (1/2 without bias)")


def _by_gap(axes: Axes, gaps: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(gaps))
    for (kind, label), marker, shift in zip(_KINDS.items(), "osD", (-0.15, 0.0, 0.15), strict=True):
        _intervals(axes, [place + shift for place in places], [gap[kind] for gap in gaps], marker=marker, label=label)
    axes.axhline(0.5, color="grey", linestyle=":")
    axes.set_xticks(places, [_span(gap) for gap in gaps])
    axes.set(ylim=(-0.02, 1.02), xlabel="longer / shorter text, characters")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.2))


def _histogram(axes: Axes, name: str, bins: Sequence[Mapping[str, Any]]) -> None:
    axes.bar(range(len(bins)), [b["share"] for b in bins], width=0.95, color=_COLOUR)
    axes.set_xticks(range(len(bins)), [_span(b) for b in bins])
    axes.set(xlabel=name, ylabel="share of rows")


def _intervals(axes: Axes, places: Any, rates: Sequence[Mapping[str, Any]], *, vertical: bool = True, **how: Any) -> None:
    """Rates as points with their intervals; those of nothing are left out."""
    known = [(place, rate["rate"], *rate["interval"]) for place, rate in zip(places, rates, strict=True) if rate["n"]]
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
