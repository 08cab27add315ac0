"""An evaluation as one HTML page that needs nothing else: tables and plots, no script, no link. Names are shown as text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rlaif import html
from rlaif.evaluation import plots
from rlaif.evaluation.table import COLUMNS, number, percent, span

_MOST_CATEGORIES, _MOST_JUDGES = 60, 6
_EXPLAINED = {
    "pairs": "gold pairs that the judge was asked about; ties of gold left out",
    "accuracy": "right opinions, each order by itself; ties and failures are wrong (%)",
    "95 %": "interval of the accuracy, clustered by prompt (%)",
    "label": "pairs that a run would label right from all verdicts on them; a tie is not right (%)",
    "consistent": "pairs on which both orders name the same winner (%)",
    "right if so": "of these, pairs on which that winner is gold (%)",
    "flip": "pairs on which the two orders name different winners (%)",
    "first": "the first shown is named (%)",
    "longer": "the longer answer is named (%)",
    "none": "no readable verdict (%)",
    "kappa": "Cohen's kappa of gold and label",
    "Brier": "mean squared error of P(A is better)",
    "log loss": "mean -ln P(gold), in nats",
    "ECE": "expected calibration error of the label's probability",
    "tokens/right": "tokens for each pair that is labelled right",
    "USD/right": "cost of each pair that is labelled right",
}


def page(found: dict[str, Any], title: str) -> str:
    """The whole page."""
    judges = found["judges"]
    parts = [
        f"<p>{found['pairs']} gold pairs of {found['prompts']} prompts; {found['gold_ties']} ties are left out."
        " Intervals are 95 %, clustered by prompt. All numbers with their denominators are in summary.json.</p>",
        _judges(judges, found["baselines"]),
        _explained(),
        *(_figure(heading, draw, found, f"plot{place}") for place, (heading, draw) in enumerate(plots.PLOTS)),
        *(_paired(one) for one in found["paired"]),
        _categories(judges),
        _causes(judges),
    ]
    return html.document(title, parts)


def _judges(judges: Sequence[dict[str, Any]], baselines: Sequence[dict[str, Any]]) -> str:
    rows = [*judges, *baselines]
    columns = [c for c in COLUMNS if any(c[1](row) != "-" for row in rows)]
    return "<h2>Judges</h2>" + html.table(
        ["judge", *(name for name, _ in columns)],
        [[row["judge"], *(cell(row) for _, cell in columns)] for row in rows],
        back=range(len(judges), len(rows)),
    )


def _explained() -> str:
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in _EXPLAINED.items())
    return (
        f"<details><summary>What the columns say</summary><dl>{listed}</dl></details>"
        "<p>Baselines: <i>longest</i> takes the answer with more characters, <i>first-shown</i> the one shown first;"
        " <i>random</i> is a coin, with its expected values.</p>"
    )


def _figure(heading: str, draw: plots.Draw, found: dict[str, Any], name: str) -> str:
    drawn = html.svg(lambda figure: draw(figure, found), name, heading)
    return "" if drawn is None else f"<h2>{escape(heading)}</h2><figure>{drawn}</figure>"


def _paired(one: dict[str, Any]) -> str:
    listed = [d for d in one["differences"] if d["value"] is not None]
    if not listed:
        return ""
    rows = []
    for d in listed:
        ends = "-" if d["interval"] is None else f"{100 * d['interval'][0]:+.1f} to {100 * d['interval'][1]:+.1f}"
        test = d["mcnemar"]
        split = "-" if test is None else f"{test['only_this_right']} : {test['only_reference_right']}"
        cells = [d["judge"], str(d["of"]), f"{100 * d['value']:+.1f}", ends, _p(d["p"]), _p(d["p_holm"]), split]
        rows.append([*cells, "-" if test is None else _p(test["p"])])
    heads = ["judge", "pairs", "difference", "95 %", "p", "p (Holm)", "labels right: this : that", "p (McNemar)"]
    return (
        f"<h2>Accuracy in points, less that of {html.text(one['reference'])}, on the same pairs</h2>{html.table(heads, rows)}"
        "<p>Intervals and p are clustered by prompt and of one comparison each; p (Holm) is adjusted for all in the table."
        " McNemar's test takes pairs for independent.</p>"
    )


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _categories(judges: Sequence[dict[str, Any]]) -> str:
    shown = [row for row in judges if row.get("by_category")][:_MOST_JUDGES]
    names = list(dict.fromkeys(name for row in shown for name in row["by_category"]))
    if not names:
        return ""
    rows = []
    for name in names[:_MOST_CATEGORIES]:
        cells = [name or "(none)"]
        for row in shown:
            rates = row["by_category"].get(name)
            cells.append("-" if rates is None else f"{percent(rates['accuracy'])} [{span(rates['accuracy'])}] {rates['pairs']}")
        rows.append(cells)
    left = len(names) - len(rows)
    more = f"<p>{left} more categories are in summary.json.</p>" if left > 0 else ""
    few = f"<p>The {len(shown)} most accurate of {len(judges)} judges.</p>" if len(shown) < len(judges) else ""
    return (
        "<h2>By category</h2>" + few + html.table(["accuracy (%) [95 %] pairs", *(row["judge"] for row in shown)], rows) + more
    )


def _causes(judges: Sequence[dict[str, Any]]) -> str:
    rows = [
        [row["judge"], cause, str(count), number(row["no_verdict"], "of", 0)]
        for row in judges
        for cause, count in list(row["no_verdict_causes"].items())[:10]
    ]
    return "" if not rows else "<h2>No verdict, by cause</h2>" + html.table(["judge", "cause", "opinions", "of"], rows)
