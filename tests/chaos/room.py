"""One independent endpoint: its behaviour, what it was asked, what it billed and what it delivered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from chaos import faults, wire
from chaos.behaviour import Behaviour
from chaos.faults import CHANGES, FAILURES, Fault
from chaos.oracle import Asked, answer
from chaos.rates import SAYS, Holds, Queue, Rates

_JSON = {"Content-Type": "application/json"}
_write_json = json.JSONEncoder().encode
_DOWN = faults.error(503, "The service is down.")
_RESET = FAILURES["reset"]


class Bill:
    """What was worked out, and what of it went out whole, by model; and how often each request was billed."""

    def __init__(self) -> None:
        self._billed: dict[str, list[int]] = {}
        self._delivered: dict[str, list[int]] = {}
        self._times: Counter[str] = Counter()

    def work(self, name: str, model: str, usage: Mapping[str, int]) -> None:
        """A completion was worked out."""
        self._times[name] += 1
        _add(self._billed, model, usage)

    def delivery(self, model: str, usage: Mapping[str, int]) -> None:
        """It was written whole."""
        _add(self._delivered, model, usage)

    def told(self, every: bool) -> dict[str, Any]:
        """As JSON; `times` lists every request, or those that were billed more than once."""
        columns = ("calls", "prompt_tokens", "completion_tokens")
        return {
            **{
                name: {model: dict(zip(columns, row, strict=True)) for model, row in rows.items()}
                for name, rows in (("billed", self._billed), ("delivered", self._delivered))
            },
            "requests": len(self._times),
            "repeats": self._times.total() - len(self._times),
            "times": {name: times for name, times in self._times.items() if every or times > 1},
        }


def _add(rows: dict[str, list[int]], model: str, usage: Mapping[str, int]) -> None:
    row = rows.setdefault(model, [0, 0, 0])
    row[0] += 1
    row[1] += usage["prompt_tokens"]
    row[2] += usage["completion_tokens"]


class Room:
    """One endpoint. A new behaviour begins with fresh limits; the log, the bill and the requests' numbers go on."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.log: list[dict[str, Any]] = []
        self.bill = Bill()
        self.count = self.in_flight = self.peak = 0
        self._asked: Counter[str] = Counter()
        self.behave(behaviour)

    def behave(self, how: Behaviour) -> None:
        """Takes on a behaviour; raises ValueError if it cannot be."""
        usage = f"usage_{how.usage}"
        if how.usage != "given" and usage not in CHANGES:
            raise ValueError(f"usage {how.usage!r}: there is no failure {usage!r}")
        failure = faults.failure(how.failure) if how.failure else None
        kinds = [faults.failure(name) for name in how.faults.split(",")]
        rates, queue = Rates(how), Queue(how)
        self.behaviour, self._failure, self._kinds = how, failure, kinds
        self._usage = faults.NONE if how.usage == "given" else FAILURES[usage]
        self.rates, self.holds, self._queue = rates, Holds(how.grace_s), queue
        self._failed, self._down_from, self._down_until = 0, 0.0, 0.0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answers a request, or fails to as the behaviour says, and notes it."""
        now = time.monotonic()
        try:
            asked = Asked(json.loads(await request.read()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
            return web.json_response({"error": {"message": f"This is no chat request: {problem!r}"}}, status=400)
        self.count += 1
        self._asked[asked.id] += 1
        self.holds.came(now)
        entry: dict[str, Any] = {
            "id": asked.id,
            "time": now,
            "body": asked.body,
            "judge": asked.judge,
            "authorization": request.headers.get("Authorization"),
            "number": self.count,
            "attempt": self._asked[asked.id],
            "status": 0,
            "accepted": None,
            "come_back": None,
            "began": None,
            "billed": False,
            "answered": False,
            "texts": [],
            "usage": None,
        }
        if self.behaviour.log == "full":
            self.log.append(entry)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            if self.behaviour.latency_s:
                await asyncio.sleep(self.behaviour.latency_s)
            return await self._reply(request, asked, entry)
        finally:
            self.in_flight -= 1

    def down(self) -> Fault | None:
        """How the room is down, if it is; the outage begins with the first request after `down_after` others."""
        how = self.behaviour
        if not how.down_for_s:
            return None
        now = time.monotonic()
        if not self._down_until and self.count > how.down_after:
            self._down_from, self._down_until = now, now + how.down_for_s
        return None if now >= self._down_until else _RESET if how.down == "reset" else _DOWN

    async def _reply(self, request: web.Request, asked: Asked, entry: dict[str, Any]) -> web.StreamResponse:
        how, fault = self.behaviour, self._fault(asked, entry)
        if fault.body is None:
            entry["began"] = await self._queue.work(asked.id, lambda: _listens(request))
            if entry["began"] is None:
                return web.Response()  # the client left while the request waited for its turn
            if how.down == "reset" and entry["time"] < self._down_from:
                fault = _RESET  # what was in flight when the room went down is lost
        usage: dict[str, int] = {}
        if fault.body is None:
            body, usage = self._work(how, asked, entry, fault)
        else:
            body = fault.said(entry["authorization"])
        reply = wire.Reply(fault.status, _JSON | fault.headers | self._wait(fault, entry), body)
        if fault.sent in ("whole", "slow"):
            entry["status"] = fault.status
        response, entry["answered"] = await wire.send(request, reply, fault.sent, how.drip_s)
        if usage and entry["answered"] and fault.intact:
            self.bill.delivery(asked.body["model"], usage)
        return response

    def _fault(self, asked: Asked, entry: dict[str, Any]) -> Fault:
        """What goes wrong with a request, decided when it comes."""
        how, number = self.behaviour, int(entry["number"])
        if (down := self.down()) is not None:
            return down
        if self._failure is not None and number > how.fail_after and self._fails(asked):
            return self._failure
        if self.rates.limited:
            now = time.monotonic()
            until = self.rates.refused_until(now)
            entry["accepted"] = until is None
            if until is not None:
                wait = None if how.limit or math.isinf(until) else (how.retry_after, until - now)
                return faults.error(429, "Too many requests.", wait=wait, type="requests", code="rate_limit_exceeded")
        if entry["attempt"] <= how.fault_first or (how.fault_share and _share(number) < how.fault_share):
            return self._kinds[number % len(self._kinds)]
        return refusal(how) if how.refuses in asked.body else faults.NONE

    def _fails(self, asked: Asked) -> bool:
        """Whether the request is one of those that `failure` is for."""
        how = self.behaviour
        if how.fail_when and how.fail_when not in json.dumps(asked.body, ensure_ascii=False):
            return False
        self._failed += 1
        return self._failed <= (how.fail_count or math.inf)

    def _work(self, how: Behaviour, asked: Asked, entry: dict[str, Any], fault: Fault) -> tuple[bytes, dict[str, int]]:
        """Works the completion out and bills it; returns it as it is sent, and what it truly used."""
        completion = answer(how, asked, fault.more)
        usage: dict[str, int] = completion["usage"].copy()
        entry["texts"] = [choice["message"]["content"] for choice in completion["choices"]]
        completion = self._usage.change(fault.change(completion))
        entry["usage"], entry["billed"] = completion.get("usage"), True
        self.bill.work(asked.id, asked.body["model"], usage)
        body = _write_json(completion).encode()
        return fault.spoil(body) if fault.spoil else body, usage

    def _wait(self, fault: Fault, entry: dict[str, Any]) -> dict[str, str]:
        """The headers that tell the client to wait, if the fault does; notes until when."""
        if fault.wait is None:
            return {}
        kind, seconds = fault.wait
        headers, told = SAYS[kind](seconds)
        if told is not None:
            now = time.monotonic()
            entry["come_back"] = now + told
            self.holds.told(now, now + told)
        return headers


def refusal(how: Behaviour) -> Fault:
    """The 400 for a request with a field that the room refuses."""
    instead = "max_completion_tokens" if how.refuses == "max_tokens" else "the default"
    text = how.refusal or f"Unsupported parameter: '{how.refuses}' is not supported with this model. Use {instead} instead."
    param = how.refusal_param or how.refuses
    return faults.error(400, text, type="invalid_request_error", param=param, code="unsupported_parameter")


def _listens(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


def _share(number: int) -> float:
    return int(hashlib.sha256(str(number).encode()).hexdigest()[:6], 16) / 0x1000000
