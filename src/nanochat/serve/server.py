"""The process that serves an application."""

import gc
import socket

import uvicorn
from fastapi import FastAPI

from nanochat.serve.access.connections import http_protocol
from nanochat.serve.service import Service

SHUTDOWN_SECONDS = 3  # guess: answers under way have this long after Ctrl-C


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, service: Service, bound: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM."""
    config = uvicorn.Config(
        app,
        http=http_protocol(),
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    service.start()
    bound.listen()  # who comes now waits a moment
    for model in service.models.values():
        engine = model.workers[0].engine
        sizes = f"{engine.gpt.config.n_layer} layers, context {model.context:,}"
        device = f"{len(model.workers)} x " * (len(model.workers) > 1) + str(engine.gpt.device)
        print(
            f"model {model.name}: {model.phase or 'unknown phase'}, {sizes}, {device}, {model.path}"
        )
    print(
        (
            f"page and API: {url_of(bound)} (OpenAI clients: base_url={url_of(bound)}/v1); Ctrl-C "
            "ends it"
        ),
        flush=True,
    )
    gc.collect()
    # what the libraries hold is never garbage, and looking through it stopped everything for 0.2 s
    # at a time
    gc.freeze()
    try:
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        service.close()
