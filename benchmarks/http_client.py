"""Compare HTTP clients for keeping many chat completion requests in flight on a small machine.

A real HTTP server (aiohttp.web) runs in its own process on loopback and answers every POST to
/v1/chat/completions with the same chat completion of about 1.5 KB, at once or after 0.5 s. Each
client (aiohttp, httpx, httpx2, openai) sends it the same request, a prompt of about 2 KB, from a
fresh process, with one worker for each request in flight, kept-alive connections and no retries.

Measured around the request loop, after a warm-up that opens every connection:

* requests: how many were answered; a run stops sending after 8 s, so a slow client answers fewer.
* CPU ms/request: user and system time of the client process, over the number of requests. Encoding
  the request and parsing the answer are part of it: with json, except that openai parses the answer
  itself and hands back its own model objects, as a caller of it would pay for.
* requests/s: at no latency this is bound by the client, or by the server where "core busy" (client
  CPU time over wall time) is well below 100 %.
* wall/ideal, at 0.5 s latency only: wall time over requests * 0.5 s / in flight, so 1.00 means that
  the client adds nothing to the server's latency.

The 0.5 s setting sends a quarter of the requests, rounded up to whole rounds of those in flight, so
that its ideal is exact (a run that hits its time limit may end on a part of a round). Every number is
the median of three runs, in alternating order of clients; "CPU range" shows the lowest and highest of
the three, for a look at the noise. An idle connection is kept for longer than a run in every client:
with httpx's own 5 s, its pool shrinks in the middle of a run and each run mixes two pool sizes.
"""

import argparse
import asyncio
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

REPEATS = 3
RUN_LIMIT_S = 8.0
KEEP_ALIVE_S = 60.0
LATENCIES = (0.0, 0.5)
TIMEOUT_S = 60.0
API_KEY = "benchmark"
BASELINE = "aiohttp"
COLUMNS = (
    "client",
    "latency",
    "requests",
    "CPU ms/request",
    "CPU range",
    f"CPU / {BASELINE}",
    "requests/s",
    "core busy",
    "wall/ideal",
)

PROMPT = " ".join(["Summarise the following paragraph in three sentences and keep every number in it."] * 25)
ANSWER = " ".join(["The paragraph reports 128 requests, 2 cores and 0.5 seconds."] * 17)
REQUEST: dict[str, Any] = {
    "model": "benchmark-model",
    "messages": [
        {"role": "system", "content": "You are a careful editor."},
        {"role": "user", "content": PROMPT},
    ],
    "temperature": 0.0,
    "max_tokens": 512,
}
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "benchmark-model",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None, "tool_calls": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 420,
        "completion_tokens": 260,
        "total_tokens": 680,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
    "system_fingerprint": None,
}

Ask = Callable[[], Awaitable[str]]
OpenClient = Callable[[str, int], AbstractAsyncContextManager[Ask]]


@dataclass(frozen=True)
class Run:
    """What one client process measured over one request loop."""

    requests: int
    cpu_s: float
    wall_s: float

    @property
    def cpu_ms_per_request(self) -> float:
        """CPU time of the client process for one request."""
        return self.cpu_s / self.requests * 1000

    @property
    def requests_per_second(self) -> float:
        """Requests answered in a second of wall time."""
        return self.requests / self.wall_s

    @property
    def busy(self) -> float:
        """Share of the wall time that the client process spent on the CPU."""
        return self.cpu_s / self.wall_s


