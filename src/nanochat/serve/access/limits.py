"""Bounds on what a client may send, as ASGI middleware around the API and the page.

Bounds below HTTP are in `connections`.
"""

import time
from collections import OrderedDict
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from nanochat.serve.access.address import canonical
from nanochat.serve.access.keys import KeyRequired, is_api
from nanochat.serve.access.origins import Origins
from nanochat.serve.openai_error import error_response

LOGIN_BYTES = 2**13  # guess: a name and a password
HELD_BYTES = 2**26  # guess: of all bodies that are being read
LOGIN = "/login"
# guess: addresses remembered; the one that was quiet for longest is forgotten first
CLIENTS = 10_000
# guess: keys and passwords that an address may guess; a person mistypes a few
WRONG_PER_MINUTE = 30


def add_limits(
    app: FastAPI, request_bytes: int, per_minute: int | None, cors: list[str], *, local: bool
) -> None:
    """Put the limits around `app`, so that refusals come before anything else is read.

    From the outside in: which pages may ask at all (`Origins`), how often, with which key; only
    then is a body read. ValueError for bounds that make no sense.
    """
    if request_bytes < 1024:
        raise ValueError(f"limits.request_bytes={request_bytes} must be at least 1024")
    if per_minute is not None and per_minute < 1:
        raise ValueError(
            f"limits.requests_per_minute={per_minute} must be at least 1, or null for no limit"
        )
    app.add_middleware(BodyLimit, max_bytes=request_bytes)
    if keys := [middleware for middleware in app.user_middleware if middleware.cls is KeyRequired]:
        app.user_middleware = [
            *keys,
            *(other for other in app.user_middleware if other not in keys),
        ]
        app.add_middleware(WrongKeys)
    if per_minute is not None:
        app.add_middleware(RateLimit, per_minute=per_minute)
    if cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=cors, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Origins, cors=cors, local=local)


class Unread(Exception):
    """(status, message) of a body that is not read to its end."""


class _BytesHeld:
    bytes = 0  # of the bodies that are being read now


async def read_body(scope: Any, receive: Any, limit: int) -> bytes:
    """A body of at most `limit` bytes. Unread for a longer one, before all of it came, and where
    too much is being read already."""
    body, more, too_large = bytearray(), True, (413, f"the request is larger than {limit:,} bytes")
    try:
        announced = int(dict(scope["headers"]).get(b"content-length", b"0"))
    except ValueError:  # no number, or one of more digits than Python reads
        raise Unread(400, "Content-Length is not a number of bytes") from None
    if announced > limit:
        raise Unread(*too_large)
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Unread(400, "the request ended early")
            body += message.get("body", b"")
            _BytesHeld.bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
            if len(body) > limit:
                raise Unread(*too_large)
            if more and _BytesHeld.bytes > HELD_BYTES:
                raise Unread(503, "too many requests are being read; try again")
    finally:
        _BytesHeld.bytes -= len(body)
    return bytes(body)


def given_again(body: bytes, receive: Any) -> Any:
    """`receive` for a request whose body was read."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class BodyLimit:
    """413 for a body of the API, or a login, of more than `max_bytes`; the page has bounds of its
    own (`visitors`)."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = canonical(scope["path"]) if scope["type"] == "http" else ""
        if not is_api(path) and path != LOGIN:
            await self.app(scope, receive, send)
            return
        keys = {key for key, _ in scope["headers"]}
        if b"content-length" in keys or b"transfer-encoding" in keys:
            try:
                body = await read_body(
                    scope, receive, LOGIN_BYTES if path == LOGIN else self.max_bytes
                )
            except Unread as unread:
                status, message = unread.args
                code = "request_too_large" if status == 413 else None
                await error_response(status, message, code=code)(scope, receive, send)
                return
            receive = given_again(body, receive)
        await self.app(scope, receive, send)


class Budget:
    """A number of times per minute for each address, refilled evenly."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        # address -> left, when (seconds)
        self.left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, number: int = 1) -> int:
        """Take so many (0: only look); 0, or the seconds until there is one again, and then none
        was taken."""
        now = time.monotonic()
        left, since = self.left.pop(address, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        allowed = left >= 1
        self.left[address] = (left - number * allowed, now)
        if len(self.left) > CLIENTS:
            self.left.popitem(last=False)
        return 0 if allowed else int((1 - left) * 60 / self.per_minute) + 1


def _address(scope: Any) -> str:
    return (scope.get("client") or ("",))[0]


def _too_many(what: str, wait: int) -> Any:
    return error_response(
        429,
        f"more than {what} in a minute; try again in {wait} s",
        "rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(wait)},
    )


class RateLimit:
    """429 for an address that has used up its `per_minute` requests of the API; they come back
    evenly over the minute."""

    def __init__(self, app: Any, per_minute: int) -> None:
        self.app, self.budget = app, Budget(per_minute)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path = canonical(scope["path"])
            if (is_api(path) or path == LOGIN) and (wait := self.budget.take(_address(scope))):
                await _too_many(f"{self.budget.per_minute} requests", wait)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class WrongKeys:
    """429 for an address with too many wrong keys; then a right one is not accepted either."""

    def __init__(self, app: Any) -> None:
        self.app, self.budget = app, Budget(WRONG_PER_MINUTE)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, address = canonical(scope["path"]), _address(scope)
        login = path == LOGIN and scope["method"] == "POST"
        if not login and not is_api(path):
            await self.app(scope, receive, send)
            return
        if wait := self.budget.take(address, 0):
            await _too_many(f"{WRONG_PER_MINUTE} wrong keys", wait)(scope, receive, send)
            return

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] in (
                (400, 401, 422) if login else (401,)
            ):
                self.budget.take(address)
            await send(message)

        await self.app(scope, receive, watched)
