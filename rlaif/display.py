"""A report in words: as lines of a screen of any size, and as one line of a log. Pure.

What an endpoint says of itself is shown without its control characters, and no line is wider than the screen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from rlaif.forecast import money
from rlaif.live import EndpointState, Held, Report, total

_WIDE = 72
_MOST_LINES = 12
_WIDEST = 110
_COLUMNS = ("in flight", "limit", "waiting", "rate/s", "retries", "429s")
_WIDTHS = (9, 12, 7, 7, 7, 5)


def screen(report: Report, width: int, height: int, *, ascii_only: bool = False) -> list[Text]:
    """The report as at most 12 lines that fit into `width` and `height`, whatever these are."""
    room, width = max(1, min(_MOST_LINES, height - 1)), max(1, min(_WIDEST, width - 1))
    wide, now = width >= _WIDE, report["time"]
    lines = [*(_wide_head if wide else _narrow_head)(report, width, ascii_only)]
    blocks = [[*(_row if wide else _narrow_endpoint)(e, width, now)] for e in report["endpoints"]]
    title = [Text(_cells(("endpoint", *_COLUMNS), width), "dim")] if wide and blocks else []
    shown = _that_fit(blocks, room - len(lines) - len(title))
    if shown:
        lines += title + [text for block in shown for text in block]
    if blocks and not shown:
        waits = [(e["name"], text) for e in report["endpoints"] for text in _wait(e, now)]
        lines += [Text(f"{_short(name)} {text.plain.strip()}", "yellow") for name, text in waits]
    elif len(shown) < len(blocks):
        lines.append(Text(f"and {len(blocks) - len(shown)} more endpoints", "dim"))
    return [_cut(line, width, "..." if ascii_only else "…") for line in lines[:room]]


def _that_fit(blocks: list[list[Text]], room: int) -> list[list[Text]]:
    """All blocks, or as many as leave a line for how many are missing; the longer ones, which wait for something, first."""
    if sum(map(len, blocks)) <= room:
        return blocks
    chosen: list[list[Text]] = []
    for block in sorted(blocks, key=len, reverse=True):
        if sum(map(len, chosen)) + len(block) < room:
            chosen.append(block)
    return [block for block in blocks if any(block is one for one in chosen)]


def line(report: Report) -> str:
    """The report as one line."""
    parts = [
        f"{report['done']}/{report['prompts']} prompts{_accepted(report)}, calls: {_calls(report)}",
        f"{total(report['tokens']):,} tokens",
    ]
    if report["calls_per_s"]:
        parts.append(_rate(report["calls_per_s"], "calls/s"))
    if report["cost_usd"] is not None:
        parts.append(_cost(report))
    if report["state"] == "stopping":
        parts.append(f"stopping, {report['in_flight']} calls in flight")
    elif report["eta_s"] is not None and _goes_on(report):
        parts.append(f"about {duration(report['eta_s'])} left")
    return "; ".join(parts)


def waiting(held: Held, now: float) -> str:
    """What an endpoint waits for, and until when."""
    why = "".join(letter if letter.isprintable() else " " for letter in held["why"])
    return f"waiting until {clock(held['until'], now)}: {why}"


def clock(moment: float, now: float) -> str:
    """A time of day here: with seconds if it is near, rounded up to the minute and with the day if it is not today."""
    if abs(moment - now) < 120:
        return time.strftime("%H:%M:%S", time.localtime(moment))
    there = time.localtime(math.ceil(moment / 60) * 60)
    same_day = there[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M" if same_day else "%a %H:%M" if moment - now < 6 * 86400 else "%Y-%m-%d", there)


def duration(seconds: float) -> str:
    """So long, in the unit that a person would use."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _wide_head(report: Report, width: int, ascii_only: bool) -> Iterator[Text]:
    tokens = report["tokens"]
    count = f"{report['done']:,} of {report['prompts']:,}" if report["prompts"] else "reading the prompts"
    count += _accepted(report) + (f", {report['failed']:,} failed" if report["failed"] else "")
    end = f"  {_percent(report)}  {_ahead(report)}"
    bar = _bar(report, max(5, width - 11 - cell_len(count) - len(end)), ascii_only)
    yield Text.assemble(("prompts   ", "dim"), count, " ", bar, end)
    faults = f", {report['calls']['faults']:,} faults" if report["calls"]["faults"] else ""
    yield _beside("calls", _calls(report) + faults, _rate(report["calls_per_s"], "calls/s"), width)
    said = f"{total(tokens):,}: {tokens['prompt']:,} prompt, {tokens['completion']:,} completion"
    yield _beside("tokens", said, _rate(report["tokens_per_s"], "tokens/s"), width)
    yield _beside(
        "cost",
        _cost(report).removeprefix("cost "),
        f"{'running' if _goes_on(report) else 'ran'} for {_stopwatch(report['wall_s'])}",
        width,
    )


def _accepted(report: Report) -> str:
    accepted, target = report.get("accepted"), report.get("target")
    return "" if accepted is None else f", {accepted:,}{'' if target is None else f' of {target:,}'} accepted"