async def _serve(latency: float, ready: Connection) -> None:
    web = importlib.import_module("aiohttp.web")
    payload = json.dumps(COMPLETION).encode()

    async def answer(request: Any) -> Any:
        await request.read()
        if latency:
            await asyncio.sleep(latency)
        return web.Response(body=payload, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    ready.send(runner.addresses[0][1])
    await asyncio.Event().wait()


def serve(latency: float, ready: Connection) -> None:
    """Answer chat completions on a free loopback port, told through `ready`, until terminated."""
    asyncio.run(_serve(latency, ready))


@contextlib.contextmanager
def running_server(latency: float) -> Iterator[str]:
    """Run the server in a process of its own and yield its base URL."""
    context = multiprocessing.get_context("spawn")
    port, ready = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(latency, ready), daemon=True)
    process.start()
    ready.close()
    try:
        yield f"http://127.0.0.1:{port.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def content_of(body: bytes) -> str:
    """Return the text of the first choice of an encoded chat completion."""
    content: str = json.loads(body)["choices"][0]["message"]["content"]
    return content


@contextlib.asynccontextmanager
async def open_aiohttp(base_url: str, in_flight: int) -> AsyncIterator[Ask]:
    """Yield a function that asks for one completion with aiohttp."""
    aiohttp = importlib.import_module("aiohttp")
    url = f"{base_url}/chat/completions"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        headers={"Authorization": f"Bearer {API_KEY}"},
    ) as session:

        async def ask() -> str:
            async with session.post(url, json=REQUEST) as response:
                response.raise_for_status()
                return content_of(await response.read())

        yield ask


def httpx_limits(httpx: Any, in_flight: int) -> Any:
    """Return limits of httpx or httpx2 that keep a connection open for every request in flight."""
    return httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight, keepalive_expiry=KEEP_ALIVE_S)


@contextlib.asynccontextmanager
async def open_httpx(module: str, base_url: str, in_flight: int) -> AsyncIterator[Ask]:
    """Yield a function that asks for one completion with httpx or httpx2, which share their interface."""
    httpx = importlib.import_module(module)
    url = f"{base_url}/chat/completions"
    async with httpx.AsyncClient(
        limits=httpx_limits(httpx, in_flight),
        timeout=TIMEOUT_S,
        headers={"Authorization": f"Bearer {API_KEY}"},
        trust_env=False,
    ) as client:

        async def ask() -> str:
            response = await client.post(url, json=REQUEST)
            response.raise_for_status()
            return content_of(response.content)

        yield ask


@contextlib.asynccontextmanager
async def open_openai(base_url: str, in_flight: int) -> AsyncIterator[Ask]:
    """Yield a function that asks for one completion with the openai client (3 or later, over httpx2).

    Its own limit on kept-alive connections, 100, would have it reconnect all the time with more in flight.
    """
    openai = importlib.import_module("openai")
    limits = httpx_limits(importlib.import_module("httpx2"), in_flight)
    transport = openai.DefaultAsyncHttpxClient(limits=limits, timeout=TIMEOUT_S, trust_env=False)
    async with openai.AsyncOpenAI(
        api_key=API_KEY, base_url=base_url, timeout=TIMEOUT_S, max_retries=0, http_client=transport
    ) as client:

        async def ask() -> str:
            completion = await client.chat.completions.create(**REQUEST)
            content: str = completion.choices[0].message.content
            return content

        yield ask


CLIENTS: dict[str, OpenClient] = {
    BASELINE: open_aiohttp,
    "httpx": functools.partial(open_httpx, "httpx"),
    "httpx2": functools.partial(open_httpx, "httpx2"),
    "openai": open_openai,
}


async def drive(ask: Ask, requests: int, in_flight: int) -> int:
    """Ask from `in_flight` workers, check every answer, and return how many of `requests` fit in the time limit."""
    stop = time.perf_counter() + RUN_LIMIT_S
    remaining = iter(range(requests))

    async def worker() -> int:
        answered = 0
        while time.perf_counter() < stop and next(remaining, None) is not None:
            if await ask() != ANSWER:
                raise RuntimeError("the answer is not the one that the server sent")
            answered += 1
        return answered

    return sum(await asyncio.gather(*(worker() for _ in range(in_flight))))


async def _measure(client: str, base_url: str, requests: int, in_flight: int) -> Run:
    async with CLIENTS[client](base_url, in_flight) as ask:
        await drive(ask, 2 * in_flight, in_flight)
        cpu, wall = time.process_time(), time.perf_counter()
        answered = await drive(ask, requests, in_flight)
        return Run(requests=answered, cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall)


