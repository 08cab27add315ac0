"""How a reply goes over the wire: whole, or broken at a chosen byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Reply:
    """What is to be sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    def head(self, length: int | None = None) -> bytes:
        """The status line and the headers; they speak of another `length`, or of chunks if it is negative."""
        length = len(self.body) if length is None else length
        framing = {"Transfer-Encoding": "chunked"} if length < 0 else {"Content-Length": str(length)}
        lines = [f"{name}: {value}" for name, value in (self.headers | framing).items()]
        known = {status.value: status.phrase for status in HTTPStatus}
        return "\r\n".join([f"HTTP/1.1 {self.status} {known.get(self.status, '')}", *lines, "", ""]).encode()


def _half(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


CUTS: dict[str, tuple[Callable[[Reply], bytes], bool]] = {
    "reset": (lambda reply: b"", True),
    "close": (lambda reply: b"", False),
    "reset_headers": (lambda reply: _half(reply.head()), True),
    "close_headers": (lambda reply: _half(reply.head()), False),
    "reset_body": (lambda reply: reply.head() + _half(reply.body), True),
    "close_body": (lambda reply: reply.head() + _half(reply.body), False),
    "close_chunks": (lambda reply: reply.head(-1) + b"%x\r\n%b\r\n" % (len(reply.body), reply.body), False),
    "length_long": (lambda reply: reply.head(len(reply.body) + 100) + reply.body, False),
    "length_short": (lambda reply: reply.head(len(reply.body) // 2) + reply.body, False),
    "length_text": (lambda reply: reply.head().replace(b"Content-Length: ", b"Content-Length: about ") + reply.body, False),
    "not_http": (lambda reply: b"SSH-2.0-OpenSSH_9.6\r\n", False),
}
"""The bytes that are sent, and whether the connection is then reset or closed."""


async def whole(request: web.Request, reply: Reply) -> web.StreamResponse:
    """Everything, at once."""
    response = web.Response(status=reply.status, headers=reply.headers, body=reply.body)
    await response.prepare(request)
    await response.write_eof()
    return response


async def cut(request: web.Request, data: bytes, reset: bool) -> web.StreamResponse:
    """These bytes only, and then the end of the connection."""
    transport = request.transport
    if transport is not None:
        transport.write(data)
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.001)
        if data and reset:
            await asyncio.sleep(0.01)  # so that the client reads them first
        if reset:
            # A reset, where a socket that lingers would say goodbye.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.close()
    return web.Response()


async def slowly(request: web.Request, reply: Reply, wait_s: float, pieces: int) -> web.StreamResponse:
    """The body in so many pieces, with a wait before each."""
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    await response.prepare(request)
    size = -(-len(reply.body) // pieces)
    for start in range(0, len(reply.body), size):
        await asyncio.sleep(wait_s)
        await response.write(reply.body[start : start + size])
    await response.write_eof()
    return response


async def _never(request: web.Request, reply: Reply, wait_s: float) -> web.StreamResponse:
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.1)
    return web.Response()


async def _drip(request: web.Request, reply: Reply, wait_s: float) -> web.StreamResponse:
    return await slowly(request, Reply(reply.status, reply.headers, b" " * 300), wait_s, 300)


async def _slow(request: web.Request, reply: Reply, wait_s: float) -> web.StreamResponse:
    return await slowly(request, reply, wait_s, 10)


Send = Callable[[web.Request, Reply, float], Awaitable[web.StreamResponse]]
SENT: dict[str, Send] = {"never": _never, "drip": _drip, "slow": _slow}


async def send(request: web.Request, reply: Reply, how: str, wait_s: float) -> tuple[web.StreamResponse, bool]:
    """Sends a reply; returns the response to hand back to the server, and whether the reply was written whole."""
    with suppress(ConnectionError):  # the client is gone
        if how == "whole":
            return await whole(request, reply), True
        if how in CUTS:
            data, reset = CUTS[how]
            return await cut(request, data(reply), reset), False
        return await SENT[how](request, reply, wait_s), how == "slow"
    return web.Response(), False
