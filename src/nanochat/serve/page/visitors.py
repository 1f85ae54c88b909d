"""A browser may use only its own sessions, events and files of the page's server.

Gradio trusts anyone who knows a path, or the name of a session or of an event. Here each of them
belongs to a visitor, identified by a random cookie:

- only the routes that the page uses exist, spelled in one way;
- a session (`session_hash`) belongs to the visitor that used it first: nobody else starts, cancels
  or reads anything in it;
- an event may name only files that the same visitor uploaded, by exactly the path that the upload
  returned: no address, no other spelling of a path. Only such files can be downloaded.

`Sealed` is a second barrier, inside Gradio: its own check of inputs is switched on, and no value
that a handler returns may name a file.
"""

import json
import os
import re
import secrets
import tempfile
from collections import OrderedDict
from functools import cache
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from nanochat.serve.access.limits import Unread, given_again, read_body
from nanochat.serve.openai_error import error_response

COOKIE = "nanochat_visitor"
ID = re.compile(r"[A-Za-z0-9_-]{32}")
# guess: sessions, events and uploads; the one not used for longest is forgotten, and then refused
REMEMBERED = 100_000
PAGE_BYTES = 2**20  # guess: what a page sends at a click; a question of MAX_CHARACTERS is a tenth
REPLY_BYTES = 2**20  # guess: of an answer that names uploads
API = "/gradio_api"
# what the page loads and posts; Gradio's other routes (proxy, streams, recordings, monitoring …)
# answer 404
READ = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/robots.txt",
    "/manifest.json",
    "/logout",
    f"{API}/info",
    f"{API}/theme.css",
    f"{API}/startup-events",
    f"{API}/upload_progress",
    f"{API}/login_check",
)
READ_BELOW = ("/assets/", "/static/", "/svelte/")
FILE, HEARTBEAT, EVENTS = f"{API}/file=", f"{API}/heartbeat/", f"{API}/queue/data"
UPLOAD = f"{API}/upload"
JOIN = f"{API}/queue/join"
CANCEL = f"{API}/cancel"
RESET = f"{API}/reset"
LOGIN = "/login"
CALLS = re.compile(rf"{API}/(run|api)/[^/]+/?")  # of events without a queue
OPEN = (
    "/",
    "/login",
    "/theme.css",
    "/favicon.ico",
    "/robots.txt",
    "/manifest.json",
    f"{API}/theme.css",
    f"{API}/login_check",
)


@cache
def private_folder() -> tempfile.TemporaryDirectory[str]:
    """Where this process keeps uploads: closed to other users of the machine, removed when the
    process ends."""
    folder = tempfile.TemporaryDirectory(prefix="nanochat-uploads-")  # mode 0700
    # read by every component as it is made, and at every check
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    return folder