def _narrow_head(report: Report, width: int, ascii_only: bool) -> Iterator[Text]:
    count, percent = f"{report['done']:,} of {report['prompts']:,}", _percent(report)
    bar = _bar(report, width - len(count) - len(percent) - 2, ascii_only)
    yield Text.assemble(count, " ", bar, " ", percent)
    yield Text(f"{_ahead(report)}, {_stopwatch(report['wall_s'])} so far")
    yield Text(_calls(report))
    yield Text(f"{total(report['tokens']):,} tokens {_rate(report['calls_per_s'], 'calls/s')}")
    yield Text(_cost(report))


def _row(endpoint: EndpointState, width: int, now: float) -> Iterator[Text]:
    rate = "-" if endpoint["rate_per_s"] is None else f"{endpoint['rate_per_s']:,.1f}"
    numbers = (
        endpoint["in_flight"],
        _limit(endpoint),
        endpoint["waiting"],
        rate,
        endpoint["retries"],
        endpoint["rate_limited"],
    )
    yield Text(_cells((_short(endpoint["name"]), *(n if isinstance(n, str) else f"{n:,}" for n in numbers)), width))
    yield from _wait(endpoint, now)


def _narrow_endpoint(endpoint: EndpointState, width: int, now: float) -> Iterator[Text]:
    trouble = f", {endpoint['rate_limited']:,} x 429" if endpoint["rate_limited"] else ""
    yield Text(_short(endpoint["name"]))
    yield Text(f"  {endpoint['in_flight']}/{endpoint['limit']} in flight, {endpoint['waiting']} wait{trouble}")
    yield from _wait(endpoint, now)


def _short(name: str) -> str:
    return name.removeprefix("https://").removeprefix("http://").removesuffix("/v1")


def _wait(endpoint: EndpointState, now: float) -> Iterator[Text]:
    if endpoint["held"] is not None:
        yield Text(f"  {waiting(endpoint['held'], now)}", "yellow")


def _cells(values: tuple[str, ...], width: int) -> str:
    """A row of the table: the name takes what the numbers leave."""
    numbers = "".join(f"  {value:>{size}}" for value, size in zip(values[1:], _WIDTHS, strict=True))
    return set_cell_size(values[0], max(0, width - len(numbers))) + numbers


def _beside(title: str, left: str, right: str, width: int) -> Text:
    """What is said on the left, and on the right as far as there is room."""
    room = width - 10 - cell_len(left) - cell_len(right)
    return Text.assemble((f"{title:10}", "dim"), left, " " * room + right if room >= 2 else "")


def _bar(report: Report, width: int, ascii_only: bool) -> Text:
    full, rest = "#-" if ascii_only else "━─"
    filled = width * min(report["done"], report["prompts"]) // report["prompts"] if report["prompts"] else 0
    return Text.assemble((full * filled, "green"), (rest * (width - filled), "dim"))


def _percent(report: Report) -> str:
    share = report["done"] / report["prompts"] if report["prompts"] else 0.0
    return f"{math.floor(share * 100):3} %"


def _ahead(report: Report) -> str:
    if report["state"] == "stopping":
        return f"stopping, {report['in_flight']} in flight"
    if not _goes_on(report):
        return report["state"]
    if report["eta_s"] is None:
        return "ETA -"
    return f"ETA {duration(report['eta_s'])} ({clock(report['time'] + report['eta_s'], report['time'])})"


def _goes_on(report: Report) -> bool:
    return report["state"] == "running"


def _calls(report: Report) -> str:
    calls = report["calls"]
    return f"{calls['policy']:,} policy, {calls['judge']:,} judge, {calls['reused']:,} reused"


def _cost(report: Report) -> str:
    cost, whole, budget = report["cost_usd"], report["projected_usd"], report["budget_usd"]
    words = ["cost unknown" if cost is None else f"{money(cost)} USD"]
    if whole is not None and cost is not None and report["done"] < report["prompts"]:
        words.append(f"about {money(whole)} in all")
    if budget is not None:
        words.append(f"budget {money(budget)}")
    return ", ".join(words)


def _rate(rate: float | None, unit: str) -> str:
    return "" if rate is None else f"{rate:,.1f} {unit}" if rate < 100 else f"{rate:,.0f} {unit}"


def _limit(endpoint: EndpointState) -> str:
    same = endpoint["limit"] == endpoint["ceiling"]
    return f"{endpoint['limit']:,}" if same else f"{endpoint['limit']:,} of {endpoint['ceiling']:,}"


def _stopwatch(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _cut(text: Text, width: int, end: str) -> Text:
    """The text in one line of `width` cells at most."""
    text.no_wrap, text.overflow = True, "crop"
    text.plain = "".join(letter if letter.isprintable() else " " for letter in text.plain)
    if text.cell_len > width:
        text.truncate(max(0, width - len(end)), overflow="crop")
        text.append(end[:width])
    return text
