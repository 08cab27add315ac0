"""`openai/NAME[@URL]`: any OpenAI-compatible endpoint.

The hot path is aiohttp: of the clients measured in benchmarks/http_client.py it takes the least CPU a request. The
`openai` package can carry the requests instead (`transport="openai"`), for what only it knows; its own retries are off.
What an endpoint refuses is learned once: `max_completion_tokens` for `max_tokens`, no temperature, no seed, no logprobs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import orjson

from rlaif.endpoint import Endpoint
from rlaif.errors import CallFailed, InputError, StopRun, Unsupported
from rlaif.models import chat, guided
from rlaif.models.odd import Oddities
from rlaif.responses import Rejected, Response, TransportError
from rlaif.types import Purchase, Reply, Request

if TYPE_CHECKING:
    import aiohttp
    import openai

log = logging.getLogger("rlaif")

DEFAULT_URL = "https://api.openai.com/v1"
_CONNECT_S = 30.0
_SHORTEST_SECRET = 16
MAX_BODY_BYTES = 64 * 2**20
_KEPT_BYTES = 2**16
_STOPPED_AFTER_REJECTIONS = 5
_UNWANTED = ("support", "unrecogni", "unknown", "not allowed", "not permitted", "extra", "only the default")


class Transport(Protocol):
    """Carries one chat request to an endpoint."""

    async def post(self, body: dict[str, Any]) -> Response:
        """The endpoint's response, whatever its status. Raises TransportError if there is none."""

    async def models(self) -> Any:
        """What the endpoint lists as its models; nothing if it has no list, None if it does not answer."""

    async def close(self) -> None:
        """Closes the connections."""


class OpenAI:
    """A model behind an OpenAI-compatible endpoint."""

    max_n = 128
    specials: Sequence[str] = ()
    free = False

    def __init__(
        self,
        name: str,
        *,
        identity: Mapping[str, Any],
        endpoint: Endpoint,
        transport: Transport,
        served_as: str,
        extra_body: Mapping[str, Any] | None = None,
        strict: bool = False,
    ) -> None:
        self.name = name
        self.identity = identity
        self._endpoint, self._transport, self._served_as = endpoint, transport, served_as
        self.window = 2 * endpoint.concurrency
        self._extra = dict(extra_body or {})
        self._dropped: set[str] = set()
        self._renamed: dict[str, str] = {}
        self._accepted, self._rejected = Counter[str](), Counter[str]()
        self._strict, self.oddities = strict, Oddities(name, served_as)
        self._listing: Any = None
        self._guided: guided.Fields | None = None

    async def send(self, request: Request, purchase: Purchase) -> Reply:
        """One kept response. Raises CallFailed, Unsupported("logprobs") or StopRun."""
        sent: dict[str, Any] = {}

        async def post() -> Response:
            if request.logprobs and "logprobs" in self._dropped:
                raise Unsupported("logprobs", f"{self.name} refuses logprobs")
            sent.clear()
            sent.update(self._body(request))
            return await self._transport.post(sent)

        role = "policy" if not request.mark else "letter" if request.logprobs else "judge"
        tokens = request.characters // 4 + request.n * (request.max_tokens or 0)
        while True:
            try:
                reply = await self._endpoint.call(post, purchase, chat.read, kind=role, tokens=tokens)
            except Rejected as rejected:
                if not self._learn(rejected, sent):
                    self._rejected[role] += 1
                    if role != "letter" and not self._accepted[role] and self._rejected[role] >= _STOPPED_AFTER_REJECTIONS:
                        said = f"every {role} request so far was refused; the last time: {rejected}"
                        raise self._endpoint.stop(StopRun("config", said)) from None
                    raise CallFailed("bad_request", str(rejected)) from None
            else:
                self._accepted["judge" if role == "letter" else role] += 1
                self.oddities.note(reply)
                if self._strict and reply.model != self._served_as:
                    said = f"{self.name} was asked for {self._served_as!r} and answers as {reply.model!r} (strict_model)"
                    raise self._endpoint.stop(StopRun("model", said))
                return reply

    def read(self, body: bytes) -> Reply:
        """The parsed response."""
        return chat.read(body)

    async def can_constrain(self) -> bool | None:
        """Whether the server is one that holds an answer to a list of choices; None where it does not say."""
        if self._listing is None:
            listing = await self._transport.models()
            if listing is None:
                return None
            self._listing, self._guided = listing, guided.fields_of(listing)
        return self._guided is not None

    def stop(self, reason: StopRun) -> None:
        """Lets no further call out."""
        self._endpoint.stop(reason)

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    def _body(self, request: Request) -> dict[str, Any]:
        body = chat.request_body(self._served_as, request, self._extra)
        if request.choices and self._guided is not None:
            body |= self._guided(request.choices)
        for name in self._dropped:
            body.pop(name, None)
        for name, instead in self._renamed.items():
            if name in body:
                body[instead] = body.pop(name)
        return body

    def _learn(self, rejected: Rejected, sent: dict[str, Any]) -> bool:
        """Takes a refused field out of later requests. True if the request would now be another.

        A refusal that names its field is taken at its word; only one that names none is searched for one.
        """
        said = rejected.said.lower()
        named = {rejected.param} if rejected.param else set(re.findall(r"\w+", said))
        unwanted = any(words in said for words in _UNWANTED)
        refused: set[str] = set()
        if "max_tokens" in sent and ("max_completion_tokens" in said or (unwanted and "max_tokens" in named)):
            self._renamed["max_tokens"] = "max_completion_tokens"
        elif named & {"logprobs", "top_logprobs"}:  # whatever is wrong with them, verdicts as text do without
            refused = {"logprobs", "top_logprobs"}
        elif "n" in sent and (rejected.param == "n" or (not rejected.param and re.search(r"'n'|\bn > 1", said))):
            refused = {"n"}
        elif unwanted:
            refused = next(({name} for name in ("temperature", "seed") if name in named), set())
        refused = {name for name in refused if name in sent}
        if not refused <= self._dropped:
            log.warning("%s refuses %s: it is left out from now on", self.name, ", ".join(sorted(refused - self._dropped)))
            self._dropped |= refused
        return sent.keys() != self._body_keys(sent)

    def _body_keys(self, sent: dict[str, Any]) -> set[str]:
        """The fields that `sent` would have by what is known now."""
        return {self._renamed.get(name, name) for name in sent if name not in self._dropped}


