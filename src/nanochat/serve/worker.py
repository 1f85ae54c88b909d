"""An engine in its own thread, whose answers arrive in the asyncio event loop that asked for them.

The thread only steps the engine. The pieces of a step are handed to the event loop in one call, so
a loop with many clients is woken once per token, not once per client.
"""

import asyncio
import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from nanochat.inference.engine import Engine
from nanochat.inference.request import Piece, Request
from nanochat.inference.sampling import Sampling
from nanochat.runtime import hardware

# guess: to all clients of an engine; 64 of them get 4 each, one gets every token
PIECES_PER_SECOND = 250

log = logging.getLogger(__name__)


class EngineFailed(RuntimeError):
    """The engine failed while answers were being written; the next request starts fresh."""


class Reply:
    """An answer on its way. Iterating it gives its pieces; leaving the iteration before the end
    cancels it."""

    def __init__(self, worker: "Worker", request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.worker, self.request, self.loop = worker, request, loop
        self.asked, self.first = time.monotonic(), 0.0  # seconds; when its first token came
        self.arrived: asyncio.Queue[list[Piece] | EngineFailed] = asyncio.Queue()
        self.over = asyncio.Event()  # all of it has arrived

    def cancel(self) -> None:
        self.worker.engine.cancel(self.request)
        self.worker.wake()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """EngineFailed if the engine fails."""
        async for pieces in self.batches():
            for piece in pieces:
                yield piece

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """The pieces since the last batch. With more clients batches are larger, because sending
        takes time too."""
        ended = 0
        try:
            while ended < len(self.request.texts):
                arrived = [await self.arrived.get()]
                while not self.arrived.empty():
                    arrived.append(self.arrived.get_nowait())
                batch: list[Piece] = []
                for pieces in arrived:
                    if isinstance(pieces, EngineFailed):
                        raise pieces
                    batch += pieces
                ended += sum(piece.finish_reason is not None for piece in batch)
                yield batch
                if ended < len(self.request.texts):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(
                            self.over.wait(), len(self.worker._replies) / PIECES_PER_SECOND
                        )
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
        """Cancel all answers and end the thread."""
        self._closing = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        self._wanted.set()

    @property
    def load(self) -> int:
        """How many texts are being generated or queued."""
        return len(self.engine.live) + self.engine.queued

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def submit(self, prompt: list[int], sampling: Sampling, num_samples: int = 1) -> Reply:
        """Ask for `num_samples` answers, from a coroutine. ValueError for a prompt that cannot be
        answered, EngineFailed after the end."""
        if self._closing:
            raise EngineFailed("the engine has stopped; restart the server")
        request = self.engine.request(prompt, sampling, num_samples)
        reply = self._replies[request] = Reply(self, request, asyncio.get_running_loop())
        self.engine.waiting.append(request)
        self.wake()
        return reply

    async def call(self, do: Callable[[], Any]) -> Any:
        """What `do` returns, run by the engine's thread between two tokens. EngineFailed for what
        is not a ValueError."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def run() -> None:
            if future.cancelled():
                return
            result: Any = None
            error: Exception | None = None
            try:
                result = do()
            except ValueError as raised:
                error = raised
            except Exception as raised:
                log.exception("%s failed", self.name)
                error = _failed(raised)
            _tell(loop, lambda: _settle(future, result, error))

        self._calls.put(run)
        self.wake()
        return await future

    def _run(self) -> None:
        why = EngineFailed("the server is stopping")
        try:
            with hardware.on(self.engine.gpt.device), self.engine.frozen():
                while not self._closing:
                    self._wanted.clear()
                    if not self._calls.empty():
                        # one between two tokens, so that neither waits for all of the other
                        self._calls.get()()
                    elif not self.engine.busy:
                        self._wanted.wait()
                    if self.engine.busy:
                        self._step()
        except Exception as error:
            log.exception("%s ended", self.name)
            why = _failed(error)
        finally:
            self._closing = True
            self._fail(why)

    def _step(self) -> None:
        try:
            self._deliver(self.engine.step())
        except Exception as error:
            log.exception("%s failed", self.name)
            self._fail(_failed(error))

    def _fail(self, error: EngineFailed) -> None:
        """Fail all pending replies, including those that arrive meanwhile."""
        while self._replies:
            self._give(self._replies.popitem()[1], error)

    def _deliver(self, pieces: list[Piece]) -> None:
        """Send the pieces of one step, each to the event loop that waits for it."""
        loops: dict[asyncio.AbstractEventLoop, dict[Reply, list[Piece]]] = {}
        for piece in pieces:
            reply = self._replies.get(piece.request)
            if reply is not None:
                loops.setdefault(reply.loop, {}).setdefault(reply, []).append(piece)
        for request in {piece.request for piece in pieces if piece.request.done}:
            self._replies.pop(request, None)
            if self.log_texts:
                answers = [completion.text for completion in request.completions]
                log.info(
                    "%s: %r -> %r", self.name, self.engine.tokenizer.decode(request.prompt), answers
                )
        for loop, arrived in loops.items():
            _tell(loop, functools.partial(_hand_out, arrived))

    def _give(self, reply: Reply, error: EngineFailed) -> None:
        def tell() -> None:
            reply.arrived.put_nowait(error)
            reply.over.set()

        _tell(reply.loop, tell)


def _hand_out(arrived: dict[Reply, list[Piece]]) -> None:
    for reply, pieces in arrived.items():
        reply.first = reply.first or time.monotonic()
        reply.arrived.put_nowait(pieces)
        if reply.request.done:
            reply.over.set()


def _failed(error: Exception) -> EngineFailed:
    return EngineFailed(f"{type(error).__name__}: {error}")


def _settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _tell(loop: asyncio.AbstractEventLoop, do: Callable[[], Any]) -> None:
    """Run `do` in `loop`, unless the loop has been closed."""
    try:
        loop.call_soon_threadsafe(do)
    except RuntimeError:
        if not loop.is_closed():
            raise
