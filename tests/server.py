"""A real OpenAI-compatible HTTP server on loopback whose replies are a function of the request.

    python tests/server.py --port 0 --latency-s 0.02 --logprobs ignored        # prints its address

Answers are hashed from the model, the messages, the seed and the choice's index, and hold a hidden number ("quality 0.731").
Requests with log-probabilities or `[[A]]` in the last message are judge calls: the oracle compares the last two qualities
in the message. A completion's `id` is the hash of the request's body, so that a stored response names its request.

Every path prefix is a room of its own, with its own behaviour, log and counters: `/ROOM/v1/chat/completions`.
`POST /ROOM/behaviour` replaces the behaviour (fields of `Behaviour` as JSON), `GET /ROOM/log` tells what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import math
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from aiohttp import web

QUALITY = re.compile(r"quality (\d\.\d+)")
THINKING = "Perhaps [[A]], or rather [[B]]; my first draft had quality 0.999."
FAULTS = ("rate_limit", "server_error", "reset", "html", "cut_json")


@dataclass(frozen=True)
class Behaviour:
    """How a room differs from a perfect endpoint."""

    latency_s: float = 0.0
    most_choices: int = 128
    """1: `n` is ignored."""
    missing_choices: int = 0
    """So many fewer than asked for, where more than one is asked for."""
    logprobs: str = "given"
    """given, or silently ignored."""
    refuses: str = ""
    """A field that is answered with 400."""
    refusal: str = ""
    """What the 400 says, where it is not the usual."""
    refusal_param: str = ""
    """The field that the 400 names, where it is another one than `refuses`."""
    usage: str = "given"
    """given, missing or huge."""
    limit: int = 0
    """So many requests are accepted in any `limit_s`; the others meet 429 without a word on when to come back."""
    limit_s: float = 0.1
    thinking: str = ""
    """field (reasoning_content), block (<think>...</think>) or tail (...</think>, the template opened the block)."""
    answers: str = "varied"
    """varied, same (all alike), empty or blank."""
    truncated_above: float = 2.0
    """Answers of a higher quality end with finish_reason length."""
    judge: str = "oracle"
    """oracle, first, tie, unreadable or contradictory."""
    fault_share: float = 0.0
    """This share of the requests, told by the request's number, meets one of `faults` in turn."""
    faults: str = ",".join(FAULTS)
    fault_first: int = 0
    """The first so many attempts of every body meet one of `faults`."""
    failure: str = ""
    """What every request meets that comes after `fail_after` others and holds `fail_when`: a key of `_failures`, bomb,
    or echo_400 and the like, which repeats the request's authorization."""
    fail_after: int = 0
    fail_when: str = ""


