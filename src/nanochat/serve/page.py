"""The page in the browser: conversations with the checkpoints being served, made of Gradio's own components.

What is true lies in the store; the browser holds the id and the revision of the conversation that it shows, in components that nobody
sees. So a page that stayed open goes on after the server was restarted, and two tabs with the same conversation cannot overwrite each
other: the second one is told and shows it anew. Answers are written by `Turn`s, which a page watches: they go on where it looks at another
conversation and end where it is closed.

Nothing is fetched from elsewhere: fonts are the system's, and a Content-Security-Policy forbids the browser what a model may write, an
image of another server too. A conversation belongs to the browser that made it (`private`), by an id in its local storage; whoever knows a
file of the store knows them all.
"""

import asyncio
import hmac
import os
import random
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import fastapi
import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.inference.sampling import Sampling
from nanochat.serve.service import WEB_CHAT, Busy, Model, Service
from nanochat.serve.store import TITLE_LENGTH, Changed, Conversation, Store, new_id
from nanochat.serve.turn import NOTHING, UPDATES_PER_SECOND, Turn, numbers
from nanochat.serve.visitors import Sealed, only_for_visitors

SEEDS = 2**31  # a random seed is below
MOST_COLUMNS = 4  # guess: more are too narrow to read
UPLOAD_BYTES = 2**25  # guess: of an import
QUEUE_SECONDS = 0.02  # guess: between two looks for a click; gradio's 0.001 takes 4 % of a core for nothing (measured)
# single dollars are prices more often than formulas: GSM8K is full of them
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
CSS = (Path(__file__).parent / "page.css").read_text()

