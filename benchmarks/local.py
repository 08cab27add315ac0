"""Measure what local models do through rlaif: tokens a second of `smollm2` and `hf/smollm2`, against bare clients of the same.

`smollm2`, llama.cpp in this process:

rlaif samples with the model in its own process, and then compares given answers with the judge `pairwise`. Every request that
it sends is noted, and a bare aiohttp client sends the same ones, in the same order and with as many in flight, to a server that
is started as rlaif starts its own. Each measurement has a fresh process; the two take turns, and a number is the median.

* samples: 4 answers a prompt in one request, of at most 100 tokens each; the tokens are those generated.
* judge calls: the 12 comparisons of a prompt's 4 answers; the tokens are those read too, from the prompt cache or not. rlaif
  sends those of one prompt one after another, for the sake of that cache, and the bare client does not.
* seconds are from the first request to the end of the last prompt's work, or to the last answer.

`hf/smollm2`, transformers in this process:

* samples: as above, against transformers' own `generate` with prompts of like length together, at the batch size (of 8, 16 and
  32 rows) that is fastest here; the tokens are those generated up to each answer's end.
* judge calls: as above, with shared prefixes read once, against each call read from its beginning.
* rewards: conversations through a classifier on the same body, together and one after another.
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

MODEL, HF_MODEL = "smollm2", "hf/smollm2"
N, MAX_TOKENS = 4, 100
_TIMEOUT_S = 600.0
COLUMNS = ("work", "by", "requests", "tokens", "seconds", "tokens/s", "range", "of the bare client's")
HF_COLUMNS = (*COLUMNS[:-1], "of the line below's")


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


def hf_sampling(prompts: Sequence[dict[str, Any]], out: str) -> tuple[Measured, list[dict[str, Any]]]:
    """rlaif samples with transformers; returns the prompts with their answers too."""
    import rlaif

    run = rlaif.generate(prompts, policy=HF_MODEL, judge=shortest, out=out, n=N, max_tokens=MAX_TOKENS)
    measured, records = _through_engine(run, "completion_tokens")
    answers = {record.prompt.id: [candidate.text for candidate in record.candidates] for record in records}
    return measured, [{**prompt, "candidates": answers[prompt["id"]]} for prompt in prompts]


def hf_judging(rows: Sequence[dict[str, Any]], out: str, reuse: bool) -> Measured:
    """rlaif compares answers with transformers, with shared prefixes read once or not."""
    import rlaif
    from rlaif.models.hf import running

    chat = running.Chat
    running.Chat = lambda *args, **settings: chat(*args, **settings, reuse=reuse)  # type: ignore[assignment, misc]
    return _through_engine(rlaif.judge(rows, judge="pairwise", judge_model=HF_MODEL, out=out), "total")[0]


def _through_engine(run: Any, count: str) -> tuple[Measured, list[Any]]:
    """A run's time from the moment that the network is loaded."""
    import sqlite3
    import zlib
    from contextlib import closing

    from rlaif.models.hf import network

    load, loaded = network.load, list[float]()

    def noting(*args: Any, **settings: Any) -> Any:
        found = load(*args, **settings)
        loaded.append(time.perf_counter())
        return found

    network.load = noting
    records = list(run)
    ended = time.perf_counter()
    with closing(sqlite3.connect(run.directory / "run.sqlite")) as db:
        bodies = [json.loads(zlib.decompress(body)) for (body,) in db.execute("SELECT body FROM calls WHERE kind IS NULL")]
    usages = [body["usage"] for body in bodies if "usage" in body]
    tokens = sum(u["completion_tokens"] + (u["prompt_tokens"] if count == "total" else 0) for u in usages)
    return Measured(ended - loaded[0], tokens, [b""] * len(usages)), records


