"""Measure what a local model loses by being driven through rlaif: tokens a second of `smollm2`, against a bare client.

rlaif samples with the model in its own process, and then compares given answers with the default judge. Every request that it
sends is noted, and a bare aiohttp client sends the same ones, in the same order and with as many in flight, to a server that
is started as rlaif starts its own. Each measurement has a fresh process; the two take turns, and a number is the median.

* samples: 4 answers a prompt in one request, of at most 100 tokens each; the tokens are those generated.
* judge calls: the 12 comparisons of a prompt's 4 answers; the tokens are those read too, from the prompt cache or not. rlaif
  sends those of one prompt one after another, for the sake of that cache, and the bare client does not.
* seconds are from the first request to the end of the last prompt's work, or to the last answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from _server import ROOT, say, show, table

MODEL = "smollm2"
N, MAX_TOKENS = 4, 100
_TIMEOUT_S = 600.0
COLUMNS = ("work", "by", "requests", "tokens", "seconds", "tokens/s", "range", "of the bare client's")


@dataclass(frozen=True)
class Measured:
    """One measurement, and the requests that it sent."""

    seconds: float
    tokens: int
    bodies: Sequence[bytes]

    @property
    def per_s(self) -> float:
        return self.tokens / self.seconds


def shortest(prompt: Any, candidates: Any) -> list[float]:
    """A judge that takes no time."""
    return [-float(len(candidate.text)) for candidate in candidates]


def sampling(prompts: Sequence[dict[str, Any]], out: str) -> tuple[Measured, list[dict[str, Any]]]:
    """rlaif samples; returns the prompts with their answers too."""
    import rlaif

    run = rlaif.generate(prompts, policy=MODEL, judge=shortest, out=out, n=N, max_tokens=MAX_TOKENS)
    measured, records = _through_rlaif(run, lambda usage: usage["completion_tokens"])
    answers = {record.prompt.id: [candidate.text for candidate in record.candidates] for record in records}
    return measured, [{**prompt, "candidates": answers[prompt["id"]]} for prompt in prompts]


def judging(rows: Sequence[dict[str, Any]], out: str) -> Measured:
    """rlaif compares answers."""
    import rlaif

    run = rlaif.judge(rows, judge="pairwise", judge_model=MODEL, out=out)
    return _through_rlaif(run, lambda usage: usage["total_tokens"])[0]


def _through_rlaif(run: Any, count: Callable[[dict[str, int]], int]) -> tuple[Measured, list[Any]]:
    import sqlite3
    import zlib
    from contextlib import closing

    from rlaif.models import gguf, openai

    sent: list[tuple[float, bytes]] = []

    class Noting(openai.AiohttpTransport):
        async def post(self, body: dict[str, Any]) -> Any:
            sent.append((time.perf_counter(), json.dumps(body).encode()))
            return await super().post(body)

    gguf.AiohttpTransport = Noting  # type: ignore[misc]
    records, ended = [], 0.0
    for record in run:
        records.append(record)
        ended = time.perf_counter()
    with closing(sqlite3.connect(run.directory / "run.sqlite")) as db:
        bodies = [json.loads(zlib.decompress(body)) for (body,) in db.execute("SELECT body FROM calls WHERE kind IS NULL")]
    tokens = sum(count(body["usage"]) for body in bodies if "usage" in body)
    return Measured(ended - sent[0][0], tokens, [body for _, body in sent]), records


def bare(bodies: Sequence[bytes], generated_only: bool) -> Measured:
    """The requests from a bare client to a server of its own."""
    return asyncio.run(_bare(bodies, generated_only))


async def _bare(bodies: Sequence[bytes], generated_only: bool) -> Measured:
    import aiohttp

    from rlaif.models import gguf, smollm2

    server, key = gguf._serve(smollm2.path())
    url = server.listening_address
    remaining, answers = iter(bodies), list[dict[str, Any]]()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:

        async def work() -> None:
            for body in remaining:
                async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                    response.raise_for_status()
                    answers.append(await response.json())

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(gguf.SLOTS)))
        seconds = time.perf_counter() - began
        tokens = 0
        for answer in answers:  # llama.cpp counts the tokens of the first choice alone
            tokens += answer["usage"]["completion_tokens" if generated_only else "total_tokens"]
            for choice in answer["choices"][1:]:
                content = {"content": choice["message"]["content"] or ""}
                async with session.post(f"{url}/tokenize", json=content) as response:
                    tokens += len((await response.json())["tokens"])
    return Measured(seconds, tokens, bodies)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def row_of(work: str, by: str, runs: Sequence[Measured], against: Sequence[Measured]) -> list[str]:
    """One line of the table."""
    rates = [run.per_s for run in runs]
    share = statistics.median(rates) / statistics.median(run.per_s for run in against)
    seconds = statistics.median(run.seconds for run in runs)
    span = f"{min(rates):.1f} to {max(rates):.1f}"
    counts = [str(len(runs[0].bodies)), str(runs[0].tokens), f"{seconds:.1f}", f"{statistics.median(rates):.1f}", span]
    return [work, by, *counts, f"{share:.2f}"]


def measure(prompts: Sequence[dict[str, Any]], to_judge: int, repeats: int) -> list[list[str]]:
    """The rows of the table."""
    samples: dict[str, list[Measured]] = {"rlaif": [], "bare client": []}
    verdicts: dict[str, list[Measured]] = {"rlaif": [], "bare client": []}
    for repeat in range(repeats):
        say(f"run {repeat + 1} of {repeats}")
        with tempfile.TemporaryDirectory() as out:
            ours, rows = apart(sampling, prompts, f"{out}/samples")
            samples["rlaif"].append(ours)
            samples["bare client"].append(apart(bare, ours.bodies, True))
            ours = apart(judging, rows[:to_judge], f"{out}/judge")
            verdicts["rlaif"].append(ours)
            verdicts["bare client"].append(apart(bare, ours.bodies, False))
    return [
        row_of(work, by, runs, of["bare client"])
        for work, of in (("samples", samples), ("judge calls", verdicts))
        for by, runs in of.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="A local model through rlaif and by a bare client.")
    parser.add_argument("--prompts", type=int, default=6, help="to sample for (%(default)s)")
    parser.add_argument("--to-judge", type=int, default=3, help="of these, to compare the answers of (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    args = parser.parse_args()
    from rlaif.models import smollm2

    if smollm2.find() is None:
        parser.error("the weights are missing: rlaif models get smollm2")
    lines = (ROOT / "prompts" / "examples" / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [{k: row[k] for k in ("id", "prompt")} for row in map(json.loads, lines[: args.prompts])]
    rows = measure(prompts, args.to_judge, args.repeats)
    show(f"{os.cpu_count()} cores, Python {platform.python_version()}, median of {args.repeats}", table(COLUMNS, rows, names=2))


if __name__ == "__main__":
    main()