def measure(client: str, base_url: str, requests: int, in_flight: int) -> Run:
    """Measure one request loop of one client in this process, after a warm-up."""
    return asyncio.run(_measure(client, base_url, requests, in_flight))


def measure_all(clients: list[str], latency: float, requests: int, in_flight: int) -> dict[str, list[Run]]:
    """Measure every client `REPEATS` times against one server, each run in a fresh process."""
    runs: dict[str, list[Run]] = {client: [] for client in clients}
    context = multiprocessing.get_context("spawn")
    with running_server(latency) as base_url:
        for repeat in range(REPEATS):
            for client in clients if repeat % 2 == 0 else reversed(clients):
                print(f"latency {latency:g} s, run {repeat + 1} of {REPEATS}: {client}", file=sys.stderr)
                with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                    runs[client].append(pool.submit(measure, client, base_url, requests, in_flight).result())
    return runs


def requests_at(latency: float, requests: int, in_flight: int) -> int:
    """Return how many requests to send at a latency: whole rounds, and fewer of them where each one waits."""
    return math.ceil(requests / 4 / in_flight) * in_flight if latency else requests


def table_line(cells: Sequence[str]) -> str:
    """Join cells into one line of a markdown table."""
    return f"| {' | '.join(cells)} |"


def table_row(client: str, latency: float, in_flight: int, runs: dict[str, list[Run]]) -> str:
    """Return one line of the markdown table."""
    if client not in runs:
        return table_line([client, f"{latency:g} s", "not installed", *[""] * (len(COLUMNS) - 3)])
    own = runs[client]
    cpu = [run.cpu_ms_per_request for run in own]
    baseline = statistics.median(run.cpu_ms_per_request for run in runs[BASELINE])
    rate = statistics.median(run.requests_per_second for run in own)
    cells = [
        client,
        f"{latency:g} s",
        f"{statistics.median(run.requests for run in own):.0f}",
        f"{statistics.median(cpu):.3f}",
        f"{min(cpu):.3f} to {max(cpu):.3f}",
        f"{statistics.median(cpu) / baseline:.2f}",
        f"{rate:.0f}",
        f"{statistics.median(run.busy for run in own):.0%}",
        f"{in_flight / latency / rate:.3f}" if latency else "-",
    ]
    return table_line(cells)


def heading(clients: list[str], requests: int, in_flight: int) -> str:
    """Return the lines above the rows: what it ran on, how much it sent, and the head of the table."""
    versions = ", ".join(f"{client} {importlib.metadata.version(client)}" for client in clients)
    sent = ", ".join(f"{requests_at(latency, requests, in_flight)} at {latency:g} s" for latency in LATENCIES)
    return (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}; "
        f"{in_flight} in flight, requests a run: {sent}; median of {REPEATS} runs\n\n"
        f"{table_line(COLUMNS)}\n|{' --- |' * 2}{' ---: |' * (len(COLUMNS) - 2)}"
    )


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description="Compare HTTP clients on chat completion requests.")
    parser.add_argument("--requests", type=positive, default=4000, help="requests a run at no latency (%(default)s)")
    parser.add_argument("--in-flight", type=positive, default=128, help="requests kept in flight (%(default)s)")
    args = parser.parse_args()
    if importlib.util.find_spec("aiohttp") is None:
        parser.error("the server needs aiohttp, which is not installed")
    installed = [client for client in CLIENTS if importlib.util.find_spec(client) is not None]
    rows: list[str] = []
    for latency in LATENCIES:
        requests = requests_at(latency, args.requests, args.in_flight)
        runs = measure_all(installed, latency, requests, args.in_flight)
        rows += [table_row(client, latency, args.in_flight, runs) for client in CLIENTS]
    print(heading(installed, args.requests, args.in_flight), *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
