"""Exceptions as one line in OpenAI's format."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from nanochat.inference.request import TooLong
from nanochat.serve.api.metrics import Metrics
from nanochat.serve.openai_error import error_response
from nanochat.serve.service import Busy, UnknownModel
from nanochat.serve.worker import EngineFailed

# words of pydantic's location of an error that name no field, like "list[int]" and
# "function-after[…]"
NOT_FIELDS = ("body", "str", "int")
NOT_A_FIELD = re.compile(r"[^\w]")
# declared by the routes in /openapi.json
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request cannot be fulfilled"},
    401: {"description": "the key is missing or wrong"},
    404: {"description": "no such model"},
    413: {"description": "the request is too large"},
    422: {"description": "never: an invalid request gets 400"},
    429: {
        "description": "the queue is full, or too many requests; Retry-After says when to try again"
    },
    500: {"description": "the engine failed"},
}


def validation_error(error: RequestValidationError) -> Response:
    """Of the errors of a field with several possible types, the one of the closest type."""
    errors = error.errors()
    first = max(errors, key=lambda one: (one["loc"][:2] == errors[0]["loc"][:2], len(one["loc"])))
    fields = [
        word
        for word in map(str, first["loc"])
        if word not in NOT_FIELDS and not NOT_A_FIELD.search(word)
    ]
    where, message = ".".join(fields), str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "not a field of this request"
    elif first["type"] == "json_invalid":
        where, message = "", f"the body is not JSON: {first.get('ctx', {}).get('error', message)}"
    return error_response(400, f"{where}: {message}" if where else message, param=where or None)


def value_error(error: ValueError) -> Response:
    code = "context_length_exceeded" if isinstance(error, TooLong) else None
    return error_response(400, str(error), code=code)


def queue_full(error: Busy) -> Response:
    headers = {"Retry-After": str(error.retry_after)}
    return error_response(429, str(error), "rate_limit_error", code="queue_full", headers=headers)


def http_error(error: HTTPException) -> Response:
    headers = dict(error.headers) if error.headers else None
    return error_response(error.status_code, str(error.detail), headers=headers)


HANDLERS: dict[type[Exception], Callable[[Any], Response]] = {
    RequestValidationError: validation_error,
    UnknownModel: lambda error: error_response(
        404, str(error), param="model", code="model_not_found"
    ),
    ValueError: value_error,
    Busy: queue_full,
    EngineFailed: lambda error: error_response(500, str(error), "server_error"),
    HTTPException: http_error,
    Exception: lambda error: error_response(
        500, f"{type(error).__name__}; the server's log says more", "server_error"
    ),
}


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Answer every exception with one of `HANDLERS`, and count it."""

    def counted(
        handle: Callable[[Any], Response],
    ) -> Callable[[HTTPRequest, Exception], Awaitable[Response]]:
        async def answer(request: HTTPRequest, error: Exception) -> Response:
            response = handle(error)
            metrics.refused[response.status_code] += 1
            return response

        return answer

    for kind, handle in HANDLERS.items():
        app.add_exception_handler(kind, counted(handle))
