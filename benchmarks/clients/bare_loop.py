"""The least that a client can do: the requests of BODIES from IN_FLIGHT workers over one aiohttp session, and nothing else.

    python bare_loop.py URL BODIES IN_FLIGHT

BODIES holds a request body a line. Each is sent with `json=` and its answer parsed with `response.json()`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp


async def send_all(url: str, bodies: Iterator[Any], in_flight: int) -> int:
    """Sends every body once; returns how many choices came back."""
    choices = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            nonlocal choices
            for body in bodies:
                async with session.post(url, json=body) as response:
                    choices += len((await response.json())["choices"])

        await asyncio.gather(*(work() for _ in range(in_flight)))
    return choices


def main() -> None:
    url, path, in_flight = sys.argv[1:]
    bodies = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    cpu, wall = time.process_time(), time.perf_counter()
    choices = asyncio.run(send_all(f"{url}/chat/completions", iter(bodies), int(in_flight)))
    print(json.dumps({"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "choices": choices}))


if __name__ == "__main__":
    main()
