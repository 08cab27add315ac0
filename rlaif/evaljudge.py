"""The command `rlaif eval-judge`: parse, call, print. Exit status as of the commands that make a run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from rlaif import progress, results
from rlaif.config import RunConfig, make_config
from rlaif.data import Columns
from rlaif.data.gold import GoldPair, read_gold
from rlaif.errors import InputError, StopRun
from rlaif.evaluation.judged import Judged
from rlaif.export import write_whole
from rlaif.jobs import Run
from rlaif.options import HOW, JUDGE, Options, add_command, option
from rlaif.voice import Face, print_plain, speaking

_NOT_HERE = (
    "select",
    "against",
    "candidates_field",
    "response_field",
    "compare_labels",
    "allow_degenerate",
    "dedupe",
    "calibration",
)
_GOLD = (
    Annotated[
        str,
        typer.Argument(
            metavar="GOLD",
            help='Rows of {"prompt", "response_a", "response_b", "gold": "A" | "B" | "tie"}, perhaps with `id` and `category`,'
            " in any kind of file that prompts may come in.",
        ),
    ],
    inspect.Parameter.empty,
)
_OUT = option(
    str, metavar="DIR", help="Where the results go; each judge's run directory is in it, and the same command buys nothing."
)
_RECORDED: Options = {
    "verdicts": option(
        list[str],
        metavar="RECORDED",
        help='Instead of --judge: verdicts that were recorded, rows of {"pair_id", "judge", "order", "verdict"}; repeat for'
        " more files.",
    ),
    "only": option(
        list[str], metavar="TEXT", help="Of the recorded judges, those with TEXT in `judge config`; repeat for more."
    ),
    "category": option(list[str], metavar="PREFIX", help="Only gold pairs whose category begins so; repeat for more."),
}
_SEED: Options = {"seed": option(int, metavar="N", help="Seed of the runs. [default: 0]")}
_SETTINGS: Options = {name: one for name, one in JUDGE.items() if name not in _NOT_HERE}
_SETTINGS["limit"] = option(int, metavar="N", help="Use the first N gold pairs only.")
_SETTINGS["judge"] = option(
    list[str],
    metavar="JUDGE",
    help="A name or file in judges/, a YAML spec, or file.py:function; repeat to compare several, each by itself.",
)

Errors = Callable[[Face | None], AbstractContextManager[None]]
Follow = Callable[[Run, Face], None]
ReadJson = Callable[[str | None], dict[str, Any] | None]


def add(app: typer.Typer, *, errors: Errors, follow: Follow, read_json: ReadJson) -> None:
    """Adds the command. `follow` takes a run to its end, showing it; `errors` ends the command with a message and a status."""

    def command(**given: Any) -> None:
        how = {name: given.pop(name) for name in HOW}
        asked = {name: given.pop(name) or [] for name in _RECORDED}
        with speaking("json" if how["log_format"] == "json" else "text") as face, errors(face):
            given["extra_body"] = read_json(given["extra_body"])
            _check(given, asked, how)
            config = make_config({**given, "command": "judge"}, how["config"])
            gold, aside = _gold(config, asked["category"])
            if asked["verdicts"]:
                _recorded(config, gold, aside, asked, face)
            else:
                _live(config, gold, how, face, lambda run: follow(run, face))

    doc = "Measure judges on pairs whose better answer is known, and write DIR/summary.json and DIR/report.html."
    add_command(app, "eval-judge", doc, {"prompts": _GOLD, "out": _OUT, **_RECORDED, **_SETTINGS, **_SEED, **HOW}, command)


def _check(given: dict[str, Any], asked: dict[str, list[str]], how: dict[str, Any]) -> None:
    """Raises InputError if the options do not go together."""
    if how["probe"] and not how["dry_run"]:
        raise InputError("--probe goes with --dry-run")
    if asked["verdicts"] and given["judge"]:
        raise InputError("--verdicts and --judge: judges are asked now, or their recorded verdicts are read; give one of them")
    if asked["verdicts"] and how["dry_run"]:
        raise InputError("--dry-run: recorded verdicts cost nothing; leave it out")
    if asked["only"] and not asked["verdicts"]:
        raise InputError("--only goes with --verdicts")
    if not asked["verdicts"] and not given["judge"] and how["config"] is None:
        raise InputError("no judge: give --judge, or --verdicts with what was recorded")


def _gold(config: RunConfig, category: Sequence[str]) -> tuple[list[GoldPair], set[str]]:
    """The gold pairs of the categories that are asked for, all if none is; and the ids of the others. Raises InputError."""
    columns = Columns(config.prompt_field, config.reference_field, config.id_field)
    gold = list(read_gold(config.prompts, limit=config.limit, replace=config.replace, columns=columns))
    kept = [pair for pair in gold if not category or (pair.category or "").startswith(tuple(category))]
    if not kept:
        there = ", ".join(sorted({repr(pair.category) for pair in gold if pair.category is not None})[:20]) or "none"
        raise InputError(f"--category {' '.join(map(repr, category))}: no gold pair is of it; there are {there}")
    return kept, {pair.id for pair in gold} - {pair.id for pair in kept}


def _recorded(config: RunConfig, gold: Sequence[GoldPair], aside: set[str], asked: dict[str, list[str]], face: Face) -> None:
    from rlaif.evaluation import recorded

    judged, apart = recorded.judged(asked["verdicts"], gold, asked["only"], aside)
    directory = _folder(config)
    if apart and not face.is_json:
        print_plain(
            f"note: recorded verdicts on {apart:,} pairs (of a judge each) that are not among the gold pairs", face.console
        )
    _finish(
        judged, gold, config, directory, face, {"state": "done", "verdicts": asked["verdicts"], "verdicts_without_gold": apart}
    )


def _live(
    config: RunConfig, gold: Sequence[GoldPair], how: dict[str, Any], face: Face, follow: Callable[[Run], object]
) -> None:
    from rlaif.evaluation import live

    made = live.runs(config, gold)

    def take(run: Run) -> None:
        if len(made) > 1 and not face.is_json:
            print_plain(f"judge {run.config.judge[0]}", face.console)
        follow(run)

    if how["dry_run"]:
        for run in made:
            if len(made) > 1 and not face.is_json:
                print_plain(f"judge {run.config.judge[0]}", face.console)
            progress.show_plan(run.dry_run(how["probe"] or 0, follow=follow), face)
        return
    directory = _folder(config)
    try:
        live.ask(made, config, take)
    except StopRun as stopped:
        state = {"state": "stopped", "stopped": {"kind": stopped.kind, "message": str(stopped)}}
        _finish(live.judged(made, gold), gold, config, directory, None, state)
        raise
    _finish(live.judged(made, gold), gold, config, directory, face, {"state": "done"})


def _folder(config: RunConfig) -> Path:
    directory = Path(config.out).expanduser()
    if (directory / "run.sqlite").exists():
        raise InputError(f"{config.out!r} is a run directory, whose summary would be lost: choose another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if directory.is_file() else error.strerror or error
        raise InputError(f"cannot write to {config.out!r}: {why}; choose another directory") from None
    return directory


def _finish(
    judged: Sequence[Judged],
    gold: Sequence[GoldPair],
    config: RunConfig,
    directory: Path,
    face: Face | None,
    state: dict[str, Any],
) -> None:
    """Writes the evaluation, and shows it. Raises StopRun if it cannot be written."""
    from rlaif.evaluation import report, table
    from rlaif.evaluation.page import page

    maps = report.maps(judged, gold) | {"gold": config.prompts}
    found = {"gold": config.prompts, **state, **report.evaluate(judged, gold)}
    try:
        write_whole(directory / "report.html", page(found, f"Judges on {Path(config.prompts).name}").encode())
        write_whole(directory / "calibration.json", json.dumps(maps, indent=2).encode() + b"\n")
        results.write_summary(directory, found)
    except OSError as error:
        raise StopRun("disk", f"cannot write the results in {str(directory)!r}: {error.strerror or error}") from None
    if face is None:
        return
    if face.is_json:
        face.voice.say("done", "", file=str(directory / "summary.json"), **_short(found))
        return
    width = face.console.width if face.console.is_terminal else None
    for line in table.lines(found, width):
        print_plain(line, face.console)
    print_plain(f"\n{directory / 'report.html'}: the same with plots; all numbers: {directory / 'summary.json'}", face.console)


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without the categories, of which there may be thousands."""
    judges = [{name: value for name, value in row.items() if name != "by_category"} for row in found["judges"]]
    plain = [{name: value for name, value in row.items() if name != "by_category"} for row in found["baselines"]]
    return {**found, "judges": judges, "baselines": plain}
