"""Bounds on connections, below HTTP.

With httptools, uvicorn bounds neither the length of a header, nor the time a request takes to
arrive, nor the number of requests. A request is unfinished until its last byte has arrived; a new
connection counts as one. Their number is bounded per address and in all: the oldest gives way to a
new one, so that clients that keep theirs open keep nobody out.
"""

import asyncio
import time
from collections import OrderedDict
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# from: h11's own bound, https://h11.readthedocs.io/en/latest/api.html; nginx and Apache have 8 KiB
# to a header
HEAD_BYTES = 2**16
HEAD_SECONDS = 20.0  # from: Apache's mod_reqtimeout, header=20-40
BODY_SECONDS = 20.0  # from: Apache's mod_reqtimeout, body=20,MinRate=500
BODY_RATE = 500.0  # bytes/s, from: the same
FRAMING = 8  # bytes of a chunked body to one of its content: "1\r\nx\r\n" has 6
LINGER_SECONDS = 2.0  # guess: for the rest of a body that was refused already
LINGER_BYTES = 2**20  # guess: of it
# guess: requests sent before the answer to the one before; browsers and the usual clients send none
PIPELINED = 16
SEND_SECONDS = 60.0  # from: nginx's send_timeout; a client that reads nothing for so long is gone
PER_ADDRESS = 64  # guess: unfinished; a browser opens 6
UNFINISHED = 256  # guess: in all
GRACE_SECONDS = 2.0  # guess: as old an unfinished request must be before it gives way
# guess: in all, with those that answers go to; 1,024 files is a usual limit of a process
CONNECTIONS = 1000
SWEEP_SECONDS = 0.5

REPLIES = {
    408: b"HTTP/1.1 408 Request Timeout",
    431: b"HTTP/1.1 431 Request Header Fields Too Large",
    503: b"HTTP/1.1 503 Service Unavailable",
}


class Unfinished:
    """The requests of a server that have not come as a whole yet."""

    def __init__(
        self,
        *,
        head_seconds: float = HEAD_SECONDS,
        body_seconds: float = BODY_SECONDS,
        per_address: int = PER_ADDRESS,
        in_all: int = UNFINISHED,
        grace_seconds: float = GRACE_SECONDS,
        connections: int = CONNECTIONS,
        send_seconds: float = SEND_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self.head_seconds = head_seconds
        self.body_seconds = body_seconds
        self.send_seconds = send_seconds
        self.per_address, self.in_all, self.connections = per_address, in_all, connections
        self.grace_seconds, self.linger_seconds = grace_seconds, linger_seconds
        self.all: OrderedDict[Bounded, None] = OrderedDict()  # the oldest first
        self.of: dict[str, OrderedDict[Bounded, None]] = {}  # by address
        self.sweeping = False

    def add(self, protocol: "Bounded") -> None:
        self.all[protocol] = None
        self.of.setdefault(protocol.address, OrderedDict())[protocol] = None
        self.make_room(protocol.address)
        if not self.sweeping:
            self.sweeping = True
            protocol.loop.call_later(SWEEP_SECONDS, self.sweep, protocol.loop)

    def remove(self, protocol: "Bounded") -> None:
        if self.all.pop(protocol, protocol) is None:
            own = self.of[protocol.address]
            del own[protocol]
            if not own:
                del self.of[protocol.address]

    def make_room(self, address: str) -> None:
        own: OrderedDict[Bounded, None] = self.of.get(address, OrderedDict())
        for those, most in ((own, self.per_address), (self.all, self.in_all)):
            while len(those) > most:
                oldest = next(iter(those))
                if time.monotonic() - oldest.since < self.grace_seconds:
                    break
                oldest.end(503)

    def sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        for protocol in [protocol for protocol in self.all if protocol.until() < now]:
            protocol.end(408)
        for address in list(self.of):
            self.make_room(address)
        self.sweeping = bool(self.all)
        if self.all:
            loop.call_later(SWEEP_SECONDS, self.sweep, loop)


class Bounded(HttpToolsProtocol):
    """uvicorn's protocol, which gives up on a request that does not come."""

    def __init__(self, unfinished: Unfinished, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unfinished, self.address = unfinished, ""
        self.since = time.monotonic()  # of the first byte of a request, or the connection
        # is in its head; bytes of the request, and of its body
        self.head, self.came, self.content = (True, 0, 0)
        self.refused_at: float | None = None  # answered before all of it came
        self.content_then = 0  # bytes of its body when it was
        self.writing: asyncio.TimerHandle | None = None

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if len(self.connections) > self.unfinished.connections:
            self.end(503)
        else:
            self.unfinished.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.unfinished.remove(self)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self not in self.unfinished.all and (self.cycle is None or self.cycle.response_complete):
            self.begin()  # before the first byte is looked at: empty lines go before a request
        self.came += len(data)
        super().data_received(data)
        if self.refused_at is not None and self.content > self.content_then + LINGER_BYTES:
            self.end(408)
        elif self in self.unfinished.all and self.came - FRAMING * self.content > HEAD_BYTES:
            self.end(431)

    def until(self) -> float:
        """When it is given up, as time.monotonic() counts."""
        if self.refused_at is not None:
            return self.refused_at + self.unfinished.linger_seconds
        allowed = (
            self.unfinished.head_seconds
            if self.head
            else self.unfinished.body_seconds + self.content / BODY_RATE
        )
        return self.since + allowed

    def end(self, status: int) -> None:
        """Give up, with a word if none was said."""
        self.unfinished.remove(self)
        if self.transport.is_closing():
            return
        cycle = self.cycle
        answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if self.refused_at is None and not answering:
            self.transport.write(
                REPLIES[status] + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
        self.transport.close()
        if self.transport.get_write_buffer_size():  # it does not read either
            self.loop.call_later(self.unfinished.linger_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.writing = self.loop.call_later(self.unfinished.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.writing is not None:
            self.writing.cancel()
            self.writing = None

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            super().send_400_response(msg)
        else:  # not into an answer
            self.transport.close()

    # --- a request ---

    def begin(self) -> None:
        self.since, self.came, self.content = time.monotonic(), 0, 0
        self.head, self.refused_at = True, None
        self.unfinished.add(self)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            # httptools stops; see send_400_response
            raise ValueError("too many requests before an answer")
        super().on_message_begin()
        if self not in self.unfinished.all:  # one of several in what came
            self.begin()

    def on_headers_complete(self) -> None:
        self.head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.content += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.unfinished.remove(self)
        self.came = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self in self.unfinished.all and not self.head:
            self.refused_at, self.content_then = time.monotonic(), self.content
        super().on_response_complete()


def http_protocol(**limits: Any) -> Any:
    """For uvicorn's `http`."""
    return partial(Bounded, Unfinished(**limits))
