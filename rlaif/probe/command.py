"""The command `rlaif probe`: parse, call, print. Exit status: 0 done, 2 wrong usage, 3 stopped, 130 interrupted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer

from rlaif import jobs, progress
from rlaif.options import HOW, JUDGE, Options, add_command, option
from rlaif.voice import Face, print_plain, speaking

Follow = Callable[[jobs.Run, Face], None]
Errors = Callable[[Face], AbstractContextManager[None]]

_TWINS = (
    Annotated[
        str | None,
        typer.Argument(
            metavar="TWINS",
            help='Rows of {"id", "prompt", "twin", "options", "sycophantic"}, two a twin. [default: forty of our own]',
        ),
    ],
    None,
)
_OUT = option(
    str, metavar="DIR", help="Where DIR/probe.json goes; the run directories are in it: run again, nothing is bought."
)
_POLICY: Options = {
    "policy": option(str, metavar="MODEL", help="The model whose answers are probed."),
    "n": option(int, "-n", "--n", min=1, metavar="N", help="Samples of a prompt. [default: 1]"),
    "temperature": option(float, metavar="T", help="Sampling temperature of the policy. [default: 0]"),
    "max_tokens": option(int, metavar="N", help="Longest answer in tokens. [default: 512]"),
    "seed": option(int, metavar="N", help="Seed of the run. [default: 0]"),
    "limit": option(int, min=1, metavar="N", help="Use the first N twins only."),
}
_JUDGE: Options = {
    "judge": option(
        list[str], metavar="JUDGE", help="The judge whose verdicts are probed, named as for rlaif judge; repeat for a jury."
    ),
    "judge_model": option(str, metavar="MODEL", help="The model that drives an LLM judge. [default: the policy probed]"),
} | {
    name: JUDGE[name]
    for name in (
        *("constitution", "principles", "accept_judge", "checks", "judge_timeout_s", "system", "extra_body"),
        *("concurrency", "rpm", "tpm", "budget_usd", "budget_tokens", "prices", "timeout_s", "max_wait_s", "strict_model"),
        *("transport", "retry_failed"),
    )
}
_HOW: Options = {name: HOW[name] for name in ("dry_run", "log_format")}


def commands(follow: Follow, errors: Errors, to_json: Callable[[str | None], Any]) -> typer.Typer:
    """The command with its own commands: `follow` runs and shows a run, `errors` turns errors into an exit status."""
    app = typer.Typer(help="Probes of judges and policies.", no_args_is_help=True, rich_markup_mode=None)

    @app.callback()
    def probe() -> None:
        """Questions whose answer should not change, and how often it does."""

    def sycophancy(twins: str | None, out: str | None, dry_run: bool, log_format: str, **given: Any) -> None:
        from rlaif.probe.run import Probe
        from rlaif.probe.twins import SHIPPED

        with speaking("json" if log_format == "json" else "text") as face, errors(face):
            given["extra_body"] = to_json(given["extra_body"])
            made = Probe(twins or SHIPPED, out=_needed(out), **given)
            if dry_run:
                _plan(made, face)
                return
            for part in made.parts:
                follow(made.run(part), face)
            _tell(made, face)

    doc = "Ask the same questions under opposite biographies: how often does the verdict or the answer follow them?"
    add_command(app, "sycophancy", doc, {"twins": _TWINS, "out": _OUT, **_JUDGE, **_POLICY, **_HOW}, sycophancy)
    return app


def _needed(out: str | None) -> str:
    from rlaif.errors import InputError

    if out is None:
        raise InputError("the setting `out` is missing: give --out DIR")
    return out


def _plan(made: Any, face: Face) -> None:
    for part in made.parts:
        plan = made.run(part).dry_run()
        if not face.is_json:
            print_plain(f"{part}:", face.console)
        progress.show_plan({"part": part, **plan}, face)


def _tell(made: Any, face: Face) -> None:
    from rlaif.probe.show import lines

    path, found = made.write()
    if face.is_json:
        face.voice.say("done", "", file=str(path), **found)
        return
    for line in lines(found):
        print_plain(line, face.console)
    print_plain(f"{path}: the same as JSON; the run directories are beside it", face.console)
