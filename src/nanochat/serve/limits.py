"""Bounds on what a client may send: ASGI middleware around the API and the page."""

import time
from collections import OrderedDict
from typing import Any

from nanochat.serve.api import error_response, guarded

CLIENTS = 10_000  # guess: addresses remembered; the one that was quiet for longest is forgotten first


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