def names_files(value: Any) -> list[dict[str, Any]]:
    """Every dict in `value`, however deep, that Gradio could take for a file."""
    found, left = [], [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            meta = item.get("meta")
            if "path" in item or (isinstance(meta, dict) and "_type" in meta):
                found.append(item)
            left.extend(item.values())
        elif isinstance(item, list | tuple):
            left.extend(item)
    return found


class Sealed(gr.Blocks):
    """Blocks that accept only uploaded files, and give no files away."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        private_folder()
        super().__init__(*args, **kwargs)
        # what a mounted application never is: without it Gradio does not check the paths in an
        # input
        self.has_launched = True

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any
    ) -> Any:
        for file in names_files(inputs):
            # which Gradio would fetch
            if not isinstance(file.get("path"), str) or "://" in file["path"]:
                raise gr.Error("only a file that was uploaded can be used")
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)

    async def postprocess_data(
        self, block_fn: Any, predictions: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if names_files(predictions):
            raise gr.Error("the page gives no files away")
        return await super().postprocess_data(block_fn, predictions, *args, **kwargs)


class Refusal(Exception):
    """(status, message)"""


class Visitors:
    """ASGI around Gradio's application. With a password, nothing of a body is read before the
    login."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.owners: OrderedDict[tuple[str, str], str] = OrderedDict()  # (kind, name) -> visitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page has no websocket; the server closes it
        cookies = _cookies(scope)
        given = cookies.get(COOKIE, "")
        visitor = given if ID.fullmatch(given) else secrets.token_urlsafe(24)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and visitor != given:
                MutableHeaders(scope=message).append(
                    "Set-Cookie", f"{COOKIE}={visitor}; Path=/; HttpOnly; SameSite=Lax"
                )
            await send(message)

        try:
            await self.pass_on(scope, receive, answer, visitor, cookies)
        except (Refusal, Unread) as refusal:
            status, message = refusal.args
            await error_response(status, message)(scope, receive, answer)

    async def pass_on(
        self, scope: Scope, receive: Receive, send: Send, visitor: str, cookies: dict[str, str]
    ) -> None:
        path, method = scope["path"], scope["method"]
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if self.app.auth is not None and path not in OPEN and not path.startswith(READ_BELOW):
            tokens = (
                cookies.get(f"access-token{kind}-{self.app.cookie_id}")
                for kind in ("", "-unsecure")
            )
            if not any(token in self.app.tokens for token in tokens):
                raise Refusal(401, "log in first")
        if method in ("GET", "HEAD"):
            if path.startswith(HEARTBEAT):
                self.owned("session", path.removeprefix(HEARTBEAT), visitor, begins=True)
            elif path == EVENTS:
                self.owned("session", _only(query, "session_hash"), visitor)
            elif path.startswith(FILE):
                self.owned("file", path.removeprefix(FILE), visitor)
            elif path not in READ and not path.startswith(READ_BELOW):
                raise Refusal(404, f"there is no {path} here")
            await self.app(scope, receive, send)
        elif method == "POST" and path == LOGIN:
            await self.app(scope, receive, send)
        elif method == "POST" and path == UPLOAD:
            await self.app(_plain(scope), receive, self.kept(send, visitor, "file"))
        elif method == "POST" and (path in (JOIN, CANCEL, RESET) or CALLS.fullmatch(path)):
            body = _object(await read_body(scope, receive, PAGE_BYTES))
            if path != RESET:
                self.owned(
                    "session", body.get("session_hash"), visitor, begins=path not in (CANCEL,)
                )
            if event := body.get("event_id"):
                self.owned("event", event, visitor)
            for file in names_files([body.get("data"), body.get("event_data")]):
                self.owned("file", file.get("path"), visitor)
                url = file.get("url")
                if url and not (
                    isinstance(url, str)
                    and url.endswith(f"{FILE}{file['path']}")
                    and _same(url, scope)
                ):
                    raise Refusal(403, "a file that was uploaded has the address that it was given")
            known = self.kept(send, visitor, "event") if path == JOIN else send
            # as it was understood here, not as another parser might
            checked = json.dumps(body).encode()
            await self.app(
                _of_length(_plain(scope), len(checked)), given_again(checked, receive), known
            )
        else:
            raise Refusal(404, f"there is no {method} {path} here")

    def owned(self, kind: str, name: Any, visitor: str, *, begins: bool = False) -> None:
        """Refusal unless `name` is the visitor's; with `begins` it becomes so if it is nobody's
        yet."""
        if not isinstance(name, str) or not name:
            raise Refusal(400, f"a {kind} must be named by a text")
        owner = self.owners.get((kind, name))
        if owner is None and begins:
            self.own(kind, name, visitor)
        elif owner is None or not secrets.compare_digest(owner, visitor):
            raise Refusal(
                403, f"this {kind} is not yours, or not there any more; load the page again"
            )
        else:
            self.owners.move_to_end((kind, name))

    def own(self, kind: str, name: str, visitor: str) -> None:
        self.owners[kind, name] = visitor
        if len(self.owners) > REMEMBERED:
            self.owners.popitem(last=False)

    def kept(self, send: Send, visitor: str, kind: str) -> Send:
        """`send` that also notes whose the files or the event are that an answer names, before it
        is sent."""
        held: list[Message] = []

        async def answer(message: Message) -> None:
            held.append(message)
            body = b"".join(part.get("body", b"") for part in held)
            if len(body) > REPLY_BYTES:
                raise ValueError("an answer that names uploads is too long")
            if message["type"] != "http.response.body" or message.get("more_body"):
                return
            if held[0]["status"] == 200:
                named = json.loads(body)
                for name in named if kind == "file" else [named["event_id"]]:
                    self.own(kind, name, visitor)
            for part in held:
                await send(part)
            held.clear()

        return answer


def _cookies(scope: Scope) -> dict[str, str]:
    cookies: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                cookies |= {
                    key: morsel.value
                    for key, morsel in SimpleCookie(value.decode("latin-1")).items()
                }
            except CookieError:
                continue
    return cookies


def _only(query: dict[str, list[str]], key: str) -> str:
    if len(query.get(key, [])) != 1:
        raise Refusal(400, f"give {key} once")
    return query[key][0]


def _same(url: str, scope: Scope) -> bool:
    """Whether an address is of this server."""
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return url.startswith(("/", f"http://{host}/", f"https://{host}/")) and not url.startswith("//")


def _plain(scope: Scope) -> Scope:
    """The request of a client that takes nothing compressed, so that the answer can be read
    here."""
    return {
        **scope,
        "headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"],
    }


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is not a JSON object")
    return value


def _of_length(scope: Scope, length: int) -> Scope:
    headers = [
        pair
        for pair in scope["headers"]
        if pair[0] not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def only_for_visitors(app: Any) -> None:
    """Put `Visitors` around the application that was mounted last."""
    app.routes[-1].app = Visitors(app.routes[-1].app)