@dataclass
class Room:
    """One independent endpoint: its behaviour, what it was asked, and how many calls were in flight at most."""

    behaviour: Behaviour
    log: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    accepted: list[float] = field(default_factory=list)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Logs the request, answers it, and notes when the answer was written whole."""
        raw = await request.read()
        body = json.loads(raw)
        entry = {
            "id": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24],
            "time": time.monotonic(),
            "body": body,
            "judge": is_judge(body),
            "authorization": request.headers.get("Authorization"),
            "number": len(self.log) + 1,
            "status": 0,
            "answered": False,
            "texts": [],
            "usage": None,
        }
        self.log.append(entry)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self.behaviour.latency_s)
            return await self._reply(request, entry)
        finally:
            self.in_flight -= 1

    async def _reply(self, request: web.Request, entry: dict[str, Any]) -> web.StreamResponse:
        said = self._fault(entry) or refusal(self.behaviour, entry["body"])
        if said == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if said in ("drip", "never"):
            return await _slowly(request, said)
        if said is None:
            completion = answer(self.behaviour, entry["body"], entry["id"])
            entry["texts"] = [c["message"]["content"] for c in completion["choices"]]
            entry["usage"] = completion.get("usage")
            said = 200, {}, json.dumps(completion).encode()
        status, headers, payload = said
        entry["status"] = status
        response = web.StreamResponse(status=status, headers={"Content-Type": "application/json"} | headers)
        response.content_length = len(payload)
        with suppress(ConnectionResetError):  # the client is gone
            await response.prepare(request)
            await response.write(payload)
            await response.write_eof()
            entry["answered"] = True
        return response

    def _fault(self, entry: dict[str, Any]) -> Any:
        how, number = self.behaviour, entry["number"]
        if how.failure and number > how.fail_after and how.fail_when in json.dumps(entry["body"], ensure_ascii=False):
            if how.failure.startswith("echo_"):
                return _error(int(how.failure[5:]), f"Cannot use {entry['authorization']} for this.")
            return _failure(how.failure)
        if how.limit:
            self.accepted = [moment for moment in self.accepted if moment > time.monotonic() - how.limit_s]
            if len(self.accepted) >= how.limit:
                return _failure("busy")
            self.accepted.append(time.monotonic())
        earlier = sum(e["id"] == entry["id"] for e in self.log) - 1 if how.fault_first else 0
        by_number = int(hashlib.sha256(str(number).encode()).hexdigest()[:6], 16) / 0x1000000
        if earlier < how.fault_first or by_number < how.fault_share:
            kinds = how.faults.split(",")
            return _failure(kinds[number % len(kinds)])
        return None


def is_judge(body: dict[str, Any]) -> bool:
    """Whether a request asks for a verdict."""
    return bool(body.get("logprobs")) or "[[A]]" in body["messages"][-1]["content"]


def refusal(how: Behaviour, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
    """The 400 for a request with a field that the room refuses."""
    if how.refuses not in body:
        return None
    instead = "max_completion_tokens" if how.refuses == "max_tokens" else "the default"
    text = how.refusal or f"Unsupported parameter: '{how.refuses}' is not supported with this model. Use {instead} instead."
    param = how.refusal_param or how.refuses
    return _error(400, text, type="invalid_request_error", param=param, code="unsupported_parameter")


def answer(how: Behaviour, body: dict[str, Any], name: str) -> dict[str, Any]:
    """The completion of a request: a function of the behaviour and the body alone."""
    n = body.get("n", 1)
    n = min(n if n == 1 else max(1, n - how.missing_choices), how.most_choices)
    verdict = _verdict(how, body) if is_judge(body) else None
    choices = [_choice(how, body, index, verdict) for index in range(n)]
    prompt = sum(len(m["content"].split()) for m in body["messages"])
    said = sum(len((c["message"]["content"] or "").split()) for c in choices)
    if how.usage == "huge":
        prompt = said = 10**30
    usage = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    completion = {"id": name, "object": "chat.completion", "model": body["model"], "choices": choices}
    return completion if how.usage == "missing" else completion | {"usage": usage}


def _choice(how: Behaviour, body: dict[str, Any], index: int, verdict: float | str | None) -> dict[str, Any]:
    probability = verdict if isinstance(verdict, float) else None
    finish, logprobs = "stop", None
    if verdict is None:
        text, quality = _answer_text(how, body, index)
        finish = "length" if quality > how.truncated_above else "stop"
    elif isinstance(verdict, str):
        text = verdict
    elif body.get("logprobs"):
        text = "A" if verdict >= 0.5 else "B"
    else:
        text = "I compared them. " + ("[[C]]" if verdict == 0.5 else "[[A]]" if verdict > 0.5 else "[[B]]")
    if body.get("logprobs") and how.logprobs == "given":
        likely = {"I": 0.9, "We": 0.1} if probability is None else {"A": probability, "B": 1.0 - probability}
        logprobs = _logprobs(likely)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if how.thinking == "field":
        message["reasoning_content"] = THINKING
    elif how.thinking:
        message["content"] = ("<think>" if how.thinking == "block" else "") + f"\n{THINKING}\n</think>\n\n{text}"
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": logprobs}


def _answer_text(how: Behaviour, body: dict[str, Any], index: int) -> tuple[str, float]:
    if how.answers in ("empty", "blank"):
        return ("" if how.answers == "empty" else " \n\t"), 0.0
    varied = [body.get("seed"), index] if how.answers == "varied" else []
    mark = hashlib.sha256(json.dumps([body["model"], body["messages"], varied], sort_keys=True).encode()).hexdigest()
    quality = int(mark[:6], 16) % 1000 / 1000
    return f"Answer {mark[6:12]}{' and more' * (int(mark[12], 16) % 8)}, of quality {quality:.3f}.", quality


def _verdict(how: Behaviour, body: dict[str, Any]) -> float | str:
    """The probability that the first answer shown is the better one, or a reply that is no clear verdict."""
    if how.judge in ("unreadable", "contradictory"):
        return "I would rather not say." if how.judge == "unreadable" else "At first [[A]], but then [[B]]."
    if how.judge in ("first", "tie"):
        return 0.9 if how.judge == "first" else 0.5
    shown = [float(q) for q in QUALITY.findall(body["messages"][-1]["content"])][-2:]
    return 1.0 / (1.0 + math.exp(6.0 * (shown[1] - shown[0]))) if len(shown) == 2 else "I see no two answers."


def _logprobs(likely: dict[str, float]) -> dict[str, Any]:
    listed = [{"token": token, "logprob": math.log(p), "bytes": list(token.encode())} for token, p in likely.items()]
    return {"content": [listed[0] | {"top_logprobs": sorted(listed, key=lambda t: -t["logprob"])}]}


def _error(status: int, text: str, headers: dict[str, str] | None = None, **more: Any) -> tuple[int, dict[str, str], bytes]:
    return status, headers or {}, json.dumps({"error": {"message": text} | more}).encode()


def _failure(kind: str) -> Any:
    return (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * (80 * 2**20), 1)) if kind == "bomb" else _failures()[kind]


def _failures() -> dict[str, Any]:
    return {
        "auth": _error(401, "Incorrect API key provided.", code="invalid_api_key"),
        "forbidden": _error(403, "You may not do this."),
        "quota": _error(429, "You exceeded your current quota.", type="insufficient_quota", code="insufficient_quota"),
        "model": _error(404, "The model does not exist.", code="model_not_found"),
        "too_long": _error(400, "This model's maximum context length is 8 tokens.", code="context_length_exceeded"),
        "policy": _error(400, "This request was rejected by the safety system.", code="content_policy_violation"),
        "surrogate": _error(400, "This is no text: \ud800."),
        "unfinished": _error(
            400, "Could not finish the message because max_tokens was reached. Please try a higher max_tokens."
        ),
        "busy": _error(429, "Too many requests."),
        "rate_limit": _error(429, "Slow down.", {"Retry-After": "0.05"}),
        "hold_20": _error(429, "Slow down.", {"Retry-After": "20"}),
        "hold": _error(429, "Slow down.", {"Retry-After": "0.5"}),
        "long_hold": _error(429, "Come back tomorrow.", {"Retry-After": "86400"}),
        "server_error": _error(500, "The server had an error."),
        "reset": "reset",
        "drip": "drip",
        "never": "never",
        "html": (200, {"Content-Type": "text/html"}, b"<html><body>502 Bad Gateway</body></html>"),
        "cut_json": (200, {}, b'{"id": "x", "choices": [{"index": 0, "message": {"role": "assist'),
        "whitespace": (200, {}, b"\n" * 400),
        "no_choices": (200, {}, b'{"choices": []}'),
        "null_choices": (200, {}, b'{"choices": null}'),
        "null_content": (200, {}, b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": null}}]}'),
        "error_inside": _error(200, "The upstream is overloaded.", code=502),
    }


async def _slowly(request: web.Request, how: str) -> web.StreamResponse:
    """Never a whole answer: silence, or a byte now and then."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    with suppress(ConnectionResetError):
        if how == "drip":
            await response.prepare(request)
        for _ in range(300):
            await asyncio.sleep(0.1)
            if how == "drip":
                await response.write(b" ")
    return response


