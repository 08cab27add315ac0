"""Buying an answer once: the ledger is asked first, and what is bought is stored before it is used.

A key is the content of a call: the model's identity, the messages and the sampling settings without n and seed; for
samples also the prompt's id and the sample's index. The delimiter of a judge's prompt is left out. One response with n
choices fills n keys. A budget is asked before each attempt is sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlaif.aio import all_of
from rlaif.errors import CallFailed, Unsupported
from rlaif.keys import canonical, feed, seed_of
from rlaif.ledger import KEY_BYTES, Failure, Ledger
from rlaif.types import Choice, Model, Reply, Request

_TIMES = 1000


@dataclass
class Tally:
    """Calls of this process: bought by role, answered by the ledger, attempts without an answer; and the tokens bought."""

    policy: int = 0
    judge: int = 0
    reused: int = 0
    faults: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: dict[str, deque[float]] = field(default_factory=dict)

    def bought(self, role: str, seconds: float) -> None:
        """Counts one response that was bought, and how long it took; the last thousand times are kept."""
        if role not in self.seconds:
            self.seconds[role] = deque(maxlen=_TIMES)
        self.seconds[role].append(seconds)
        if role == "policy":
            self.policy += 1
        else:
            self.judge += 1


def billed_as(model: Model) -> str:
    """The model as the books name it: with its address, on which its price depends."""
    return f"{model.name}@{model.identity['url']}" if "url" in model.identity else model.name


def no_budget() -> None:
    """Where nothing limits what is bought."""


class Client:
    """A model whose answers are bought once. `role` is policy or judge; `budget` raises StopRun when it is used up."""

    def __init__(
        self, model: Model, ledger: Ledger, tally: Tally, *, role: str, budget: Callable[[], object] = no_budget
    ) -> None:
        self.name, self.identity = model.name, model.identity
        self.window, self.free, self.specials = model.window, model.free, model.specials
        self._constrains: bool | None = None
        self.ledger, self.tally, self.role, self.budget, self._model = ledger, tally, role, budget, model
        self.billed = billed_as(model)
        self._flying: dict[tuple[int, bytes], asyncio.Future[Choice]] = {}
        self._prefixes: dict[tuple[Any, ...], hashlib.blake2b] = {}

    async def can_constrain(self) -> bool:
        """Whether the model honours `Request.choices`. What was found first holds for the run directory."""
        if self._constrains is None:
            name = f"constrains {self.billed}"
            known = self.ledger.meta(name)
            found = await self._model.can_constrain() if known is None else known == "true"
            if found is None:  # not to be had now: asked again
                return False
            if known is None:
                await self.ledger.note({name: "true" if found else "false"})
            self._constrains = found
        return self._constrains

    async def answer(self, request: Request) -> Choice:
        """The one answer to `request`; equal requests for a prompt at the same time share one call."""
        key = self._key(request)
        while (flying := self._flying.get((request.ordinal, key))) is not None:
            try:
                return await asyncio.shield(flying)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not flying.cancelled() or (task is not None and task.cancelling()):  # not only the one who asked first
                    raise
        stored = self._stored(request.ordinal, [key])[0].get(0)
        if stored is None:
            stored = await self._answer(key, request)
        if isinstance(stored, CallFailed):
            raise stored
        return stored

    async def samples(
        self, request: Request, *, prompt_id: str, n: int, run_seed: int, first: int = 0
    ) -> list[Choice | CallFailed]:
        """n samples of a prompt from the `first` on, in index order; a failed one is its error. Buys only the missing ones."""
        keys = self._sample_keys(request, prompt_id, range(first, first + n))
        done, short = self._stored(request.ordinal, keys)

        async def buy(indices: Sequence[int]) -> list[int]:
            asked = Request(
                request.messages,
                len(indices),
                request.temperature,
                request.max_tokens,
                seed_of(run_seed, prompt_id, first + indices[0]),
                ordinal=request.ordinal,
            )
            try:
                reply = await self._buy([keys[i] for i in indices], asked)
            except CallFailed as error:
                done.update(dict.fromkeys(indices, error))
                return []
            done.update(zip(indices, reply.choices, strict=False))
            return list(indices[len(reply.choices) :])

        runs = _runs([i for i in range(n) if i not in done and i not in short], self._model.max_n)
        missing = await all_of(*(buy(run) for run in runs))
        # An endpoint that gives fewer choices than n, or one whatever n, is asked for the others one by one: no more
        # calls than without n, and the same ones if the run was interrupted in between.
        await all_of(*(buy([index]) for group in (*missing, sorted(short)) for index in group))
        return [done[index] for index in range(n)]

    async def _answer(self, key: bytes, request: Request) -> Choice:
        """Buys the answer, and lets others who ask for it meanwhile share it."""
        flight = request.ordinal, key
        shared = self._flying[flight] = asyncio.get_running_loop().create_future()
        try:
            choice = (await self._buy([key], request)).choices[0]
        except Exception as error:
            shared.set_exception(error)
            shared.exception()  # told to whoever shares it; nobody may
            raise
        except BaseException:
            shared.cancel()  # whoever shares it asks again
            raise
        finally:
            del self._flying[flight]
        shared.set_result(choice)
        return choice

    def _hasher(self, request: Request) -> hashlib.blake2b:
        """The hash of all but what tells one answer to the request from another."""
        settings = request.temperature, request.max_tokens, request.logprobs, request.choices
        if settings not in self._prefixes:
            begun = hashlib.blake2b(canonical([dict(self.identity), settings]), digest_size=KEY_BYTES)
            self._prefixes[settings] = begun
        hasher = self._prefixes[settings].copy()
        for message in request.messages:
            if len(message) > 2:
                hasher.update(canonical({k: v for k, v in message.items() if k not in ("role", "content")}))
            parts = message["content"].split(request.mark) if request.mark else (message["content"],)
            feed(hasher, message["role"], *parts)
        return hasher

    def _key(self, request: Request) -> bytes:
        return self._hasher(request).digest()

    def _sample_keys(self, request: Request, prompt_id: str, indices: Iterable[int]) -> list[bytes]:
        begun, keys = self._hasher(request), []
        feed(begun, "sample", prompt_id)
        for index in indices:
            hasher = begun.copy()
            feed(hasher, str(index))
            keys.append(hasher.digest())
        return keys

    def _stored(self, ordinal: int, keys: Sequence[bytes]) -> tuple[dict[int, Choice | CallFailed], set[int]]:
        """What is on file for `keys`, by place; and the places that were asked for in a response that fell short."""
        found: dict[int, Choice | CallFailed] = {}
        short: set[int] = set()
        replies: dict[int, Reply] = {}
        for index, key in enumerate(keys):
            entry = self.ledger.lookup(ordinal, key)
            if entry is None:
                continue
            if isinstance(entry, Failure):
                found[index] = CallFailed(entry.kind, entry.message)
                continue
            if entry.call not in replies:
                replies[entry.call] = self._read(self.ledger.body(entry.call))
            choices = replies[entry.call].choices
            if entry.choice < len(choices):
                found[index] = choices[entry.choice]
            elif choices:
                short.add(index)
        self.tally.reused += sum(1 for reply in replies.values() if reply.choices)
        return found, short

    def _read(self, body: bytes) -> Reply:
        """The parsed body, without choices if it is no answer."""
        try:
            return self._model.read(body)
        except CallFailed:
            return Reply(choices=())

    async def _buy(self, keys: Sequence[bytes], request: Request) -> Reply:
        purchase = _Purchase(self, keys, request)
        try:
            reply = await self._model.send(request, purchase)
        except Unsupported:
            purchase.unsent()
            raise
        except CallFailed as error:
            await self.ledger.fail(request.ordinal, keys, error.kind, str(error), role=self.role, model=self.billed)
            raise
        finally:
            purchase.leave()
        self.tally.prompt_tokens += reply.prompt_tokens or 0
        self.tally.completion_tokens += reply.completion_tokens or 0
        return reply


class _Purchase:
    """The books of one call: attempts of paid models are counted while their end is open."""

    __slots__ = ("_began", "_client", "_keys", "_open", "_request")

    def __init__(self, client: Client, keys: Sequence[bytes], request: Request) -> None:
        self._client, self._keys, self._request, self._open = client, keys, request, False
        self._began = 0.0

    def begin(self) -> None:
        client = self._client
        client.budget()
        self._began = time.monotonic()
        if not client.free:
            client.ledger.sent()
            self._open = True

    async def keep(self, body: bytes) -> None:
        client, seconds = self._client, time.monotonic() - self._began
        kept = await client.ledger.keep(
            self._request.ordinal,
            self._keys,
            body,
            role=client.role,
            model=client.billed,
            free=client.free,
            asked_tokens=self._request.characters // 4,
        )
        if kept:
            client.tally.bought(client.role, seconds)
        else:
            client.tally.faults += 1
        self._end()

    async def fault(self, kind: str, status: int | None, body: bytes) -> None:
        client = self._client
        client.tally.faults += 1
        await client.ledger.fault(self._request.ordinal, kind, status, body, role=client.role, model=client.billed)
        self._end()

    def unsent(self) -> None:
        """The attempt that was begun was not sent."""
        self._end()

    def leave(self) -> None:
        """What is still open now was broken off: it stays counted as sent."""
        self._open = False

    def _end(self) -> None:
        if self._open:
            self._client.ledger.ended()
            self._open = False


def _runs(indices: Sequence[int], longest: int) -> list[list[int]]:
    """`indices` cut into runs of neighbours, none longer than `longest`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1 and len(runs[-1]) < longest:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
