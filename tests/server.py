"""A real OpenAI-compatible HTTP server on loopback whose replies are a function of the request.

    python tests/server.py --port 0 --latency-s 0.02 --logprobs ignored        # prints its address
    python tests/server.py --port 0 --slots 8 --service-s 0.5 --service-cv 0.5 --rates 50:15,20:15,100 --log counts

Answers are hashed from the model, the messages, the seed and the choice's index, and hold a hidden number ("quality 0.731").
Requests with log-probabilities or `[[A]]` in the last message are judge calls: the oracle compares the last two qualities
in the message. A completion's `id` is the hash of the request's body, so that a stored response names its request.

Every path prefix is a room of its own, with its own behaviour, log and counters: `/ROOM/v1/chat/completions`.
`POST /ROOM/behaviour` replaces the behaviour (fields of `Behaviour` as JSON). What the server says of itself is the truth
that a client is held to:

    GET /ROOM/log    every request: when it came, what was answered, whether it was accepted, billed and written whole
    GET /ROOM/count  how many requests there were
    GET /ROOM/bill   what was worked out and what of it was written whole, by model; requests billed twice (?every=1: all)
    GET /ROOM/rate   requests allowed, accepted and refused, and those that came before the client was told to come back
    GET /cost        the server's own CPU time and memory
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from dataclasses import asdict, fields
from typing import Any

from aiohttp import web
from chaos import wire
from chaos.behaviour import CHOICES, FAULTS, Behaviour, documented
from chaos.faults import FAILURES
from chaos.oracle import QUALITY, THINKING
from chaos.room import Room

__all__ = ["FAILURES", "FAULTS", "QUALITY", "THINKING", "Behaviour", "make_app"]


def make_app(default: Behaviour) -> web.Application:
    """The application with all rooms."""
    rooms: dict[str, Room] = {}

    def room(request: web.Request) -> Room:
        name = request.match_info.get("room", "")
        if name not in rooms:
            rooms[name] = Room(default)
        return rooms[name]

    async def complete(request: web.Request) -> web.StreamResponse:
        return await room(request).complete(request)

    async def models(request: web.Request) -> web.StreamResponse:
        down = room(request).down()
        if down is not None:
            return (await wire.send(request, wire.Reply(down.status, {}, down.said(None)), down.sent, 0.0))[0]
        owner = room(request).behaviour.owner or "nobody"
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": owner}]})

    async def behave(request: web.Request) -> web.Response:
        try:
            room(request).behave(Behaviour(**(asdict(default) | await request.json())))
        except (TypeError, ValueError) as problem:
            return web.json_response({"error": {"message": str(problem)}}, status=400)
        return web.json_response(asdict(room(request).behaviour))

    async def log(request: web.Request) -> web.Response:
        here = room(request)
        return web.json_response({"log": here.log, "peak": here.peak, "in_flight": here.in_flight})

    async def count(request: web.Request) -> web.Response:
        return web.json_response(room(request).count)

    async def bill(request: web.Request) -> web.Response:
        return web.json_response(room(request).bill.told(every="every" in request.query))

    async def rate(request: web.Request) -> web.Response:
        here = room(request)
        return web.json_response(here.rates.summary() | {"sends_before_allowed": here.holds.broken})

    async def cost(request: web.Request) -> web.Response:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return web.json_response({"cpu_s": time.process_time(), "peak_memory_mb": peak_kib / 1024})

    app = web.Application(client_max_size=64 * 2**20)
    for prefix in ("", "/{room}"):
        app.router.add_post(prefix + "/v1/chat/completions", complete)
        app.router.add_get(prefix + "/v1/models", models)
        app.router.add_post(prefix + "/behaviour", behave)
        for tell in (log, count, bill, rate):
            app.router.add_get(f"{prefix}/{tell.__name__}", tell)
    app.router.add_get("/cost", cost)
    return app


async def serve(port: int, default: Behaviour) -> None:
    """Serves until cancelled; the first line printed is the address."""
    runner = web.AppRunner(make_app(default), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def behaviour_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of `Behaviour`."""
    said = documented()
    for setting in fields(Behaviour):
        option: dict[str, Any] = {"default": setting.default, "help": said[setting.name].replace("%", "%%")}
        if isinstance(setting.default, bool):
            option |= {"action": argparse.BooleanOptionalAction}
        elif setting.name in CHOICES:
            option |= {"choices": CHOICES[setting.name]}
        else:
            option |= {"type": type(setting.default), "metavar": type(setting.default).__name__}
        parser.add_argument("--" + setting.name.replace("_", "-"), **option)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    behaviour_options(parser)
    given = vars(parser.parse_args())
    port = given.pop("port")
    try:
        default = Behaviour(**given)
        Room(default)
    except ValueError as problem:
        parser.error(str(problem))
    asyncio.run(serve(port, default))


if __name__ == "__main__":
    main()
