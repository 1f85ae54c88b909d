"""The key of the API: which paths need it, and what is refused without it."""

import hmac
from typing import Any

from nanochat.serve.access.address import canonical
from nanochat.serve.openai_error import error_response

# besides /v1/…; /health needs no key
KEYED_PATHS = (
    "/chat/completions",
    "/stats",
    "/metrics",
    "/openapi.json",
    "/tokenizer_info",
    "/tokenize",
    "/detokenize",
)


def is_api(path: str) -> bool:
    """Whether a path, in any spelling, belongs to the API and needs the key."""
    path = canonical(path)
    return path == "/v1" or path.startswith("/v1/") or path in KEYED_PATHS


class KeyRequired:
    """Refuses requests to the API without `Authorization: Bearer KEY`; the page has its own
    login."""

    def __init__(self, app: Any, api_key: str) -> None:
        self.app, self.expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and is_api(scope["path"]):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                refusal = error_response(
                    401,
                    "the key is missing or wrong; send the header Authorization: Bearer KEY",
                    "authentication_error",
                    code="invalid_api_key",
                )
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)
