"""What the commands that make a run take: each setting's option, and its help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

Options = dict[str, tuple[Any, Any]]
"""Settings by name: (annotation, default)."""


def option(kind: Any, *names: str, **more: Any) -> tuple[Any, Any]:
    """An option that may be left out: (its annotation, its default)."""
    return Annotated[kind | None, typer.Option(*names, **more)], None


def add_command(app: typer.Typer, name: str, doc: str, parameters: Options, call: Callable[..., None]) -> None:
    """Adds a command that takes `parameters`, with `doc` as its help: `call` is given them by name."""

    def command(**given: Any) -> None:
        call(**given)

    command.__doc__ = doc
    command.__annotations__ = {name: annotation for name, (annotation, _) in parameters.items()}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in parameters.items()
        ]
    )
    app.command(name)(command)


def _log_format(name: str) -> str:
    if name not in ("text", "json"):
        raise typer.BadParameter(f"{name!r} is neither text nor json")
    return name


OUT = option(str, help="The run directory; the same command again resumes in it.", metavar="DIR")
_SAMPLING = {
    "policy": option(
        list[str],
        metavar="MODEL",
        help="The model to sample from: openai/NAME[@URL], gguf/FILE, smollm2, fake/oracle; repeat for n samples of each.",
    ),
    "n": option(int, "-n", "--n", metavar="N", help="Samples of each policy for a prompt. [default: 4]"),
    "temperature": option(float, metavar="T", help="Sampling temperature. [default: 1.0]"),
    "max_tokens": option(int, metavar="N", help="Longest answer in tokens. [default: 512]"),
    "seed": option(int, metavar="N", help="Seed of the run. [default: 0]"),
    "allow_truncated": option(bool, "--allow-truncated", help="Let answers cut at the token limit into pairs."),
}
_ALLOWING = {
    "allow_degenerate": option(
        bool,
        "--allow-degenerate",
        help="Let answers into pairs that rules find degenerate: loops, echoes, refusals without a reason, another language.",
    ),
}
_JUDGING = {
    "judge": option(
        list[str],
        metavar="JUDGE",
        help="A name or file in judges/, a YAML spec, or file.py:function; repeat for a jury. [default: adaptive]",
    ),
    "judge_model": option(str, metavar="MODEL", help="The model that drives an LLM judge. [default: the first policy]"),
    "judge_calls": option(
        int, metavar="K", help="At most this many calls of each judge for a prompt. [default: adaptive: n + 2 log2(n)]"
    ),
    "constitution": option(
        str,
        metavar="NAME",
        help="What the judge prefers: hhh, helpful, harmless, honest, non-sycophantic, reasoning (each also -zh) or a file."
        " [default: hhh]",
    ),
    "principles": option(
        str, metavar="MODE", help="Principles in a judge call: all, one sampled, or a verdict for each. [default: all]"
    ),
    "accept_judge": option(bool, "--accept-judge", help="Go on with a judge that fails its planted checks."),
    "checks": option(bool, "--checks/--no-checks", help="Planted checks of LLM and reward-model judges. [default: --checks]"),
    "check_gold": option(str, metavar="FILE", help="Gold pairs, of which 20 are planted among the checks."),
    "judge_timeout_s": option(
        float, "--judge-timeout", metavar="S", help="Seconds for one call of a judge that is a function. [default: 300]"
    ),
}
_PAIRS = {
    "calibration": option(
        str, metavar="FILE", help="The calibration.json that rlaif eval-judge made of this judge: maps p_chosen through it."
    ),
    "select": option(
        str,
        metavar="RULE",
        help="Which pairs a prompt gives: best-worst, best-random, mu-2sigma, top-k:K, all-pairs:P, length-matched, margin:M,"
        " max-length-ratio:R; limits follow, as in all-pairs:0.8,cap=3. [default: best-worst]",
    ),
}
_BEST = {
    "select": option(
        str, metavar="RULE", help="best-of-n, or best-of-n,p=P: only winners that beat another with P. [default: best-of-n]"
    ),
}
_READING = {
    "prompt_field": option(
        str,
        metavar="NAME",
        help="The column that holds the prompt; A+B joins two, a.b is b in a. [default: prompt, or a chat log]",
    ),
    "reference_field": option(str, metavar="NAME", help="The column that holds the reference answer. [default: reference]"),
    "id_field": option(str, metavar="NAME", help="The column that holds the id. [default: id]"),
}
_RUNNING = _READING | {
    "limit": option(int, metavar="N", help="Use the first N rows only; with --dedupe, of those that stay."),
    "dedupe": option(
        bool, "--dedupe", help="Leave out rows that only repeat an earlier one: the same messages (judge: and candidates)."
    ),
    "replace": option(
        bool, "--replace", help="Put U+FFFD for invalid UTF-8 and halves of surrogate pairs, instead of refusing the file."
    ),
    "system": option(str, metavar="TEXT", help="A system message for every prompt that has none."),
    "extra_body": option(str, metavar="JSON", help="More fields for every request, as JSON."),
    "concurrency": option(
        int, metavar="N", help="At most this many calls at once to an endpoint; how many it bears is found out. [default: 64]"
    ),
    "rpm": option(float, metavar="N", help="At most this many requests a minute to an endpoint."),
    "tpm": option(float, metavar="N", help="At most this many tokens a minute to an endpoint."),
    "budget_usd": option(float, "--budget", metavar="USD", help="Stop when the run directory has cost this much."),
    "budget_tokens": option(int, "--budget-tokens", metavar="N", help="Stop when the run directory has used this many."),
    "prices": option(str, metavar="FILE", help="A YAML file of prices: NAME: {input: 0.15, output: 0.6} per million tokens."),
    "timeout_s": option(float, "--timeout", metavar="S", help="Seconds for one attempt of a call. [default: 600]"),
    "max_wait_s": option(
        float, "--max-wait", metavar="S", help="Stop when an endpoint lets wait or is down for longer. [default: 900]"
    ),
    "strict_model": option(
        bool, "--strict-model", help="Stop when a response names another model than the one that was asked for."
    ),
    "transport": option(str, metavar="NAME", help="What carries the requests: aiohttp or openai. [default: aiohttp]"),
    "retry_failed": option(bool, "--retry-failed", help="Ask again for what ended as a failure before."),
}
HOW: Options = {
    "config": option(str, "--config", help="A YAML file of settings; options take precedence.", metavar="FILE"),
    "dry_run": (
        Annotated[bool, typer.Option("--dry-run", help="Check everything and say what it would cost; spend nothing.")],
        False,
    ),
    "probe": option(
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


PROMPTS = (
    Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPTS",
            help=".jsonl, .json, .csv, .tsv, .parquet, .txt (or .gz, .zst of these), a folder of one kind, or a dataset.",
        ),
    ],
    None,
)
CANDIDATES = (
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
_ACCEPTING = {
    "accept": option(
        str,
        metavar="RULE",
        help="Sample each prompt until an answer is accepted: correct (its final answer is that of `reference`; by rules-math)"
        " or score:T (rated T or more; by pointwise, unless --judge names another). -n is then the size of a round. [-n: 1]",
    ),
    "target": option(int, metavar="N", help="With --accept: stop at N accepted answers."),
    "max_samples": option(int, metavar="M", help="With --accept: at most M samples of a prompt. [default: 16]"),
}
_AGAINST = {
    "against": option(str, metavar="NAME", help="Another constitution: also write where the two differ, to DIR/against.jsonl.")
}
_NO_POLICY = {
    "judge_model": option(str, metavar="MODEL", help="The model that drives an LLM judge, where its spec names none.")
}
_JUDGED = {
    "candidates_field": option(str, metavar="NAME", help="The column that holds the list of answers. [default: candidates]"),
    "response_field": option(list[str], metavar="NAME", help="A column that holds one answer; repeat for each of them."),
    "compare_labels": option(
        bool,
        "--compare-labels",
        help="Say how far the judge agrees with the labels in the file, and where not in DIR/disagreements.jsonl.",
    ),
}

GENERATE: Options = _SAMPLING | _ALLOWING | _JUDGING | _PAIRS | _RUNNING
BEST_OF_N: Options = _SAMPLING | _ALLOWING | _JUDGING | _BEST | _ACCEPTING | _RUNNING
JUDGE: Options = _ALLOWING | _JUDGING | _NO_POLICY | _PAIRS | _AGAINST | _JUDGED | _RUNNING