class AiohttpTransport:
    """Requests over one aiohttp session, opened in the loop that first uses it."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._url, self._timeout_s, self._api_key = url, timeout_s, api_key
        self._chat: Any = None
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def post(self, body: dict[str, Any]) -> Response:
        """The endpoint's response. Raises TransportError if there is none within `timeout_s`."""
        import aiohttp

        if self._closed:
            raise StopRun("closed", "the run has ended")
        session = self._session or self._open()
        chunks: list[bytes] = []
        size = 0
        try:
            async with session.post(self._chat, data=_encoded(body)) as response:
                async for chunk in response.content.iter_any():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > MAX_BODY_BYTES:
                        partial = _without(self._api_key, 0, b"".join(chunks)[:_KEPT_BYTES])
                        said = f"the response is larger than {MAX_BODY_BYTES} bytes"
                        raise TransportError(said, kind="too_big", partial=partial)
                return Response(response.status, response.headers, _without(self._api_key, response.status, b"".join(chunks)))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise TransportError(f"cannot connect: {error}", kind="unreachable") from None
        except TimeoutError:
            partial = _without(self._api_key, 0, b"".join(chunks))
            raise TransportError(
                f"no complete response within {self._timeout_s:g} s", kind="timeout", partial=partial
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            partial = _without(self._api_key, 0, b"".join(chunks))
            said = f"the connection broke: {type(error).__name__}: {error}"
            raise TransportError(said, kind="broken", partial=partial) from None

    async def models(self) -> Any:
        """What the endpoint lists as its models; nothing if it has no list, None if it does not answer."""
        import aiohttp

        if self._closed:
            return None
        session = self._session or self._open()
        try:
            async with session.get(f"{self._url}/models") as response:
                return await response.json() if response.status == 200 else {} if response.status in (404, 405) else None
        except (aiohttp.ClientError, OSError, ValueError):
            return None

    async def post_json(self, url: str, payload: Any) -> Any:
        """The JSON that another path of the same server answers to `payload`. Raises aiohttp's errors."""
        session = self._session or self._open()
        async with session.post(url, data=json.dumps(payload).encode()) as response:
            return await response.json()

    async def close(self) -> None:
        """Closes the session for good."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp
        import yarl

        self._chat = yarl.URL(f"{self._url}/chat/completions")
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),  # the endpoint's slots are the limit
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=min(_CONNECT_S, self._timeout_s / 2)),
            trust_env=not is_local(self._url),
        )
        return self._session


class OpenAITransport:
    """Requests through the `openai` package's client, for its proxies, headers and authentication."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._settings: dict[str, Any] = {"base_url": url, "api_key": api_key or "none", "max_retries": 0}
        self._timeout_s = timeout_s
        self._client: openai.AsyncOpenAI | None = None

    async def post(self, body: dict[str, Any]) -> Response:
        """The endpoint's response. Raises TransportError if there is none within the time."""
        import openai

        raw = self._open().chat.completions.with_raw_response
        try:
            response = await asyncio.wait_for(
                raw.create(
                    messages=body["messages"],
                    model=body["model"],
                    extra_body={k: v for k, v in body.items() if k not in ("messages", "model")},
                ),
                self._timeout_s,
            )
        except openai.APIStatusError as error:
            payload = _without(self._settings["api_key"], error.status_code, error.response.content)
            return Response(error.status_code, dict(error.response.headers), payload)
        except (TimeoutError, openai.APITimeoutError) as error:
            if "Connect" in type(error.__cause__).__name__:  # of httpx or its successor
                raise TransportError("cannot connect: no answer", kind="unreachable") from None
            raise TransportError(f"no complete response within {self._timeout_s:g} s", kind="timeout") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if "Connect" in type(cause).__name__:
                raise TransportError(f"cannot connect: {cause}", kind="unreachable") from None
            raise TransportError(f"the connection broke: {type(cause).__name__}: {cause}", kind="broken") from None
        payload = _without(self._settings["api_key"], response.status_code, response.content)
        if len(payload) > MAX_BODY_BYTES:
            said = f"the response is larger than {MAX_BODY_BYTES} bytes"
            raise TransportError(said, kind="too_big", partial=payload[:_KEPT_BYTES])
        return Response(response.status_code, dict(response.headers), payload)

    async def models(self) -> Any:
        """What the endpoint lists as its models; nothing if it has no list, None if it does not answer."""
        import openai

        try:
            listed = await self._open().models.with_raw_response.list()
            return json.loads(listed.content)
        except openai.NotFoundError:
            return {}
        except (openai.OpenAIError, ValueError):
            return None

    def _open(self) -> openai.AsyncOpenAI:
        import openai

        if self._client is None:
            connect_s = min(_CONNECT_S, self._timeout_s / 2)
            self._client = openai.AsyncOpenAI(timeout=openai.Timeout(self._timeout_s, connect=connect_s), **self._settings)
        return self._client

    async def close(self) -> None:
        """Closes the client."""
        if self._client is not None:
            await self._client.close()


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # an integer of more than 64 bits, say, in --extra-body
        return json.dumps(body).encode()


def _without(api_key: str | None, status: int, payload: bytes) -> bytes:
    """The body with the key taken out: some endpoints repeat it in errors, and bodies and messages are stored and shown."""
    if not api_key or (status == 200 and len(api_key) < _SHORTEST_SECRET):  # a made-up key may be a word of an answer
        return payload
    return payload.replace(api_key.encode(), b"(key)")


def split_url(rest: str) -> tuple[str, str]:
    """(name, base URL) of `NAME[@URL]`; without a URL, OPENAI_BASE_URL or OpenAI's own. Raises InputError."""
    name, at, url = rest.partition("@http")
    url = "http" + url if at else os.environ.get("OPENAI_BASE_URL", "").strip() or DEFAULT_URL
    tail = name.rpartition("@")[2] if "@" in name else ""
    if re.search(r":\d+(/|$)|/v\d", tail):  # not sent to the default address with the key
        raise InputError(f"'openai/{rest}': an address begins with http:// or https://, as openai/NAME@http://{tail}")
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if not name or not parts.hostname or parts.scheme not in ("http", "https"):
        raise InputError(f"'openai/{rest}' should read openai/NAME or openai/NAME@http://host:port/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("a model's address may hold no password or query, which would be stored: set OPENAI_API_KEY instead")
    return name, url.rstrip("/").removesuffix("/chat/completions")


def api_key_for(name: str, url: str) -> str | None:
    """OPENAI_API_KEY. Raises InputError if it is not set and the address is not on the local machine."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and not is_local(url):
        raise InputError(f"'openai/{name}' at {url} needs a key: set OPENAI_API_KEY")
    return key or None


def is_local(url: str) -> bool:
    """True for an address on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def make_transport(kind: str, url: str, *, api_key: str | None, timeout_s: float) -> Transport:
    """The transport named `kind`: aiohttp or openai. Raises InputError for another."""
    if kind == "aiohttp":
        return AiohttpTransport(url, api_key=api_key, timeout_s=timeout_s)
    if kind == "openai":
        return OpenAITransport(url, api_key=api_key, timeout_s=timeout_s)
    raise InputError(f"transport {kind!r} should be aiohttp or openai")
