"""Which web pages a browser may let use this server: its own, and those of `cors=`."""

from typing import Any
from urllib.parse import urlsplit

from nanochat.serve.access.address import is_local
from nanochat.serve.openai_error import error_response

PORTS = {"http": 80, "https": 443}


class Origins:
    """403 for what a foreign page makes a browser send here, on any route, with or without a key.

    With `local`, also for a Host that is not this machine (DNS rebinding). A request without an
    Origin comes from a program or a followed link, whose response the linking page cannot read.
    """

    def __init__(self, app: Any, cors: list[str], *, local: bool) -> None:
        self.app = app
        self.cors = [origin.lower().rstrip("/") for origin in cors]
        self.local = local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and (refused := self.refused(scope["headers"])):
            await error_response(403, refused)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def refused(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        """The reason, or None."""
        hosts, origins = (
            [value.decode("latin-1").lower() for key, value in headers if key == name]
            for name in (b"host", b"origin")
        )
        if len(hosts) > 1 or len(origins) > 1:
            return "a request has one Host and one Origin"
        host = _host(f"//{hosts[0]}") if hosts else None
        if self.local and (host is None or not is_local(host[0])):
            return f"this server answers to 127.0.0.1 and localhost, not to {(hosts or [''])[0]!r}"
        for origin in origins:
            if "*" in self.cors or origin in self.cors:
                continue
            if host is None or _host(origin) != (
                host[0],
                host[1] or PORTS.get(urlsplit(origin).scheme),
            ):
                return f"pages of {origin} may not use this server; cors=[{origin}] lets them"
        return None


def _host(address: str) -> tuple[str, int | None] | None:
    """(name, port) of an address; None for what is none, as the Origin "null"."""
    try:
        parts = urlsplit(address)
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (
        (parts.hostname, port) if parts.hostname and not parts.username and not parts.path else None
    )
