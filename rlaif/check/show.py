"""A report in words: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlaif.check.findings import Finding

if TYPE_CHECKING:
    from rich.table import Table

    from rlaif.check.run import Report

_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def head(report: Report) -> Iterator[str]:
    """What the file is."""
    yield f"{report.file}: {report.rows:,} {'row' if report.rows == 1 else 'rows'}"
    for name, rows, first in report.formats:
        yield f"format: {name}" + (f" ({rows:,} rows, the first is {first})" if len(report.formats) > 1 else "")
    if report.columns:
        yield "columns: " + ", ".join(map(str, report.columns))
    if report.lengths is not None:
        lengths, (low, high) = report.lengths, report.lengths["interval"]
        yield (
            f"chosen is longer in {lengths['p']:.1%} of {lengths['unequal']:,} pairs (95 % interval {low:.1%} to {high:.1%}), "
            f"{lengths['mean_chars_chosen']:,.0f} characters against {lengths['mean_chars_rejected']:,.0f} on average"
        )


def lines(report: Report) -> Iterator[str]:
    """The findings as lines of text."""
    for found in report.findings:
        rule = found.rule
        yield f"{rule.severity:7} {rule.code}{_count(found)}: {rule.says}; {rule.advice}"
        for place, detail in found.examples:
            yield f"          {_where(report, place)}{detail}"


def findings_table(report: Report) -> Table:
    """The findings as a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, expand=True, show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("what, where, what to do", ratio=1)
    for found in report.findings:
        rule = found.rule
        what = Text.assemble((rule.says, "bold"), (f"  {rule.code}", "dim"))
        for place, detail in found.examples:
            what.append("\n")
            what.append(f"{'row ' + format(place, ',') + ': ' if place else ''}", "cyan")
            what.append(detail)
        what.append(f"\n→ {rule.advice}", "dim")
        places = any(place for place, _ in found.examples)
        table.add_row(Text(rule.severity, _COLOURS[rule.severity]), f"{found.count:,}" if places else "", what)
    return table


def tail(report: Report) -> Iterator[str]:
    """What it comes to."""
    if report.fixed is not None:
        fixed = report.fixed
        if fixed["out"] is None:
            yield "no row is without an error: there is nothing to write a copy of"
        else:
            yield f"{fixed['out']}: {fixed['rows']:,} of {report.rows:,} rows; every change is in {fixed['changes']}"
        for change in fixed["counts"]:
            yield f"  {change['action']:8} {change['rows']:>9,}  {change['reason']}"
    errors, warnings = report.count("error"), report.count("warning")
    yield f"{errors} {'error' if errors == 1 else 'errors'}, {warnings} {'warning' if warnings == 1 else 'warnings'}"


def _count(found: Finding) -> str:
    return f" ({found.count:,})" if any(place for place, _ in found.examples) else ""


def _where(report: Report, place: int) -> str:
    return f"{report.file}:{place}: " if place else ""
