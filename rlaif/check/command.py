"""The command `rlaif check`: parse, call, print. Exit status: 0 no errors, 1 errors, 2 wrong usage."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def check_command(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help=".jsonl, .ndjson, .json, .parquet, .csv or .tsv, also with .gz or .zst.")
    ],
    tokenizer: Annotated[
        str | None, typer.Option(metavar="T", help="Also check tokens and lengths: a folder, a hub ID, or smollm2.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="L", help="The trainer's max_length. [default: 1024, as TRL's]")
    ] = None,
    trainer: Annotated[str | None, typer.Option(metavar="NAME", help="Whose pairs: dpo, reward or kto. [default: dpo]")] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="TESTSET", help="A test set whose texts must not be in FILE; repeat for more.")
    ] = None,
    fix: Annotated[
        str | None, typer.Option(metavar="OUT", help="Write a cleaned copy, and every change to OUT.changes.jsonl.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Check a finished file of training data, whoever made it; exit 1 if there are errors."""
    from rlaif.check import show
    from rlaif.check.run import check

    report = check(
        file,
        tokenizer=tokenizer,
        max_length=max_length,
        trainer=trainer,
        against=against or (),
        fix=fix,
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        typer.echo(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        for line in show.head(report):
            typer.echo(line)
        if report.findings and sys.stdout.isatty():
            from rich.console import Console

            typer.echo()
            Console(highlight=False, markup=False).print(show.findings_table(report))
            typer.echo()
        else:
            for line in show.lines(report):
                typer.echo(line)
        for line in show.tail(report):
            typer.echo(line)
    if report.count("error"):
        raise typer.Exit(1)
