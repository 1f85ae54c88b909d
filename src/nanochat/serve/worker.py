"""An engine in a thread of its own, and answers that arrive where they were asked for: in an asyncio event loop.

The thread does nothing but step the engine. Each step's pieces are handed to the event loop in one call, so a loop that serves many
clients is woken once per token, not once per client.
"""

import asyncio
import functools
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from nanochat.inference.engine import Engine, Piece, Request
from nanochat.inference.sampling import Sampling

log = logging.getLogger(__name__)


class EngineFailed(RuntimeError):
    """The engine could not go on with what was being written; the next request starts anew."""


class Reply:
    """An answer on its way. Iterating it gives its pieces; leaving the iteration before the end cancels it."""

    def __init__(self, worker: "Worker", request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.worker, self.request, self.loop = worker, request, loop
        self.asked, self.first = time.monotonic(), 0.0  # seconds; when its first token came
        self.arrived: asyncio.Queue[list[Piece] | EngineFailed] = asyncio.Queue()

    def cancel(self) -> None:
        self.worker.engine.cancel(self.request)
        self.worker.wake()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """EngineFailed if the engine fails."""
        ended = 0
        try:
            while ended < len(self.request.texts):
                pieces = await self.arrived.get()
                if isinstance(pieces, EngineFailed):
                    raise pieces
                self.first = self.first or time.monotonic()
                for piece in pieces:
                    ended += piece.finish_reason is not None
                    yield piece
        finally:
            if ended < len(self.request.texts):
                self.cancel()


class Worker:
    """Runs `engine` until `close`; `start` it first. Its methods may be called from any thread.

    With `log_texts` prompts and answers go to the log, nothing of them otherwise.
    """

    def __init__(self, engine: Engine, name: str = "engine", *, log_texts: bool = False) -> None:
        self.engine, self.name, self.log_texts = engine, name, log_texts
        self._replies: dict[Request, Reply] = {}
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wanted = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> "Worker":
        self._thread.start()
        return self

    def close(self) -> None:
        """End what is being written, and the thread."""
        self._closing = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        self._wanted.set()

    @property
    def load(self) -> int:
        """Texts being written or waiting."""
        return len(self.engine.live) + len(self.engine.parked) + self.engine.queued

    def submit(self, prompt: list[int], sampling: Sampling, num_samples: int = 1) -> Reply:
        """Ask for `num_samples` answers, from a coroutine. ValueError for a prompt that cannot be answered."""
        request = self.engine.request(prompt, sampling, num_samples)
        reply = self._replies[request] = Reply(self, request, asyncio.get_running_loop())
        self.engine.waiting.append(request)
        self.wake()
        return reply

    async def call(self, do: Callable[[], Any]) -> Any:
        """What `do` returns, run by the engine's thread between two tokens."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def run() -> None:
            try:
                result, error = do(), None
            except Exception as raised:
                result, error = None, raised
            _tell(loop, lambda: _settle(future, result, error))

        self._calls.put(run)
        self.wake()
        return await future

    def _run(self) -> None:
        with self.engine.frozen():
            while not self._closing:
                self._wanted.clear()
                while not self._calls.empty():
                    self._calls.get()()
                if not self.engine.busy:
                    self._wanted.wait()
                    continue
                try:
                    self._deliver(self.engine.step())
                except Exception as error:
                    log.exception("%s failed", self.name)
                    failed = EngineFailed(f"{type(error).__name__}: {error}")
                    for reply in list(self._replies.values()):
                        self._give(reply, failed)
                    self._replies.clear()
            for reply in list(self._replies.values()):
                self._give(reply, EngineFailed("the server is stopping"))

    def _deliver(self, pieces: list[Piece]) -> None:
        """Pieces of one step, each to the event loop that waits for it."""
        loops: dict[asyncio.AbstractEventLoop, dict[Reply, list[Piece]]] = {}
        for piece in pieces:
            reply = self._replies.get(piece.request)
            if reply is not None:
                loops.setdefault(reply.loop, {}).setdefault(reply, []).append(piece)
        for request in {piece.request for piece in pieces if piece.request.done}:
            self._replies.pop(request, None)
            if self.log_texts:
                answers = [completion.text for completion in request.completions]
                log.info("%s: %r -> %r", self.name, self.engine.tokenizer.decode(request.prompt), answers)
        for loop, arrived in loops.items():
            _tell(loop, functools.partial(_hand_out, arrived))

    def _give(self, reply: Reply, error: EngineFailed) -> None:
        _tell(reply.loop, lambda: reply.arrived.put_nowait(error))


def _hand_out(arrived: dict[Reply, list[Piece]]) -> None:
    for reply, pieces in arrived.items():
        reply.arrived.put_nowait(pieces)


def _settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _tell(loop: asyncio.AbstractEventLoop, do: Callable[[], Any]) -> None:
    """Run `do` in `loop`; a loop that is gone has nobody left who waits."""
    try:
        loop.call_soon_threadsafe(do)
    except RuntimeError:
        if not loop.is_closed():
            raise
