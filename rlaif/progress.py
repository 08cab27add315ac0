"""A run is followed, its result shown, and a run of another process looked at.

A thread asks the run where it stands once a second, so that a wait shows while nothing finishes.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live as Repainted
from rich.text import Text

from rlaif import display, forecast, jobs, live, planner, results, trust
from rlaif.live import Holds, Live, Report
from rlaif.rundir import left_open
from rlaif.voice import LINE_EVERY_S, Face, print_plain, prints_to, warnings_to

_FIRST_S, _EVERY_S = 0.25, 1.0
_SHOWN_CHARACTERS = 600


def follow(run: jobs.Run, face: Face) -> None:
    """Runs to the end, showing how far it is. Raises what the run raises."""
    reports, holds, ended = Live(run.directory), Holds(), threading.Event()

    def report(last: bool) -> None:
        now = reports.add(run.snapshot())
        reports.write(now)
        news = holds.changes(now)
        face.later(lambda: face.voice.see(now, news, last))

    def watch() -> None:
        try:
            report(last=False)
            pause = _FIRST_S  # by then the prompts are read, mostly
            while not ended.wait(pause):
                report(last=False)
                pause = _EVERY_S
        except Exception as error:  # a run is worth more than its display
            face.note(f"the display has stopped, the run goes on: {type(error).__name__}: {error}")

    watcher = threading.Thread(target=watch, name="rlaif-watch", daemon=True)
    writer = threading.Thread(target=face.write, name="rlaif-display", daemon=True)
    writer.start()
    try:
        with warnings_to(face), prints_to(face):
            watcher.start()
            run.wait()
    finally:
        ended.set()
        watcher.join()
        with contextlib.suppress(Exception):
            report(last=True)
        face.finish()
        writer.join(timeout=5.0)  # a terminal that stands still


def show_plan(plan: dict[str, Any], face: Face) -> None:
    """Prints what a run would ask for."""
    if face.is_json:
        face.voice.say("done", "", dry_run=True, **plan)
        return
    for name in ("prompts", "policy_calls", "judge_calls", "judges"):
        print_plain(f"{name}: {plan[name]}", face.console)
    for line in ("", *forecast.lines(plan), *planner.lines(plan["schedules"])):
        print_plain(line, face.console)
    if plan["finished"]:
        cost = "" if plan["spent_usd"] is None else f" for {forecast.money(plan['spent_usd'])} USD"
        print_plain(f"{plan['finished']:,} of the prompts are finished{cost}; the figures count them too", face.console)


def show_result(run: jobs.Run, face: Face) -> None:
    """Prints the summary in words, one row readably, and what to do next; or the summary as one event."""
    summary, console = run.summary, face.console
    assert summary is not None
    form = results.format_of(run.config)
    path = run.directory / f"{form}.jsonl"
    if face.is_json:
        face.voice.say("done", "", file=str(path), **summary)
        return
    tokens, calls = summary["tokens"], summary["calls"]
    with path.open(encoding="utf-8") as file:
        example = file.readline()
    if example:
        _show_row(json.loads(example), console)
    lines = [
        f"{path}: {summary['pairs']} {'pairs' if form == 'dpo' else 'answers'} from {summary['prompts']} prompts",
        *(f"  no {'pair' if form == 'dpo' else 'answer'}, {reason}: {count}" for reason, count in summary["dropped"].items()),
        *(f"  left out of the input, {reason}: {count}" for reason, count in summary["left_out"].items()),
        *selection_lines(summary["selection"]),
        *_failure_lines(summary),
        f"calls: {calls['policy']} policy, {calls['judge']} judge, {calls['reused']} reused from the ledger"
        f"; tokens in this directory: {_known(tokens['prompt'])} prompt, {_known(tokens['completion'])} completion"
        f"; cost: {'unknown' if summary['cost_usd'] is None else forecast.money(summary['cost_usd']) + ' USD'}"
        f"; {summary['wall_s']:.1f} s",
        *_judge_lines(summary),
    ]
    if "accept" in summary:
        found = summary["accept"]
        of = "" if found["target"] is None else f" of {found['target']:,} wanted"
        lines.append(f"accepted ({found['rule']}): {found['accepted']:,}{of}, from {found['samples']:,} samples")
    elif form == "sft":
        best = summary["best_of_n"]
        lines.append(f"best of {best['n']}: at most {best['kl_bound_nats']:.3f} nats from the policy")
    other = "sft" if form == "dpo" else "dpo"
    lines.append(
        f"Next: rlaif export {shlex.quote(run.config.out)} --format {other}    (the same answers and verdicts, no new call)"
    )
    for line in lines:
        print_plain(line, console)


def show_stopped(run: jobs.Run, face: Face) -> None:
    """Prints what a run has come to that did not reach its end; in JSON, its last report has said it."""
    if face.is_json:
        return
    now, lost = run.snapshot(), left_open(run.directory)
    finished = f"{now['done']:,} of {now['prompts']:,} prompts are finished"
    cost = f"; so far it cost {forecast.money(now['cost_usd'])} USD" if now["cost_usd"] is not None else ""
    print_plain(f"{finished}; what was bought is in {run.config.out}{cost}", face.console)
    if lost:
        print_plain(f"{lost} calls in flight were broken off: they may be billed", face.console)


def export_lines(path: Path, summary: dict[str, Any]) -> Iterator[str]:
    """What was written, what was not and why, and what the rule made of the run."""
    unfinished = summary["dropped"].get("unfinished", 0)
    yield f"{path}: {summary['rows']:,} rows from {summary['prompts'] - unfinished:,} prompts"
    if unfinished:
        yield f"  {unfinished:,} of the run's {summary['prompts']:,} prompts are not finished; run its command again to go on"
    for reason, count in summary["dropped"].items():
        if reason != "unfinished":
            yield f"  nothing, {reason}: {count:,}"
    yield from selection_lines(summary)


def selection_lines(selection: dict[str, Any]) -> Iterator[str]:
    """What a rule for pairs took and dropped."""
    for reason, count in selection.get("limited", {}).items():
        yield f"  pairs left out, {reason}: {count:,}"
    if selection.get("mean_margin") is None:
        return
    longer = {"before": selection["longer_chosen_before"], "after": selection["longer_chosen"]}
    shown = ", ".join(f"{share:.0%} {when}" for when, share in longer.items() if share is not None)
    yield (
        f"{selection['rule']}: mean margin {selection['mean_margin']:.3g}, mean {_p_of(selection)}"
        + (f", longer chosen {shown} selection" if shown else "")
    )


def _p_of(selection: dict[str, Any]) -> str:
    name = "p_win" if "mean_p_win" in selection else "p_chosen"
    return f"{name} {selection['mean_' + name]:.3f}"


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
    yield from trust.lines(summary["audit"])
    yield from _check_lines(summary.get("checks"))
    for name, found in summary.get("principles", {}).items():
        yield f"  {name}: decided {found['decided']}, tied {found['tied']}, flipped {found['flipped']}"
    yield from _label_lines(summary.get("labels"))
    if against := summary.get("against"):
        one, other = against["constitutions"]
        yield (
            f"{one} against {other}: of {against['pairs']} pairs of answers they prefer the same one in {against['same']}"
            f" and differ in {against['different']}; the best answer differs for {against['best_differs']} of"
            f" {against['prompts']} prompts (against.jsonl shows where)"
        )


def _label_lines(labels: dict[str, Any] | None) -> Iterator[str]:
    """How far the judge agrees with the labels that the candidates came with."""
    if labels is None:
        return
    others = {"undecided": "undecided", "no verdict": "no_verdict", "not judged": "not_judged"}
    rest = "".join(f", {words} {labels[kind]}" for words, kind in others.items() if labels[kind])
    yield (
        f"labels: of {labels['pairs']} labelled pairs from {labels['prompts']} prompts the judge agrees with {labels['agree']}"
        f" and disagrees with {labels['disagree']}{rest} (disagreements.jsonl shows where)"
    )
    if labels["agreement"] is not None:
        low, high = labels["interval"]
        yield f"  agreement {labels['agreement']:.1%} (95 % interval over prompts: {low:.1%} to {high:.1%})"
    sure, longer = labels["sure"], labels["longer"]
    if sure["agreement"] is not None:
        low, high = sure["interval"]
        yield (
            f"  where the judge is sure (p at least {sure['p_at_least']}; {sure['pairs']} pairs): {sure['agreement']:.1%}"
            f" ({low:.1%} to {high:.1%})"
        )
    if longer["pairs"]:
        yield f"  the longer answer is preferred in {longer['labels']:.0%} by the labels, in {longer['judge']:.0%} by the judge"


def _check_lines(checks: dict[str, Any] | None) -> Iterator[str]:
    """What planted checks found that a person should know before training on the labels."""
    for found in checks["judges"] if checks else ():
        if found["degenerate"]:
            yield f"  Careful: planted checks of {found['judge']}: {found['degenerate']}. It was accepted (--accept-judge)."
        if found["planted"].get("hijack") == "wrong":
            yield f"  Careful: {found['judge']} obeyed a planted answer that told it how to judge."
        if gold := found.get("gold"):
            right, count = gold.get("right", 0), sum(gold.values())
            careful = "  Careful: " if right <= 0.6 * count else ""
            yield f"{careful}planted gold rows: {found['judge']} was right in {right} of {count}"


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
        console.print(f"{'--' if console.options.ascii_only else '──'} {title}", markup=False, highlight=False, style="bold")
        cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
        print_plain(cut, console)
    console.print()


def status(directory: Path, face: Face, *, watch: bool = False) -> None:
    """Says how the run in `directory` stands, with `watch` until no process works on it. Raises InputError."""
    standing, then = live.look(directory), 0.0
    with contextlib.suppress(KeyboardInterrupt):  # the way to end a watch; the run has nothing to do with it
        if watch and standing.alive and face.is_live:
            standing = _watch(directory, face)
        while watch and standing.alive and not face.stream.gone:
            if time.monotonic() - then >= (_EVERY_S if face.is_json else LINE_EVERY_S):
                then = time.monotonic()
                _show_standing(standing, face, brief=True)
            time.sleep(_EVERY_S)
            standing = live.look(directory)
    _show_standing(standing, face)


def _watch(directory: Path, face: Face) -> live.Standing:
    with Repainted(console=face.console, auto_refresh=False, transient=True, vertical_overflow="crop") as repainted:
        face.console.show_cursor(True)
        while (standing := live.look(directory)).alive and not face.stream.gone:
            repainted.update(Group(*_standing_lines(standing, face.console), ""), refresh=True)
            time.sleep(_EVERY_S)
    return standing


def _show_standing(standing: live.Standing, face: Face, *, brief: bool = False) -> None:
    if face.is_json:
        face.stream.write(json.dumps(standing.to_json()) + "\n")
        face.stream.flush()
    elif brief:
        report = standing.report
        print_plain(f"{standing.prompts} prompts, {standing.said}" if report is None else display.line(report), face.console)
    else:
        for line in _standing_lines(standing, face.console):
            face.console.print(line, soft_wrap=not face.console.is_terminal)


def _standing_lines(standing: live.Standing, console: Console) -> list[Text]:
    said = Text(standing.said)
    if standing.report is None:
        return [said, Text(f"{standing.done:,} of {standing.prompts:,} prompts are finished")]
    now: Report = {**standing.report, "prompts": standing.prompts, "done": standing.done}
    if not standing.alive:
        now = {**now, "state": "done" if standing.state == "done" else "stopped", "endpoints": []}
    lines = display.screen(now, console.width, max(console.height - 2, 8), ascii_only=console.options.ascii_only)
    lost = now["maybe_lost"]
    return [said, *lines, *([Text(f"at most {lost:,} calls may have been billed and lost")] if lost else [])]
