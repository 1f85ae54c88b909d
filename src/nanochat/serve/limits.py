"""Bounds on what a client may send: ASGI middleware around the API and the page."""

import time
from collections import OrderedDict
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from nanochat.serve.api import error_response, guarded
from nanochat.serve.server import is_local

CLIENTS = 10_000  # guess: addresses remembered; the one that was quiet for longest is forgotten first


def guard(app: FastAPI, request_bytes: int, per_minute: int | None, cors: list[str], *, local: bool) -> None:
    """Put the limits around `app`; those that are refused are refused before anything else looks at them. ValueError for no limits."""
    if request_bytes < 1024:
        raise ValueError(f"limits.request_bytes={request_bytes} must be at least 1024")
    if per_minute is not None and per_minute < 1:
        raise ValueError(f"limits.requests_per_minute={per_minute} must be at least 1, or null for no limit")
    app.add_middleware(BodyLimit, max_bytes=request_bytes)
    if per_minute is not None:
        app.add_middleware(RateLimit, per_minute=per_minute)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=cors, allow_methods=["*"], allow_headers=["*"])
    if local:
        app.add_middleware(LocalNames)


class BodyLimit:
    """413 for a request of the API with a body of more than `max_bytes`, before all of it is read."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not guarded(scope["path"]):
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = bytearray(), not (announced.isdigit() and int(announced) > self.max_bytes)
        too_large = not more
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                too_large = True
                break
        if too_large:
            refusal = error_response(
                413, f"the request is larger than {self.max_bytes:,} bytes", code="request_too_large"
            )
            await refusal(scope, receive, send)
            return
        given = False

        async def again() -> Any:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": bytes(body), "more_body": False}
            return await receive()

        await self.app(scope, again, send)


class RateLimit:
    """429 for an address that has used up its `per_minute` requests of the API; they come back evenly over the minute."""

    def __init__(self, app: Any, per_minute: int) -> None:
        self.app, self.per_minute = app, per_minute
        self.left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> requests left, when (seconds)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and guarded(scope["path"]):
            client, now = (scope.get("client") or ("",))[0], time.monotonic()
            left, since = self.left.pop(client, (float(self.per_minute), now))
            left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
            allowed = left >= 1
            self.left[client] = (left - allowed, now)
            if len(self.left) > CLIENTS:
                self.left.popitem(last=False)
            if not allowed:
                wait = int((1 - left) * 60 / self.per_minute) + 1
                message = f"more than {self.per_minute} requests in a minute; try again in {wait} s"
                refusal = error_response(
                    429, message, "rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": str(wait)}
                )
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


class LocalNames:
    """403 for a Host that is not a name of this machine: a page elsewhere may give its own name our address (DNS rebinding)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
            if not is_local(name):
                refusal = error_response(403, f"this server answers to 127.0.0.1 and localhost, not to {name!r}")
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)