def make_app(default: Behaviour) -> web.Application:
    """The application with all rooms."""
    rooms: dict[str, Room] = {}

    def room(request: web.Request) -> Room:
        return rooms.setdefault(request.match_info.get("room", ""), Room(default))

    async def complete(request: web.Request) -> web.StreamResponse:
        return await room(request).complete(request)

    async def behave(request: web.Request) -> web.Response:
        room(request).behaviour = Behaviour(**(asdict(default) | await request.json()))
        return web.json_response(asdict(room(request).behaviour))

    async def log(request: web.Request) -> web.Response:
        here = room(request)
        return web.json_response({"log": here.log, "peak": here.peak, "in_flight": here.in_flight})

    async def count(request: web.Request) -> web.Response:
        return web.json_response(len(room(request).log))

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    app = web.Application(client_max_size=64 * 2**20)
    for prefix in ("", "/{room}"):
        app.router.add_post(prefix + "/v1/chat/completions", complete)
        app.router.add_get(prefix + "/v1/models", models)
        app.router.add_post(prefix + "/behaviour", behave)
        app.router.add_get(prefix + "/log", log)
        app.router.add_get(prefix + "/count", count)
    return app


async def serve(port: int, default: Behaviour) -> None:
    """Serves until cancelled; the first line printed is the address."""
    runner = web.AppRunner(make_app(default), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    for setting in fields(Behaviour):
        kind = type(setting.default)
        parser.add_argument("--" + setting.name.replace("_", "-"), type=kind, default=setting.default, metavar=kind.__name__)
    given = vars(parser.parse_args())
    asyncio.run(serve(given.pop("port"), Behaviour(**given)))


if __name__ == "__main__":
    main()