ID_IN_ADDRESS = """(opened) => {
    const url = new URL(window.location);
    if (opened && opened.id) url.searchParams.set("conversation", opened.id); else url.searchParams.delete("conversation");
    window.history.replaceState(window.history.state, "", url);
}"""
ON_ARRIVAL = """(owner) => {
    const id = new URL(window.location).searchParams.get("conversation") || "";
    return [owner, {id, wide: window.innerWidth > 1000}];
}"""
SAVE_FILE = """(text) => {
    if (!text) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "conversations.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
# not on a phone, where it would open the keyboard
TO_THE_BOX = """() => { if (window.innerWidth > 1000) setTimeout(() => document.querySelector("#box textarea")?.focus(), 50); }"""
AWAY_ON_A_PHONE = """() => {
    if (window.innerWidth <= 768) document.querySelector("#sidebar.open .toggle-button")?.click();
}"""
ASK_FIRST = """(opened, owner) => [window.confirm("Delete this conversation?") ? opened : null, owner]"""


Shown = AsyncIterator[Sequence[Any]]  # values for the outputs of a handler, again and again


class Refused(ValueError):
    """What was asked for cannot be done now; the message says why."""


def mount_page(
    app: fastapi.FastAPI, service: Service, store: Store, *, password: str | None = None, **options: Any
) -> None:
    """The page at / of `app`, whose own routes come first if they were added before. `options` are those of `build_page`.

    With a `password` one has to log in, under any name.
    """
    expected = None if password is None else password.encode()
    gr.mount_gradio_app(
        app,
        build_page(service, store, **options),
        path="/",
        auth=None if expected is None else lambda _, given: hmac.compare_digest(given.encode(), expected),
        auth_message=None if expected is None else "Any name; the password is the server's api_key.",
        footer_links=[],
        run_history=False,  # it would keep a copy of every call in the browser
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=UPLOAD_BYTES,
        theme=gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO).set(
            block_title_background_fill="none",
            block_title_background_fill_dark="none",
            block_title_padding="0",
            block_title_text_color="*body_text_color",
            block_title_text_weight="500",
        ),
        css=CSS,
        app_kwargs={"middleware": [Middleware(StaysHere)], "docs_url": None, "redoc_url": None},
    )
    only_for_visitors(app)


def build_page(
    service: Service, store: Store, *, compare: bool = False, private: bool = True, defaults: Sampling = WEB_CHAT
) -> gr.Blocks:
    """The page for `mount_page`. With `compare`, a column for each of 2 to 4 checkpoints, and nothing is kept.

    `private`: a browser sees the conversations that it made. Without, all browsers see all: for one person with several. ValueError
    if there is the wrong number of checkpoints to compare.
    """
    if compare and not 2 <= len(service.models) <= MOST_COLUMNS:
        raise ValueError(
            f"compare=true with {len(service.models)} checkpoint(s); give 2 to {MOST_COLUMNS}, as ckpt=[base,sft]"
        )
    page = Compare(service, defaults) if compare else Page(service, store, defaults, private=private)
    with Sealed(
        title="nanochat", fill_height=True, fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        page.lay_out()
        blocks.unload(page.left)
    blocks.queue(default_concurrency_limit=None, api_open=False)
    blocks._queue.sleep_when_free = QUEUE_SECONDS
    return blocks


class StaysHere:
    """Adds the headers that keep what the browser loads on this server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class Writing:
    """What both pages share: the settings, and the turns that are being written."""

    def __init__(self, service: Service, defaults: Sampling) -> None:
        self.service, self.defaults = service, defaults
        self.turns: list[Turn] = []

    def lay_out_settings(self) -> None:
        """`values_of` and `settings_of` know their order."""
        d = self.defaults
        self.seed = gr.Number(
            d.seed, label="Seed", info="of the last answer, if it is random", precision=0, elem_id="seed", render=False
        )
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.settings: list[Any] = [
                gr.Textbox(label="System prompt", lines=2, max_lines=6, elem_id="system"),
                gr.Slider(0, 2, d.temperature, step=0.05, label="Temperature", info="0: always the likeliest token", elem_id="temperature"),
                gr.Number(d.top_k, label="Top-k", info="empty: every token", precision=0, minimum=1, elem_id="top_k"),
                gr.Slider(0, 1, d.top_p or 1, step=0.01, label="Top-p", info="1: off"),
                gr.Slider(0, 1, d.min_p or 0, step=0.01, label="Min-p", info="0: off"),
                gr.Slider(1, 2, d.repetition_penalty or 1, step=0.05, label="Repetition penalty", info="1: off"),
                gr.Number(d.max_tokens, label="Longest answer", info="tokens; empty: until the context is full", precision=0,
                          minimum=1, elem_id="max_tokens"),
                gr.Checkbox(True, label="Random seed", elem_id="random_seed"),
                self.seed.render(),
                gr.Checkbox(d.tools, label="Calculator", info="the model's calls of it are answered", elem_id="tools"),
            ]  # fmt: skip

    def values_of(self, settings: dict[str, Any]) -> list[Any]:
        """What the components of the settings show."""
        s = Sampling(**{**asdict(self.defaults), **settings.get("sampling", {})})
        return [
            settings.get("system", ""), s.temperature, s.top_k, s.top_p or 1, s.min_p or 0, s.repetition_penalty or 1, s.max_tokens,
            settings.get("random_seed", True), s.seed, s.tools,
        ]  # fmt: skip

    def settings_of(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """The other way. ValueError for what makes no sense."""
        system, temperature, top_k, top_p, min_p, penalty, max_tokens, random_seed, seed, tools = values
        sampling = replace(
            self.defaults,
            temperature=temperature,
            top_k=_whole(top_k),
            top_p=None if top_p == 1 else top_p,
            min_p=min_p or None,
            repetition_penalty=None if penalty == 1 else penalty,
            max_tokens=_whole(max_tokens),
            seed=_whole(seed) or 0,
            tools=tools,
        )
        return {"system": system or "", "random_seed": random_seed, "sampling": asdict(sampling)}

    def drawn(self, settings: dict[str, Any]) -> tuple[dict[str, Any], Sampling]:
        """The settings with the seed that the next answer is written with, and that sampling."""
        sampling = Sampling(**settings["sampling"])
        if settings["random_seed"]:
            sampling = replace(sampling, seed=random.randrange(SEEDS))
        return {**settings, "sampling": asdict(sampling)}, sampling

    def begin(self, turn: Turn) -> Turn:
        self.turns = [other for other in self.turns if not other.task.done()] + [turn]
        return turn

    def left(self, request: gr.Request) -> None:
        """A page was closed or loaded again: nobody reads what is being written there."""
        for turn in self.turns:
            if turn.session == request.session_hash:
                turn.stop()

    def lay_out(self) -> None:
        raise NotImplementedError


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


# --- one model at a time ----------------------------------------------------------------------------------------


class Page(Writing):
    """Conversations, or for a base checkpoint a text to be continued."""

    def __init__(self, service: Service, store: Store, defaults: Sampling, *, private: bool) -> None:
        super().__init__(service, defaults)
        self.store, self.private = store, private
        self.writing: dict[str, Turn] = {}  # by conversation
        self.passages: dict[str, Turn] = {}  # by session
        self.shown: dict[str, str] = {}  # the conversation that a session looks at

    def lay_out(self) -> None:
        first = self.service.default
        self.owner = gr.BrowserState("", storage_key="nanochat", secret="nanochat")
        # in the page but never seen: the conversation that is shown, and the way of a file to the browser
        self.opened = gr.JSON({"id": "", "revision": 0}, visible="hidden")
        self.arrival = gr.JSON(visible="hidden")
        self.file = gr.Textbox(visible="hidden")
        with gr.Sidebar(width=300, open=False, elem_id="sidebar") as self.sidebar:
            self.new = gr.Button("New conversation", variant="primary", elem_id="new")
            self.entries = gr.Radio([], show_label=False, container=False, elem_id="conversations")
            with gr.Accordion("This conversation", open=False, elem_id="this") as self.this:
                self.title = gr.Textbox(label="Title", max_lines=1, elem_id="title", info="Enter keeps it")
                with gr.Row():
                    export = gr.Button("Export", size="sm", min_width=80, elem_id="export")
                    delete = gr.Button("Delete", size="sm", min_width=80, variant="stop", elem_id="delete")
            self.lay_out_settings()
            with gr.Row():
                export_all = gr.Button("Export all", size="sm", min_width=80, elem_id="export_all")
                load = gr.UploadButton("Import", size="sm", min_width=80, file_types=[".json"], elem_id="import")
        choices = [
            (f"{model.name} ({model.phase})" if model.phase else model.name, model.name)
            for model in self.service.models.values()
        ]
        self.model = gr.Dropdown(
            choices, value=first.name, show_label=False, container=False, filterable=False, elem_id="model", label="Checkpoint"
        )  # fmt: skip
        with gr.Column(visible=first.chats, scale=1, elem_id="talk") as self.talk:
            self.chat = gr.Chatbot(
                show_label=False, elem_id="chat", editable="user", buttons=["copy", "copy_all"], latex_delimiters=LATEX,
                allow_tags=False, feedback_options=None, placeholder="### What shall we talk about?", scale=1, height="100%",
            )  # fmt: skip
            self.box = gr.Textbox(
                interactive=False,  # before `arrive` nobody knows whose it is
                placeholder="Ask something", show_label=False, container=False, lines=1, max_lines=8, submit_btn="Send",
                elem_id="box", label="Your message",
            )  # fmt: skip
            self.numbers = gr.Markdown(elem_id="numbers")
        with gr.Column(visible=not first.chats, scale=1, elem_id="text") as self.text:
            self.passage = gr.Textbox(
                label="Text, which the model continues", lines=12, max_lines=24, elem_id="passage", info="Shift+Enter continues"
            )  # fmt: skip
            self.before = gr.JSON([], visible="hidden")  # the text before each continuation
            with gr.Row():
                go_on = gr.Button("Continue", variant="primary", elem_id="continue")
                halt = gr.Button("Stop", variant="stop", elem_id="halt", interactive=False)
                take_back = gr.Button("Take back", elem_id="take_back")
            self.text_numbers = gr.Markdown(elem_id="text_numbers")

        self.view: list[Any] = [
            self.chat, self.numbers, self.opened, self.entries, self.title, self.box, self.model, *self.settings
        ]  # fmt: skip
        here: list[Any] = [self.opened, self.owner]
        ask: list[Any] = [*here, self.model, *self.settings]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        at_once = {**quiet, "trigger_mode": "multiple"}

        self.box.submit(self.send, [self.box, *ask], self.view, **at_once)
        self.chat.retry(self.retry, ask, self.view, **quiet)
        self.chat.edit(self.edit, ask, self.view, **quiet)
        self.chat.undo(self.undo, here, self.view, **quiet)
        self.chat.clear(self.clear, here, self.view, **quiet)
        self.box.stop(self.stop, here, None, queue=False, **quiet)
        self.new.click(self.start_new, [self.owner], self.view, **at_once)
        self.entries.input(self.open, [self.entries, self.owner], self.view, **at_once)
        gr.on([self.new.click, self.entries.input], None, None, None, js=AWAY_ON_A_PHONE)
        self.title.submit(self.rename, [self.title, *here], [self.entries], **quiet)
        delete.click(self.delete, here, self.view, js=ASK_FIRST, **at_once)
        export.click(self.export, here, [self.file], **quiet).then(None, [self.file], None, js=SAVE_FILE)
        export_all.click(self.export_all, [self.owner], [self.file], **quiet).then(
            None, [self.file], None, js=SAVE_FILE
        )
        load.upload(self.load, [load, self.owner], self.view, **at_once)
        self.opened.change(None, [self.opened], None, js=ID_IN_ADDRESS)
        self.model.change(self.pick, [self.model], [self.talk, self.text], **quiet)
        kept = [
            c.release if isinstance(c, gr.Slider) else c.input if isinstance(c, gr.Checkbox) else c.blur
            for c in self.settings
        ]
        gr.on([*kept, self.model.input], self.keep, ask, None, **quiet)

        texts: list[Any] = [self.passage, self.before, self.text_numbers, self.seed, halt]
        gr.on(
            [go_on.click, self.passage.submit],
            self.go_on,
            [self.passage, self.before, self.model, *self.settings],
            texts,
            **at_once,
        )
        halt.click(self.halt, None, None, queue=False, **quiet)
        take_back.click(self.take_back, [self.passage, self.before], [self.passage, self.before], **quiet)

        blocks = gr.context.Context.root_block
        assert blocks is not None
        blocks.load(
            self.arrive, [self.owner, self.arrival], [self.owner, self.sidebar, *self.view], js=ON_ARRIVAL, **at_once
        ).then(None, None, None, js=TO_THE_BOX)

    # --- what is shown ---

    def show(self, view: dict[Any, Any]) -> list[Any]:
        """A value for each component of the view; those not named stay as they are."""
        return [view.get(component, gr.skip()) for component in self.view]

    def all_of(self, c: Conversation, owner: str) -> dict[Any, Any]:
        """Everything about a conversation that is not being written. A new one has the settings that the page has."""
        made = next((message["made"] for message in reversed(c.messages) if "made" in message), None)
        view = {
            self.chat: rows(answered(c.messages))[0],
            self.numbers: numbers(made) if made else "",
            self.opened: {"id": c.id if c.revision else "", "revision": c.revision},
            self.entries: self.listed(c.id, owner),
            self.title: c.title,
            self.box: gr.update(submit_btn="Send", stop_btn=False, interactive=True),
        }
        return view | dict(zip(self.settings, self.values_of(c.settings), strict=True)) if c.revision else view

    def listed(self, id: str, owner: str) -> Any:
        choices = [(entry.title, entry.id) for entry in self.store.entries(self.whose(owner))]
        return gr.update(choices=choices, value=id if any(id == other for _, other in choices) else None)

    def whose(self, owner: str) -> str | None:
        """For the store: "" is everybody there, which in the page is nobody yet."""
        return (owner or "nobody") if self.private else None

    def found(self, id: str, owner: str) -> Conversation:
        """A new one if there is none of that id."""
        return (self.store.get(id, self.whose(owner)) if id else None) or Conversation(
            owner=owner if self.private else ""
        )

    def current(self, session: str, opened: dict[str, Any], owner: str) -> Conversation:
        """What the page shows, to be changed. Refused if it is being written, Changed if it is not what the store has."""
        # one that is new there may have its first question already, and the page not know it yet
        if (opened["id"] or self.shown.get(session)) in self.writing:
            raise Refused("an answer is being written in this conversation; wait for it, or stop it")
        c = self.found(opened["id"], owner)
        if opened["id"] and not c.revision:
            raise Changed("this conversation was deleted elsewhere; what you send now begins a new one")
        if c.revision != opened["revision"]:
            raise Changed("this conversation went on elsewhere; here is what it is now")
        return replace(c, messages=answered(c.messages))

    async def answer(
        self, request: gr.Request, c: Conversation, owner: str, model: str, *values: Any, box: str | None = None,
        beside: Conversation | None = None,
    ) -> Shown:  # fmt: skip
        """Ask for the answer to the last message of `c`, keep that (and `beside`), and show what comes. Where it is refused nothing is kept."""
        session = str(request.session_hash)
        settings, sampling = self.drawn(self.settings_of(values))
        reply, forgotten = self.service.chat(model, with_system(settings, c.messages), sampling, forget=True)
        try:
            if beside:
                self.store.put(beside)
            asked = self.store.put(replace(c, settings=settings, model=model))
        except BaseException:
            reply.cancel()
            raise

        def ended(turn: Turn) -> None:
            done = replace(asked, messages=[*asked.messages, turn.message()])
            try:
                self.store.put(done)
            except Changed:  # by another server with the same file: both are kept
                self.store.put(replace(done, id=new_id(), revision=0))
            finally:
                del self.writing[asked.id]

        turn = Turn(reply, self.service.model(model), sampling, forgotten=forgotten, session=session, ended=ended)
        self.writing[asked.id] = self.begin(turn)
        self.shown[session] = asked.id
        async for update in self.watch(asked, turn, owner, session, box):
            yield update

    async def watch(self, c: Conversation, turn: Turn, owner: str, session: str, box: str | None = None) -> Shown:
        """Show `c` and the answer that is being written to it, as long as the session looks at it."""
        view = self.all_of(c, owner)
        stops: dict[str, Any] = {"submit_btn": False, "stop_btn": "Stop", "interactive": True}
        view[self.box] = gr.update(**stops | ({} if box is None else {"value": box}))
        view[self.chat] = rows([*c.messages, *begun(turn)], writing=True)[0]
        view[self.numbers] = ""
        yield self.show(view)
        async for _ in turn.updates():
            if self.shown.get(session) != c.id:
                break
            chat = rows([*c.messages, *begun(turn)], writing=True)[0]
            yield self.show({self.chat: chat, self.numbers: numbers(turn.made()) if turn.parts else ""})
        if self.shown.get(session) != c.id:
            yield self.show({})  # what is yielded last is sent once more in the end
            return
        if turn.error:
            gr.Warning(f"the engine failed ({turn.error}); what it wrote is kept, try again")
        yield self.show(self.all_of(self.found(c.id, owner), owner))

    # --- what is done ---

    def left(self, request: gr.Request) -> None:
        super().left(request)
        self.shown.pop(str(request.session_hash), None)
        self.passages.pop(str(request.session_hash), None)

    async def tried(
        self, request: gr.Request, opened: dict[str, Any], owner: str, do: Callable[[Conversation], Shown]
    ) -> Shown:
        """What `do` shows of the conversation on the page. Where it may not be done, why, and what was typed stays."""
        try:
            async for update in do(self.current(str(request.session_hash), opened, owner)):
                yield update
        except (ValueError, Busy) as error:
            gr.Warning(str(error))
            if isinstance(error, Refused):
                yield self.show({})
                return
            c = self.found(opened["id"], owner)
            self.shown[str(request.session_hash)] = c.id
            view = self.all_of(c, owner)
            yield self.show(view if isinstance(error, Changed) else {self.chat: view[self.chat]})

    async def arrive(self, request: gr.Request, owner: str, arrival: dict[str, Any]) -> Shown:
        """A window was opened: with room for the list beside the chat, or without."""
        owner = owner or secrets.token_urlsafe(18)
        async for view in self.open(request, arrival["id"], owner):
            yield [owner, gr.update(open=arrival["wide"]), *view]

    async def open(self, request: gr.Request, id: str, owner: str) -> Shown:
        """Show a conversation, with the answer that is being written to it; a new one for ""."""
        session, c = str(request.session_hash), self.found(id, owner)
        if id and not c.revision:
            gr.Info("there is no such conversation")
        self.shown[session] = c.id
        if turn := self.writing.get(c.id):
            async for update in self.watch(c, turn, owner, session):
                yield update
            return
        view = self.all_of(c, owner)
        if c.model in self.service.models:
            view[self.model] = c.model
        elif c.model:
            gr.Info(f"it was held with {c.model}, which is not served now")
            view[self.model] = next(
                (m.name for m in self.service.models.values() if m.chats), self.service.default.name
            )
        yield self.show(view)

    async def start_new(self, request: gr.Request, owner: str) -> Shown:
        async for update in self.open(request, "", owner):
            yield update

    async def send(self, request: gr.Request, text: str, opened: dict[str, Any], owner: str, *ask: Any) -> Shown:
        def sent(c: Conversation) -> Shown:
            messages = [*c.messages, {"role": "user", "content": text}]
            return self.answer(request, replace(c, messages=messages), owner, *ask, box="")

        if not text.strip():
            yield self.show({})
            return
        async for update in self.tried(request, opened, owner, sent):
            yield update

    async def retry(
        self, request: gr.Request, event: gr.RetryData, opened: dict[str, Any], owner: str, *ask: Any
    ) -> Shown:
        def again(c: Conversation) -> Shown:
            messages = c.messages[: question_at(c.messages, event.index) + 1]
            return self.answer(request, replace(c, messages=messages), owner, *ask)

        async for update in self.tried(request, opened, owner, again):
            yield update

    async def edit(
        self, request: gr.Request, event: gr.EditData, opened: dict[str, Any], owner: str, *ask: Any
    ) -> Shown:
        """What followed the message goes; where that is more than its answer, the conversation as it was is kept beside."""

        def edited(c: Conversation) -> Shown:
            at = question_at(c.messages, event.index)
            new = replace(c, messages=[*c.messages[:at], {"role": "user", "content": str(event.value)}])
            old = replace(c, id=new_id(), revision=0, title=f"Before an edit: {c.title}")
            return self.answer(request, new, owner, *ask, beside=old if len(c.messages) > at + 2 else None)

        async for update in self.tried(request, opened, owner, edited):
            yield update

    async def undo(self, request: gr.Request, event: gr.UndoData, opened: dict[str, Any], owner: str) -> Shown:
        """The question goes back to where it was typed."""

        async def undone(c: Conversation) -> Shown:
            at = question_at(c.messages, event.index)
            view = self.all_of(self.store.put(replace(c, messages=c.messages[:at])), owner)
            yield self.show({**view, self.box: gr.update(value=c.messages[at]["content"])})

        async for update in self.tried(request, opened, owner, undone):
            yield update

    async def clear(self, request: gr.Request, opened: dict[str, Any], owner: str) -> Shown:
        async def cleared(c: Conversation) -> Shown:
            kept = self.store.put(replace(c, messages=[])) if c.revision else c
            yield self.show(self.all_of(kept, owner))

        async for update in self.tried(request, opened, owner, cleared):
            yield update

    async def delete(self, request: gr.Request, opened: dict[str, Any] | None, owner: str) -> Shown:
        """Nothing if `opened` is None: then it was not meant."""
        if not opened or not opened["id"]:
            yield self.show({})
            return
        if turn := self.own_turn(opened, owner):
            turn.stop()
            await turn.task
        self.store.delete(opened["id"], self.whose(owner))
        async for update in self.open(request, "", owner):
            yield update

    def stop(self, opened: dict[str, Any], owner: str) -> None:
        if turn := self.own_turn(opened, owner):
            turn.stop()

    def own_turn(self, opened: dict[str, Any], owner: str) -> Turn | None:
        """What is being written in a conversation, for its owner: an id may have been seen in somebody's address."""
        return self.writing.get(opened["id"]) if self.found(opened["id"], owner).revision else None

    def rename(self, title: str, opened: dict[str, Any], owner: str) -> Any:
        try:
            self.store.set(opened["id"], self.whose(owner), title=title)
        except ValueError as error:
            gr.Warning(str(error))
        return self.listed(opened["id"], owner)

    def keep(self, opened: dict[str, Any], owner: str, model: str, *values: Any) -> None:
        """Settings that were changed between two answers. A conversation is never one of a base checkpoint."""
        if opened["id"] and self.service.model(model).chats:
            with suppress(ValueError):  # said where they are used
                self.store.set(opened["id"], self.whose(owner), model=model, settings=self.settings_of(values))

    def pick(self, model: str) -> tuple[Any, Any]:
        chats = self.service.model(model).chats
        return gr.update(visible=chats), gr.update(visible=not chats)

    def export(self, opened: dict[str, Any], owner: str) -> str:
        if not opened["id"]:
            gr.Info("there is nothing to export yet")
            return ""
        return self.store.export(opened["id"], self.whose(owner))

    def export_all(self, owner: str) -> str:
        return self.store.export(None, self.whose(owner))

    async def load(self, request: gr.Request, file: str, owner: str) -> Shown:
        try:
            read = Path(file).read_bytes
            loaded = await asyncio.to_thread(lambda: self.store.load(read(), owner if self.private else ""))
        except ValueError as error:
            gr.Warning(str(error))
            yield self.show({})
            return
        finally:
            Path(file).unlink(missing_ok=True)
        gr.Info(f"{len(loaded)} conversation{'s' * (len(loaded) != 1)} imported")
        async for update in self.open(request, loaded[-1].id, owner):
            yield update

    # --- a base checkpoint ---

    async def go_on(self, request: gr.Request, text: str, before: list[str], model: str, *values: Any) -> Shown:
        """The text with its continuation. What it was goes into `before`, for `take_back`."""
        session = str(request.session_hash)
        try:
            settings, sampling = self.drawn(self.settings_of(values))
            sampling = replace(sampling, tools=False)
            turn = self.begin(
                Turn(self.service.complete(model, text, sampling), self.service.model(model), sampling, session=session)
            )
        except (ValueError, Busy) as error:
            gr.Warning(str(error))
            yield [gr.skip()] * 5
            return
        self.passages[session] = turn
        seed = settings["sampling"]["seed"]
        yield gr.update(interactive=False), [*before, text], "", seed, gr.update(interactive=True)
        async for _ in turn.updates():
            yield text + turn.text, gr.skip(), numbers(turn.made()), gr.skip(), gr.skip()
        if turn.error:
            gr.Warning(f"the engine failed ({turn.error}); try again")
        yield (
            gr.update(value=text + turn.text, interactive=True), gr.skip(), numbers(turn.made()), seed, gr.update(interactive=False)
        )  # fmt: skip

    def halt(self, request: gr.Request) -> None:
        if turn := self.passages.get(str(request.session_hash)):
            turn.stop()

    def take_back(self, text: str, before: list[str]) -> tuple[str, list[str]]:
        return (before[-1], before[:-1]) if before else (text, before)


# --- several at once --------------------------------------------------------------------------------------------


class Compare(Writing):
    """A column for each model, all asked the same with the same seed; each goes on with its own answers. Nothing is kept."""

    def lay_out(self) -> None:
        with gr.Sidebar(width=300, open=False, elem_id="sidebar"):
            new = gr.Button("New conversation", variant="primary", elem_id="new")
            self.lay_out_settings()
        self.talks = gr.JSON({}, visible="hidden")  # model -> its messages
        self.columns = []
        with gr.Row(elem_id="columns"):
            for model in self.service.models.values():
                with gr.Column(min_width=260, elem_classes="side"):
                    what = model.phase or "checkpoint"
                    gr.Markdown(
                        f"**{model.name}** ({what}, {'chats' if model.chats else 'continues the text as it is'})"
                    )
                    chat = gr.Chatbot(
                        show_label=False, elem_classes="compared", buttons=["copy"], latex_delimiters=LATEX, allow_tags=False,
                        feedback_options=None, height=None, placeholder=" ", render_markdown=model.chats,
                    )  # fmt: skip
                    self.columns.append((model, chat, gr.Markdown(elem_classes="numbers")))
        self.box = gr.Textbox(
            placeholder="Ask all of them", show_label=False, container=False, lines=1, max_lines=8, submit_btn="Send", autofocus=True,
            elem_id="box", elem_classes="for_all", label="Your message",
        )  # fmt: skip
        each = [component for _, chat, line in self.columns for component in (chat, line)]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        asked = self.box.submit(self.send, [self.box, self.talks, *self.settings], [self.box, self.talks, self.seed, *each], **quiet)  # fmt: skip
        self.box.stop(self.stop, None, None, queue=False, **quiet)
        gr.on(
            [new.click, *(chat.clear for _, chat, _ in self.columns)],
            self.clear,
            None,
            [self.box, self.talks, self.seed, *each],
            cancels=[asked],
            **quiet,
        )

    async def send(self, request: gr.Request, text: str, talks: dict[str, Any], *values: Any) -> Shown:
        if not text.strip():
            yield [gr.skip()] * (3 + 2 * len(self.columns))
            return
        question = {"role": "user", "content": text}
        asked = {model.name: [*talks.get(model.name, []), question] for model, _, _ in self.columns}
        turns: list[Turn] = []
        try:
            settings, sampling = self.drawn(self.settings_of(values))
            for model, _, _ in self.columns:
                turns.append(self.ask(request, model, asked[model.name], settings, sampling))
        except (ValueError, Busy) as error:
            for turn in turns:
                turn.stop()
            gr.Warning(str(error))
            yield [gr.skip()] * (3 + 2 * len(self.columns))
            return

        def columns() -> Iterator[Any]:
            for turn, messages in zip(turns, asked.values(), strict=True):
                yield rows([*messages, *begun(turn)], writing=not turn.task.done())[0]
                yield numbers(turn.made()) if turn.parts else ""

        stops = gr.update(value="", submit_btn=False, stop_btn="Stop")
        yield stops, gr.skip(), sampling.seed, *columns()
        while any(not turn.task.done() for turn in turns):
            await asyncio.wait([turn.task for turn in turns], timeout=1 / UPDATES_PER_SECOND)
            yield gr.skip(), gr.skip(), gr.skip(), *columns()
        for turn in turns:
            if turn.error:
                gr.Warning(f"the engine of {turn.model} failed ({turn.error})")
        talks = {name: [*asked[name], turn.message()] for name, turn in zip(asked, turns, strict=True)}
        yield gr.update(submit_btn="Send", stop_btn=False), talks, sampling.seed, *columns()

    def ask(
        self, request: gr.Request, model: Model, messages: list[dict[str, Any]], settings: dict[str, Any], sampling: Sampling
    ) -> Turn:  # fmt: skip
        """A base checkpoint gets the last question as a text to continue, and nothing else."""
        if model.chats:
            asked = with_system(settings, messages)
            reply, forgotten = self.service.chat(model.name, asked, sampling, forget=True)
        else:
            sampling, forgotten = replace(sampling, tools=False), 0
            reply = self.service.complete(model.name, messages[-1]["content"], sampling)
        return self.begin(Turn(reply, model, sampling, forgotten=forgotten, session=str(request.session_hash)))

    def stop(self, request: gr.Request) -> None:
        self.left(request)

    def clear(self, request: gr.Request) -> list[Any]:
        self.left(request)
        return [gr.update(submit_btn="Send", stop_btn=False), {}, gr.skip(), *([[], ""] * len(self.columns))]


# --- messages as Gradio shows them ------------------------------------------------------------------------------


def rows(messages: list[dict[str, Any]], *, writing: bool = False) -> tuple[list[dict[str, Any]], list[int]]:
    """What a Chatbot shows, and the number of the message that each of it is of. `writing`: the last message may have an open call."""
    shown: list[dict[str, Any]] = []
    number_of: list[int] = []
    for number, message in enumerate(messages):
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        of_message = list(_rows(message["role"], parts, writing and number == len(messages) - 1))
        shown += of_message
        number_of += [number] * len(of_message)
    return shown, number_of


def _rows(role: str, parts: list[dict[str, str]], writing: bool) -> Iterator[dict[str, Any]]:
    """A call of the calculator and its result are one item, which opens."""
    last = len(parts) - 1
    for n, part in enumerate(parts):
        kind, text = part["type"], part["text"]
        if kind == "text":
            yield {"role": role, "content": escaped(text) if n else text}
        elif kind == "python" or (n == 0 or parts[n - 1]["type"] != "python"):
            call = text if kind == "python" else ""
            result = text if kind == "python_output" else None
            if kind == "python" and n < last and parts[n + 1]["type"] == "python_output":
                result = parts[n + 1]["text"]
            line = call if result is None else f"{call} → {result}"
            pending = writing and n == last and result is None
            yield {
                "role": role,
                "content": fenced(call if result is None else f"{call}\n{result}"),
                "metadata": {"title": plain(f"calculator: {line}"), "status": "pending" if pending else "done"},
            }


def escaped(text: str) -> str:
    """What follows a call goes on with a line: a result with a full stop, "91.", is no list, nor is "+ 3" or "# 4"."""
    return re.sub(r"^(\s*\d*)([.)#>+*-])(?=\s|$)", r"\1\\\2", text)


def fenced(text: str) -> str:
    """A code block, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def plain(text: str) -> str:
    """One line that Markdown leaves as it is."""
    line = " ".join(text.split())
    line = line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
    return re.sub(r"([\\`*_{}\[\]()<>#!|~$&])", r"\\\1", line)


def begun(turn: Turn) -> list[dict[str, Any]]:
    """Its message as far as it is; none before the first token, where Gradio shows that it is waiting."""
    return [turn.message()] if turn.parts or turn.task.done() else []


def answered(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With an answer to a last question that got none, because the server was killed."""
    return (
        [*messages, {"role": "assistant", "content": NOTHING}]
        if messages and messages[-1]["role"] == "user"
        else messages
    )


def question_at(messages: list[dict[str, Any]], row: Any) -> int:
    """The number of the question that a row of the Chatbot is, or answers."""
    numbers_of = rows(messages)[1]
    at = numbers_of[min(row[0] if isinstance(row, list | tuple) else row, len(numbers_of) - 1)]
    return next(n for n in range(at, -1, -1) if messages[n]["role"] == "user")


def with_system(settings: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = settings["system"]
    return [{"role": "system", "content": system}, *messages] if system.strip() else messages