def hf_generate(prompts: Sequence[dict[str, Any]], rows: int) -> Measured:
    """transformers' own `generate`, so many rows at a time."""
    import torch

    from rlaif.models import convert
    from rlaif.models.hf import network

    loaded = network.load(convert.get(), dtype=None)
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "left"
    messages = [prompt["prompt"] for prompt in prompts]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": one}] if isinstance(one, str) else one, tokenize=False, add_generation_prompt=True
        )
        for one in messages
    ]
    texts.sort(key=len)
    tokens, began = 0, time.perf_counter()
    for at in range(0, len(texts), max(1, rows // N)):
        batch = tokenizer(texts[at : at + max(1, rows // N)], return_tensors="pt", padding=True, add_special_tokens=False)
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": MAX_TOKENS, "num_return_sequences": N}
        with torch.inference_mode():
            made = loaded.model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :].tolist()
        for row in made:
            ends = [place for place, token in enumerate(row) if token in loaded.stops]
            tokens += ends[0] + 1 if ends else len(row)
    return Measured(time.perf_counter() - began, tokens, [b""] * len(texts))


def rewards(rows: Sequence[dict[str, Any]], together: bool) -> Measured:
    """Answers scored by a classifier with a seeded head on the small model's body."""
    import torch
    import transformers

    from rlaif.judges.reward import Rewards
    from rlaif.models import convert
    from rlaif.models.hf.chat_text import encode
    from rlaif.models.hf.worker import Worker

    folder = convert.get()
    transformers.utils.logging.set_verbosity_error()  # it tells that the head is new
    torch.manual_seed(1)
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = [
        [{"role": "user", "content": str(row["prompt"])}, {"role": "assistant", "content": text}]
        for row in rows
        for text in row["candidates"]
    ]
    tokens = sum(len(encode(tokenizer, one, template=None, generation_prompt=False)) for one in asked)
    worker = Worker("rewards", lambda: Rewards(model, tokenizer, torch.device("cpu"), 0, None, None))

    async def score() -> float:
        await worker.run(asked[0])
        began = time.perf_counter()
        if together:
            await asyncio.gather(*map(worker.run, asked))
        else:
            for one in asked:
                await worker.run(one)
        seconds = time.perf_counter() - began
        await worker.close()
        return seconds

    return Measured(asyncio.run(score()), tokens, [b""] * len(asked))


def measure_hf(
    prompts: Sequence[dict[str, Any]], to_judge: int, repeats: int, batches: Sequence[int] = (8, 16, 32)
) -> list[list[str]]:
    """The rows of the table of transformers."""
    samples, verdicts, scored = (dict[str, list[Measured]]() for _ in range(3))
    best: int | None = None
    for repeat in range(repeats):
        say(f"transformers: run {repeat + 1} of {repeats}")
        with tempfile.TemporaryDirectory() as out:
            ours, rows = apart(hf_sampling, prompts, f"{out}/samples")
            samples.setdefault("rlaif", []).append(ours)
            if best is None:
                tried = {size: apart(hf_generate, prompts, size) for size in batches}
                best = max(tried, key=lambda size: tried[size].per_s)
                samples[f"generate, {best} rows"] = [tried[best]]
                say(", ".join(f"{size} rows {one.per_s:.0f} tokens/s" for size, one in tried.items()))
            else:
                samples[f"generate, {best} rows"].append(apart(hf_generate, prompts, best))
            for by, reuse in (("prefixes read once", True), ("every call whole", False)):
                verdicts.setdefault(by, []).append(apart(hf_judging, rows[:to_judge], f"{out}/judge-{reuse}", reuse))
            for by, together in (("together", True), ("one by one", False)):
                scored.setdefault(by, []).append(apart(rewards, rows, together))
    table_rows = []
    for work, of in (("hf samples", samples), ("hf judge calls", verdicts), ("rewards", scored)):
        against = list(of.values())[-1]
        table_rows += [row_of(work, by, runs, against) for by, runs in of.items()]
    return table_rows


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
    parser.add_argument("--hf-prompts", type=int, default=8, help="to sample for with transformers (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--only", choices=("gguf", "hf"), help="one of the two")
    args = parser.parse_args()
    from rlaif.models import smollm2

    if smollm2.find() is None:
        parser.error("the weights are missing: rlaif models get smollm2")
    lines = (ROOT / "prompts" / "examples" / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [{k: row[k] for k in ("id", "prompt")} for row in map(json.loads, lines)]
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}, median of {args.repeats}"
    if args.only != "hf":
        show(where, table(COLUMNS, measure(prompts[: args.prompts], args.to_judge, args.repeats), names=2))
    if args.only != "gguf":
        rows = measure_hf(prompts[: args.hf_prompts], args.to_judge, args.repeats)
        show(where, table(HF_COLUMNS, rows, names=2))


if __name__ == "__main__":
    main()
