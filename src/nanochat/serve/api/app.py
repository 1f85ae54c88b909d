"""OpenAI's API over a service (chat completions, completions, responses, models), and the
original's stream.

What a small model cannot do is refused by name. Beyond OpenAI's fields a request may set top_k,
min_p, repetition_penalty, min_tokens and strict. The message of an answer that called the
calculator has `parts`, which may be sent back. A last message of the assistant is continued, and
what comes back does not repeat it. max_tokens beyond the context are reduced to what fits, unless
strict=true. Sampling settings that a request leaves out are the server's.
"""

from typing import Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nanochat.inference.sampling import Sampling
from nanochat.serve.access.keys import KeyRequired, is_api
from nanochat.serve.api import chat, completions, original, responses, status, tokens
from nanochat.serve.api.context import ApiContext
from nanochat.serve.api.errors import add_error_handlers
from nanochat.serve.api.metrics import Metrics
from nanochat.serve.openai_error import error_response
from nanochat.serve.service import Service

ROUTES = (status, chat, responses, completions, tokens, original)


def build_api(service: Service, *, defaults: Sampling, api_key: str | None = None) -> FastAPI:
    """The application without a page. `defaults` is how an answer is sampled where a request does
    not say."""
    # these pages would load scripts from other hosts
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None)
    context = ApiContext(service, defaults, Metrics(service))
    add_error_handlers(app, context.metrics)
    if api_key is not None:
        app.add_middleware(KeyRequired, api_key=api_key)
    app.add_middleware(PlainPaths)  # the middleware added last runs first
    routes = [route for part in ROUTES for route in part.routes(context).routes]
    app.router.routes += routes
    # before the page, which is mounted at / and takes every other path
    for route in routes:
        assert isinstance(route, APIRoute)
        refuse = WrongMethod(route.methods or set())
        app.router.routes.append(Route(route.path, refuse, include_in_schema=False))

    @app.api_route(
        "/v1/{rest:path}",
        methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        include_in_schema=False,
    )
    async def nothing(rest: str, request: HTTPRequest) -> Response:
        return error_response(404, f"there is no {request.method} /v1/{rest} here")

    return app


class PlainPaths:
    """Ignores trailing slashes in paths of the API."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            plain = scope["path"].rstrip("/")
            if is_api(plain) or plain == "/health":
                scope = {**scope, "path": plain, "raw_path": plain.encode()}
        await self.app(scope, receive, send)


class WrongMethod:
    """Answers a request to a known path with a method that is not allowed."""

    def __init__(self, allowed: set[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"{scope['path']} does not take {scope['method']}; use {self.allowed}"
        raise HTTPException(405, message, {"Allow": self.allowed})
