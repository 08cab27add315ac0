"""What a person sees of a run: a live line on a terminal, a plain line now and then elsewhere, the result at the end."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlaif import jobs, results

_PLAIN_EVERY_S = 10.0
_SHOWN_CHARACTERS = 600


def follow(run: jobs.Run, console: Console) -> None:
    """Runs to the end, showing how far it is. Raises what the run raises."""
    with _warnings_to(console):
        if console.is_terminal:
            _follow_live(run, console)
        else:
            _follow_plain(run, console)


def _follow_live(run: jobs.Run, console: Console) -> None:
    bar = Progress(
        TextColumn("prompts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[calls]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("run", total=None, calls="")
        for _ in run:
            bar.update(task, total=run.progress.prompts, completed=run.progress.done, calls=_calls(run))


def _follow_plain(run: jobs.Run, console: Console) -> None:
    last = time.monotonic()
    for _ in run:
        if time.monotonic() - last >= _PLAIN_EVERY_S:
            last = time.monotonic()
            spent = last - run.progress.started
            left = spent / run.progress.done * (run.progress.prompts - run.progress.done)
            _print(f"{run.progress.done}/{run.progress.prompts} prompts, {_calls(run)}, about {left:.0f} s left", console)


def _calls(run: jobs.Run) -> str:
    tally = run.progress.tally
    return f"calls: {tally.policy} policy, {tally.judge} judge, {tally.reused} reused; {tally.prompt_tokens + tally.completion_tokens:,} tokens"


def show_result(run: jobs.Run, console: Console) -> None:
    """Prints the summary in words, one row readably, and what to do next."""
    summary = run.summary
    assert summary is not None
    form = results.format_of(run.config)
    path = run.directory / f"{form}.jsonl"
    tokens, calls = summary["tokens"], summary["calls"]
    example = next(results.rows(run.directory, form, run.config), None)
    if example is not None:
        _show_row(example, console)
    lines = [
        f"{path}: {summary['pairs']} {'pairs' if form == 'dpo' else 'answers'} from {summary['prompts']} prompts",
        *(f"  no {'pair' if form == 'dpo' else 'answer'}, {reason}: {count}" for reason, count in summary["dropped"].items()),
        *_failure_lines(summary),
        f"calls: {calls['policy']} policy, {calls['judge']} judge, {calls['reused']} reused from the ledger"
        f"; tokens in this directory: {_known(tokens['prompt'])} prompt, {_known(tokens['completion'])} completion"
        f"; cost: {'unknown' if summary['cost_usd'] is None else format(summary['cost_usd'], '.2f') + ' USD'}"
        f"; {summary['wall_s']:.1f} s",
        *_judge_lines(summary),
    ]
    if form == "sft":
        best = summary["best_of_n"]
        lines.append(f"best of {best['n']}: at most {best['kl_bound_nats']:.3f} nats from the policy")
    other = "sft" if form == "dpo" else "dpo"
    lines.append(
        f"Next: rlaif export {shlex.quote(run.config.out)} --format {other}    (the same answers and verdicts, no new call)"
    )
    for line in lines:
        _print(line, console)


def _known(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _failure_lines(summary: dict[str, Any]) -> Iterator[str]:
    """What went wrong, and how to have it asked again."""
    for failure in summary["failures"]:
        yield f"  {failure['count']} times, {failure['of']}: {failure['error']}"
    if summary["failures"]:
        yield "  (--retry-failed asks failed calls again)"


def _judge_lines(summary: dict[str, Any]) -> Iterator[str]:
    """The judge's rates, and in plain words what they mean when they are bad."""
    named = {
        "flip_rate": "flip rate",
        "first_shown_rate": "first shown wins",
        "longer_chosen_rate": "longer chosen",
        "no_verdict_rate": "no verdict",
    }
    known = [f"{words} {summary[name]:.0%}" for name, words in named.items() if summary[name] is not None]
    if known:
        yield "judge: " + ", ".join(known)
    if (summary["flip_rate"] or 0.0) >= 0.4:
        yield (
            f"  Careful: in {summary['flip_rate']:.0%} of the pairs this judge named the other answer when the order"
            f" was swapped (it named the first shown in {summary['first_shown_rate']:.0%} of its verdicts)."
            " Its labels are little better than noise: try a stronger --judge-model before training on them."
        )
    if (summary["no_verdict_rate"] or 0.0) >= 0.1:
        yield f"  Careful: {summary['no_verdict_rate']:.0%} of the verdicts could not be read."


def _show_row(row: dict[str, Any], console: Console) -> None:
    shown = [("prompt", row["prompt"][-1]["content"])]
    if "chosen" in row:
        shown += [
            (f"chosen (p = {row['p_chosen']:.2f})", row["chosen"][0]["content"]),
            ("rejected", row["rejected"][0]["content"]),
        ]
    else:
        sure = "" if row["p_win"] is None else f" (p of winning = {row['p_win']:.2f})"
        shown.append((f"best of {row['n']}{sure}", row["completion"][0]["content"]))
    for title, text in shown:
        console.print(f"── {title}", markup=False, highlight=False, style="bold")
        cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
        _print(cut, console)
    console.print()


def _print(text: str, console: Console) -> None:
    """Prints text as it is; lines are wrapped on a terminal alone."""
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


class _Lines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        _print(f"note: {record.getMessage()}", self._console)


@contextmanager
def _warnings_to(console: Console) -> Iterator[None]:
    """Shows the package's warnings as lines of the console."""
    log, handler = logging.getLogger("rlaif"), _Lines(console)
    log.addHandler(handler)
    was, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.propagate = was
        log.removeHandler(handler)
