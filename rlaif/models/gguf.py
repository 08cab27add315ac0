"""`gguf/FILE`: a GGUF chat model with llama.cpp, in this process.

xllamacpp starts llama.cpp's own server on a free loopback port behind a random key, and the model talks to it as to any
endpoint: dropping a request frees its slot, and n, seeds, logprobs and grammars are the server's. Calls that share a
mark (the judge calls of one prompt) go one after another, so that each finds the prefix of the one before in the
cache: measured with SmolLM2 on 2 cores, 12 judgements of 660 tokens take 7.2 s in order and 15.6 s all at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.endpoint import Endpoint
from rlaif.errors import InputError, StopRun
from rlaif.models import chat, guided
from rlaif.models.digests import sha256_of
from rlaif.models.odd import Oddities
from rlaif.models.openai import AiohttpTransport, OpenAI
from rlaif.responses import Response
from rlaif.types import Purchase, Reply, Request

SLOTS = 8
CONTEXT_TOKENS = 4096
_PROMPT_CACHE_MIB = 512
_GRAMMAR_LOGPROBS = 20


class Gguf:
    """A GGUF file served by llama.cpp inside this process; it is loaded with the first call.

    A request may not be longer than 4096 tokens with its answer. Sampling settings that a request does not name are
    llama.cpp's (top_k 40, top_p 0.95, min_p 0.05); `extra_body` sets others.
    """

    max_n = SLOTS
    window = SLOTS
    free = True
    specials: Sequence[str] = ()

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        weights: str,
        concurrency: int,
        timeout_s: float,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.identity: Mapping[str, Any] = {"gguf": weights, "extra": dict(extra_body or {})}
        self._path, self._timeout_s, self._extra = path, timeout_s, dict(extra_body or {})
        self.endpoint = Endpoint(name, concurrency=min(concurrency, SLOTS))
        self._loading: asyncio.Task[_Loaded] | None = None
        self._queues: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def send(self, request: Request, purchase: Purchase) -> Reply:
        """One kept response. Raises CallFailed or StopRun."""
        self._loading = self._loading or asyncio.ensure_future(self._load())
        loaded = await asyncio.shield(self._loading)
        if not request.mark:
            return await loaded.send(request, purchase)
        lock = self._queues.setdefault(request.mark, asyncio.Lock())
        async with lock:
            return await loaded.send(request, purchase)

    def read(self, body: bytes) -> Reply:
        """The parsed response."""
        return chat.read(body)

    async def can_constrain(self) -> bool:
        """True."""
        return True

    def stop(self, reason: StopRun) -> None:
        """Lets no further call out."""
        self.endpoint.stop(reason)

    async def close(self) -> None:
        """Stops the server and frees the weights."""
        loading, self._loading = self._loading, None
        if loading is not None:
            with contextlib.suppress(StopRun):  # it could not be loaded, as was said
                await (await loading).close()

    async def _load(self) -> _Loaded:
        server, key = await asyncio.to_thread(_serve, self._path)
        transport = AiohttpTransport(server.listening_address + "/v1", api_key=key, timeout_s=self._timeout_s)
        return _Loaded(
            self.name,
            identity=self.identity,
            endpoint=self.endpoint,
            transport=_CountingTransport(transport, server.listening_address),
            served_as=self.name,
            extra_body=self._extra,
            server=server,
        )


class _Loaded(OpenAI):
    """The running server as an endpoint, with choices constrained by a grammar."""

    def __init__(self, name: str, *, server: Any, **settings: Any) -> None:
        super().__init__(name, **settings)
        self._server, self.oddities = server, Oddities(name, None)  # llama.cpp names the file

    async def close(self) -> None:
        await super().close()
        self._server = None  # the last reference: llama.cpp stops

    def _body(self, request: Request) -> dict[str, Any]:
        body = super()._body(request)
        body["cache_prompt"] = True
        if request.choices:
            body |= guided.grammar(request.choices) | {
                "post_sampling_probs": True,
                "logprobs": True,
                "top_logprobs": _GRAMMAR_LOGPROBS,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
            }
        return body


class _CountingTransport:
    """Adds the tokens of every choice to `usage`: llama.cpp counts those of the first choice alone."""

    def __init__(self, inner: AiohttpTransport, address: str) -> None:
        self._inner, self._address = inner, address

    async def post(self, body: dict[str, Any]) -> Response:
        import aiohttp

        response = await self._inner.post(body)
        if response.status != 200 or body.get("n", 1) == 1:
            return response
        try:
            data = json.loads(response.body)
            texts = [choice["message"]["content"] or "" for choice in data["choices"][1:]]
            for text in texts:
                data["usage"]["completion_tokens"] += len(
                    (await self._inner.post_json(f"{self._address}/tokenize", {"content": text}))["tokens"]
                )
            data["usage"]["total_tokens"] = data["usage"]["prompt_tokens"] + data["usage"]["completion_tokens"]
        except (ValueError, KeyError, TypeError, aiohttp.ClientError, OSError):
            return response  # the count of the first choice stands
        return Response(200, response.headers, json.dumps(data, ensure_ascii=False).encode())

    async def close(self) -> None:
        await self._inner.close()


def _serve(path: Path) -> tuple[Any, str]:
    """Starts llama.cpp's server for `path`; returns it and its key. Raises StopRun if the file is no model."""
    xllamacpp = llama_cpp()
    key = secrets.token_urlsafe(24)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT_TOKENS
    params.cpuparams.n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.api_keys = [key]
    params.verbosity = -1
    params.ui = False
    try:
        return xllamacpp.Server(params), key
    except RuntimeError as error:
        raise StopRun("model", f"llama.cpp cannot load {str(path)!r}: {error}") from None


def llama_cpp() -> Any:
    """The module xllamacpp. Raises InputError with what to install if it, or a library that it needs, is missing."""
    try:
        import xllamacpp
    except ModuleNotFoundError:
        raise InputError("GGUF models need llama.cpp: pip install 'rlaif[gguf]'") from None
    except ImportError as error:
        hint = "; on Debian and Ubuntu: apt-get install libgomp1" if "libgomp" in str(error) else ""
        raise InputError(f"llama.cpp is installed but cannot be loaded: {error}{hint}") from None
    return xllamacpp


def weights_digest(path: Path, cache: Path) -> str:
    """SHA-256 of the file, remembered in `cache`. Raises InputError if it is no GGUF file."""
    try:
        with path.open("rb") as file:
            begins = file.read(4)
        if begins != b"GGUF":
            raise InputError(f"{str(path)!r} is not a GGUF file")
        return sha256_of([path], cache)[0]
    except OSError as error:
        raise InputError(f"cannot read the model file {str(path)!r}: {error.strerror}") from None
