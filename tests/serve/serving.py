"""A real server around tiny networks, for tests."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from tiny_networks import TOKENIZER

from nanochat.gpt import GPT
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.serve.access.address import listen
from nanochat.serve.api.app import build_api
from nanochat.serve.server import url_of
from nanochat.serve.service import ServedModel, Service
from nanochat.serve.worker import Worker


def served(
    name: str, gpt: GPT, *, phase: str = "sft", max_rows: int = 4, engines: int = 1, **settings: Any
) -> ServedModel:
    """A model of `gpt` over the tokenizer of bytes."""
    workers = [
        Worker(Engine(gpt, TOKENIZER, max_rows=max_rows, **settings), f"{name}/{n}")
        for n in range(engines)
    ]
    return ServedModel(name, Path(name), phase, TOKENIZER, workers)


class Slow:
    """Mixed into a network: a step takes `seconds` longer."""

    seconds = 0.0

    def logits(self, hidden: Any) -> Any:
        time.sleep(self.seconds)
        return super().logits(hidden)  # type: ignore[misc]


@contextlib.contextmanager
def server(
    *models: ServedModel,
    max_queue: int = 128,
    defaults: Sampling | None = None,
    wrap: Any = None,
    **api: Any,
) -> Iterator[tuple[str, Service]]:
    """Serve `models`; the address and the service. `wrap(app, service)` may add to the
    application."""
    service = Service(list(models), max_queue=max_queue)
    app = build_api(service, defaults=defaults or Sampling(max_tokens=16), **api)
    if wrap is not None:
        app = wrap(app, service) or app
    bound = listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: running.run(sockets=[bound]), daemon=True)
    service.start()
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield url_of(bound), service
    finally:
        running.should_exit = True
        thread.join()
        service.close()
        bound.close()


def wait_until(true: Any, seconds: float = 10.0) -> bool:
    """Whether `true()` became so in time."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
