"""Buying an answer once: the ledger is asked first, and what is bought is stored before it is used.

A key is the content of a call: the model's identity, the messages and the sampling settings without n and seed; for
samples also the prompt's id and the sample's index. The delimiter of a judge's prompt is left out. One response with n
choices fills n keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.aio import all_of
from rlaif.errors import CallFailed, Unsupported
from rlaif.keys import digest, seed_of
from rlaif.ledger import Failure, Ledger
from rlaif.types import Choice, Model, Reply, Request


@dataclass
class Tally:
    """Calls of this process: bought by role, and answered by the ledger; and the tokens of those bought."""

    policy: int = 0
    judge: int = 0
    reused: int = 0
    tokens: int = 0

    def bought(self, role: str) -> None:
        """Counts one response that was bought."""
        if role == "policy":
            self.policy += 1
        else:
            self.judge += 1


class Client:
    """A model whose answers are bought once. `role` is policy or judge."""

    def __init__(self, model: Model, ledger: Ledger, tally: Tally, *, role: str) -> None:
        self.name, self.identity = model.name, model.identity
        self.constrains, self.window, self.free = model.constrains, model.window, model.free
        self._model, self._ledger, self._tally, self._role = model, ledger, tally, role
        self._flying: dict[str, asyncio.Future[Choice]] = {}

    async def answer(self, request: Request) -> Choice:
        """The one answer to `request`; equal requests at the same time share one call."""
        key = self._key(request)
        if key not in self._flying:
            self._flying[key] = asyncio.ensure_future(self._answer(key, request))
            self._flying[key].add_done_callback(lambda task: self._landed(key, task))
        return await asyncio.shield(self._flying[key])

    async def close(self) -> None:
        """Breaks off the calls that nobody waits for any more."""
        for task in self._flying.values():
            task.cancel()
        await asyncio.gather(*self._flying.values(), return_exceptions=True)

    async def samples(self, request: Request, *, prompt_id: str, n: int, run_seed: int) -> list[Choice | CallFailed]:
        """The first n samples of a prompt, in index order; a failed one is its error. Buys only the missing ones."""
        keys = [self._key(request, prompt_id, index) for index in range(n)]
        done, short = self._stored(keys)

        async def buy(indices: Sequence[int]) -> list[int]:
            asked = replace(request, n=len(indices), seed=seed_of(run_seed, prompt_id, indices[0]))
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

    def _landed(self, key: str, task: asyncio.Future[Choice]) -> None:
        del self._flying[key]
        if not task.cancelled():
            task.exception()  # told to whoever waited; nobody may have

    def _key(self, request: Request, *sample: Any) -> str:
        settings = [request.temperature, request.max_tokens, request.logprobs, list(request.choices)]
        messages = [m | {"content": m["content"].split(request.mark)} if request.mark else m for m in request.messages]
        return digest([dict(self.identity), messages, settings, *sample])

    def _stored(self, keys: Sequence[str]) -> tuple[dict[int, Choice | CallFailed], set[int]]:
        """What is on file for `keys`, by place; and the places that were asked for in a response that fell short."""
        found: dict[int, Choice | CallFailed] = {}
        short: set[int] = set()
        replies: dict[int, Reply] = {}
        for index, key in enumerate(keys):
            entry = self._ledger.lookup(key)
            if isinstance(entry, Failure):
                found[index] = CallFailed(entry.kind, entry.message)
            elif entry is not None:
                if entry.call not in replies:
                    replies[entry.call] = self._read(None if entry.counted else entry.call, entry.body)
                choices = replies[entry.call].choices
                if entry.choice < len(choices):
                    found[index] = choices[entry.choice]
                elif choices:
                    short.add(index)
        self._tally.reused += sum(1 for reply in replies.values() if reply.choices)
        return found, short

    def _read(self, call: int | None, body: bytes) -> Reply:
        """The parsed body, without choices if it is no answer; the tokens of `call` are noted."""
        try:
            reply = self._model.read(body)
        except CallFailed:
            return Reply(choices=())
        if call is not None:
            self._ledger.note_usage(call, reply.prompt_tokens, reply.completion_tokens)
        return reply

    async def _answer(self, key: str, request: Request) -> Choice:
        stored = self._stored([key])[0].get(0)
        if stored is None:
            stored = (await self._buy([key], request)).choices[0]
        if isinstance(stored, CallFailed):
            raise stored
        return stored

    async def _buy(self, keys: Sequence[str], request: Request) -> Reply:
        calls: list[int] = []

        async def keep(body: bytes) -> None:
            calls.append(await self._ledger.keep(keys, body, role=self._role, model=self._model.name, free=self._model.free))
            self._tally.bought(self._role)

        try:
            body = await self._model.send(request, keep)
        except Unsupported:
            raise
        except CallFailed as error:
            await self._ledger.fail(keys, error.kind, str(error))
            raise
        reply = self._read(calls[-1], body)
        self._tally.tokens += (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
        return reply


def _runs(indices: Sequence[int], longest: int) -> list[list[int]]:
    """`indices` cut into runs of neighbours, none longer than `longest`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1 and len(runs[-1]) < longest:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
