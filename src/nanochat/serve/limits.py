"""Bounds on what a client may send: ASGI middleware around the API and the page."""

import time
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from nanochat.serve.address import is_local
from nanochat.serve.api import error_response, guarded

PAGE_BYTES = 2**20  # guess: what a page sends at a click; a question of MAX_CHARACTERS is a tenth
UPLOADS = "/gradio_api/upload"
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
        app.add_middleware(LocalNames, cors=cors)


class BodyLimit:
    """413 for a body of more than `max_bytes`, before all of it is read; the page has bounds of its own."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        limit = self.max_bytes if guarded(scope["path"]) else PAGE_BYTES
        if scope["path"] == UPLOADS:  # goes to a file as it comes; Gradio bounds each
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = bytearray(), not (announced.isdigit() and int(announced) > limit)
        too_large = not more
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                too_large = True
                break
        if too_large:
            refusal = error_response(413, f"the request is larger than {limit:,} bytes", code="request_too_large")
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
        counted = guarded(scope.get("path", "")) or scope.get("path") == "/login"
        if scope["type"] == "http" and scope["method"] == "POST" and counted:
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
    """403 for what another site's page makes a browser send here: under a name that is not this machine's (DNS rebinding), or from elsewhere.

    `cors` are the origins that may.
    """

    def __init__(self, app: Any, cors: list[str]) -> None:
        self.app, self.cors = app, cors

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = dict(scope["headers"])
            host, origin = (headers.get(key, b"").decode("latin-1").lower() for key in (b"host", b"origin"))
            name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
            refused = None
            if not is_local(name):
                refused = f"this server answers to 127.0.0.1 and localhost, not to {name!r}"
            elif origin and origin not in self.cors and not is_local(urlsplit(origin).hostname or ""):
                refused = f"pages of {origin} may not use this server; cors=[{origin}] lets them"
            if refused:
                await error_response(403, refused)(scope, receive, send)
                return
        await self.app(scope, receive, send)
