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
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import fastapi
import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.inference.sampling import Sampling
from nanochat.serve.branches import anew, switched
from nanochat.serve.page_compare import Compare
from nanochat.serve.page_rows import answered, begun, choices_of, fenced, line_of, question_at, rows
from nanochat.serve.page_settings import LATEX, Shown, Writing, tell, warn, with_system
from nanochat.serve.service import MAX_CHARACTERS, WEB_CHAT, Busy, Service
from nanochat.serve.store import Changed, Conversation, Store, new_id, shortened, title_of
from nanochat.serve.turn import Turn
from nanochat.serve.visitors import Sealed, only_for_visitors

MOST_COLUMNS = 4  # guess: more are too narrow to read
UPLOAD_BYTES = 2**25  # guess: of an import
ATTACHED = MAX_CHARACTERS // 2  # guess: characters of a file; a conversation may have twice as many
QUEUE_SECONDS = 0.02  # guess: between two looks for a click; gradio's 0.001 takes 4 % of a core for nothing (measured)
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
CSS = (Path(__file__).parent / "page.css").read_text()
SCRIPT = (Path(__file__).parent / "page.js").read_text()
ASK_FIRST = """(opened, owner) => [window.confirm("Delete this conversation?") ? opened : null, owner]"""


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
        head=f'<meta name="viewport" content="width=device-width, initial-scale=1, interactive-widget=resizes-content"><script>{SCRIPT}</script>',
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
            f"compare=true with {len(service.models)} checkpoint(s); give 2 to {MOST_COLUMNS}, as ckpt=base ckpt=sft"
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


# --- one model at a time ----------------------------------------------------------------------------------------


class Page(Writing):
    """Conversations, or for a base checkpoint a text to be continued."""

    def __init__(self, service: Service, store: Store, defaults: Sampling, *, private: bool) -> None:
        super().__init__(service, defaults)
        self.store, self.private = store, private
        self.writing: dict[str, Turn] = {}  # by conversation
        self.passages: dict[str, Turn] = {}  # by session
        self.shown: dict[str, str] = {}  # the conversation that a session looks at
        self.sought: dict[str, set[str]] = {}  # the conversations that a session searched for

    def lay_out(self) -> None:
        first = self.service.default
        self.owner = gr.BrowserState("", storage_key="nanochat", secret="nanochat")
        # in the page but never seen: the conversation that is shown, and the way of a file to the browser
        self.opened = gr.JSON({"id": "", "revision": 0}, visible="hidden")
        self.arrival = gr.JSON(visible="hidden")
        self.file = gr.Textbox(visible="hidden")
        self.attached = gr.JSON(visible="hidden")
        self.answers = gr.JSON([], visible="hidden")  # `choices_of` what is shown
        self.asked = gr.JSON(visible="hidden")
        turn_to = gr.Button(visible="hidden", elem_id="turn_to")  # `page.js` presses it
        with gr.Sidebar(width=300, open=False, elem_id="sidebar") as self.sidebar:
            self.new = gr.Button("New conversation", variant="primary", elem_id="new")
            self.search = gr.Textbox(
                placeholder="Search", show_label=False, container=False, max_lines=1, max_length=200, elem_id="search",
                label="Search conversations",
            )  # fmt: skip
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
            with gr.Row(elem_id="asking"):
                attach = gr.Button("Attach", size="sm", scale=0, min_width=64, elem_id="attach")
                self.box = gr.Textbox(
                    interactive=False,  # before `arrive` nobody knows whose it is
                    placeholder="Ask something", show_label=False, container=False, lines=1, max_lines=8, submit_btn="Send",
                    elem_id="box", label="Your message", scale=1,
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
            self.chat, self.answers, self.numbers, self.opened, self.entries, self.title, self.box, self.model, *self.settings
        ]  # fmt: skip
        here: list[Any] = [self.opened, self.owner]
        ask: list[Any] = [*here, self.model, *self.settings]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        at_once = {**quiet, "trigger_mode": "multiple"}

        self.box.submit(self.send, [self.box, *ask], self.view, **at_once)
        self.box.submit(None, None, None, js="() => nanochat.toTheEnd()")
        turn_to.click(
            self.turn_to, [self.asked, *ask], self.view, js="(_, ...rest) => [nanochat.asked(), ...rest]", **quiet
        )
        self.answers.change(None, [self.answers], None, js="(value) => nanochat.drawAnswers(value)")
        attach.click(
            self.attach, [self.attached, self.box], [self.box], js=f"async (_, typed) => [await nanochat.pickFile({4 * ATTACHED}), typed]", **quiet,
        ).then(None, None, None, js="(value) => nanochat.toTheBox(value)")  # fmt: skip
        gr.on(
            [self.search.change, self.search.submit],
            self.find,
            [self.search, *here],
            [self.entries],
            trigger_mode="always_last",
            **quiet,
        )
        self.chat.edit(self.edit, ask, self.view, **quiet)
        self.chat.edit(None, None, None, js="() => nanochat.toTheEnd()")
        self.chat.undo(self.undo, here, self.view, **quiet)
        self.chat.clear(self.clear, here, self.view, **quiet)
        self.box.stop(self.stop, here, None, queue=False, **quiet)
        self.new.click(self.start_new, [self.owner], self.view, **at_once)
        self.entries.input(self.open, [self.entries, self.owner], self.view, **at_once)
        gr.on([self.new.click, self.entries.input], None, None, None, js="(value) => nanochat.awayOnAPhone(value)")
        self.title.submit(self.rename, [self.title, *here], [self.entries], **quiet)
        delete.click(self.delete, here, self.view, js=ASK_FIRST, **at_once)
        export.click(self.export, here, [self.file], **quiet).then(
            None, [self.file], None, js="(value) => nanochat.saveFile(value)"
        )
        export_all.click(self.export_all, [self.owner], [self.file], **quiet).then(
            None, [self.file], None, js="(value) => nanochat.saveFile(value)"
        )
        load.upload(self.load, [load, self.owner], self.view, **at_once)
        self.opened.change(None, [self.opened], None, js="(value) => nanochat.idInAddress(value)")
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
            self.arrive,
            [self.owner, self.arrival],
            [self.owner, self.sidebar, *self.view],
            js="(value) => nanochat.onArrival(value)",
            **at_once,
        ).then(None, None, None, js="(value) => nanochat.toTheBox(value)")

    # --- what is shown ---

    def show(self, view: dict[Any, Any]) -> list[Any]:
        """A value for each component of the view; those not named stay as they are."""
        return [view.get(component, gr.skip()) for component in self.view]

    def all_of(self, c: Conversation, owner: str, session: str) -> dict[Any, Any]:
        """Everything about a conversation that is not being written. A new one has the settings that the page has."""
        made = next((message["made"] for message in reversed(c.messages) if "made" in message), None)
        view = {
            self.chat: rows(answered(c.messages))[0],
            self.answers: choices_of(answered(c.messages)),
            self.numbers: line_of(made) if made else "",
            self.opened: {"id": c.id if c.revision else "", "revision": c.revision},
            self.entries: self.listed(c.id, owner, session),
            self.title: c.title,
            self.box: gr.update(submit_btn="Send", stop_btn=False, interactive=True),
        }
        return view | dict(zip(self.settings, self.values_of(c.settings), strict=True)) if c.revision else view

    def listed(self, id: str, owner: str, session: str) -> Any:
        """The list, with only what was searched for and what is shown where something was."""
        sought = self.sought.get(session)
        entries = [e for e in self.store.entries(self.whose(owner)) if sought is None or e.id in sought or e.id == id]
        choices = [(entry.title, entry.id) for entry in entries]
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
        if opened["id"] and self.shown.get(session, opened["id"]) != opened["id"]:
            raise Refused("another conversation is being opened; do this again when it is here")
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
        view = self.all_of(c, owner, session)
        view[self.answers] = choices_of(c.messages)  # without the one that is being written
        stops: dict[str, Any] = {"submit_btn": False, "stop_btn": "Stop", "interactive": True}
        view[self.box] = gr.update(**stops | ({} if box is None else {"value": box}))
        view[self.chat] = rows([*c.messages, *begun(turn)], writing=True)[0]
        view[self.numbers] = ""
        yield self.show(view)
        async for _ in turn.updates():
            if self.shown.get(session) != c.id:
                break
            chat = rows([*c.messages, *begun(turn)], writing=True)[0]
            yield self.show({self.chat: chat, self.numbers: line_of(turn.made()) if turn.parts else ""})
        if self.shown.get(session) != c.id:
            yield self.show({})  # what is yielded last is sent once more in the end
            return
        if turn.error:
            warn(f"the engine failed ({turn.error}); what it wrote is kept, try again")
        yield self.show(self.all_of(self.found(c.id, owner), owner, session))

    # --- what is done ---

    def left(self, request: gr.Request) -> None:
        super().left(request)
        self.shown.pop(str(request.session_hash), None)
        self.sought.pop(str(request.session_hash), None)
        self.passages.pop(str(request.session_hash), None)

    async def tried(
        self, request: gr.Request, opened: dict[str, Any], owner: str, do: Callable[[Conversation], Shown]
    ) -> Shown:
        """What `do` shows of the conversation on the page. Where it may not be done, why, and what was typed stays."""
        try:
            async for update in do(self.current(str(request.session_hash), opened, owner)):
                yield update
        except (ValueError, Busy) as error:
            warn(str(error))
            if isinstance(error, Refused):
                yield self.show({})
                return
            c = self.found(opened["id"], owner)
            self.shown[str(request.session_hash)] = c.id
            view = self.all_of(c, owner, str(request.session_hash))
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
            tell("there is no such conversation")
        self.shown[session] = c.id
        if turn := self.writing.get(c.id):
            async for update in self.watch(c, turn, owner, session):
                yield update
            return
        view = self.all_of(c, owner, session)
        if c.model in self.service.models:
            view[self.model] = c.model
        elif c.model:
            tell(f"it was held with {c.model}, which is not served now")
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
            return self.answer(request, with_messages(c, messages), owner, *ask, box="")

        if not text.strip():
            yield self.show({})
            return
        async for update in self.tried(request, opened, owner, sent):
            yield update

    async def turn_to(
        self, request: gr.Request, asked: Any, opened: dict[str, Any], owner: str, *ask: Any
    ) -> Shown:  # fmt: skip
        """Another answer to a question: one that was kept, or a new one where `branch` is None; then the old ones are kept."""

        async def turned(c: Conversation) -> Shown:
            question, branch = read_asked(c.messages, asked)
            if branch is None:
                async for update in self.answer(request, replace(c, messages=anew(c.messages, question)), owner, *ask):
                    yield update
                return
            kept = self.store.put(replace(c, messages=switched(c.messages, question, branch)))
            yield self.show(self.all_of(kept, owner, str(request.session_hash)))

        async for update in self.tried(request, opened, owner, turned):
            yield update

    async def edit(
        self, request: gr.Request, event: gr.EditData, opened: dict[str, Any], owner: str, *ask: Any
    ) -> Shown:
        """What followed the message goes; where that is more than one answer, the conversation as it was is kept beside."""

        def edited(c: Conversation) -> Shown:
            at = question_at(c.messages, event.index)
            new = with_messages(c, [*c.messages[:at], {"role": "user", "content": str(event.value)}])
            old = replace(c, id=new_id(), revision=0, title=f"Before an edit: {c.title}")
            more = len(c.messages) > at + 2 or "branches" in c.messages[at]
            return self.answer(request, new, owner, *ask, beside=old if more else None)

        async for update in self.tried(request, opened, owner, edited):
            yield update

    async def undo(self, request: gr.Request, event: gr.UndoData, opened: dict[str, Any], owner: str) -> Shown:
        """The question goes back to where it was typed."""

        async def undone(c: Conversation) -> Shown:
            at = question_at(c.messages, event.index)
            kept = self.store.put(with_messages(c, c.messages[:at]))
            view = self.all_of(kept, owner, str(request.session_hash))
            yield self.show({**view, self.box: gr.update(value=c.messages[at]["content"])})

        async for update in self.tried(request, opened, owner, undone):
            yield update

    async def clear(self, request: gr.Request, opened: dict[str, Any], owner: str) -> Shown:
        async def cleared(c: Conversation) -> Shown:
            kept = self.store.put(with_messages(c, [])) if c.revision else c
            yield self.show(self.all_of(kept, owner, str(request.session_hash)))

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

    def find(self, request: gr.Request, text: str, opened: dict[str, Any], owner: str) -> Any:
        session = str(request.session_hash)
        if text.strip():
            self.sought[session] = {entry.id for entry in self.store.search(text, self.whose(owner))}
        else:
            self.sought.pop(session, None)
        return self.listed(
            self.shown.get(session, opened["id"]), owner, session
        )  # the page may not know yet what is opened

    def attach(self, file: Any, typed: str) -> Any:
        """A file's text goes into the box, so whoever sends it sees what is sent. The file itself never comes here."""
        if file is None:
            return gr.skip()
        try:
            return f"{typed}\n\n{quoted(file)}".lstrip()
        except ValueError as error:
            warn(str(error))
            return gr.skip()

    def rename(self, request: gr.Request, title: str, opened: dict[str, Any], owner: str) -> Any:
        try:
            self.store.set(opened["id"], self.whose(owner), title=title)
        except ValueError as error:
            warn(str(error))
        return self.listed(opened["id"], owner, str(request.session_hash))

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
            tell("there is nothing to export yet")
            return ""
        return self.store.export(opened["id"], self.whose(owner))

    def export_all(self, owner: str) -> str:
        return self.store.export(None, self.whose(owner))

    async def load(self, request: gr.Request, file: str, owner: str) -> Shown:
        try:
            read = Path(file).read_bytes
            loaded = await asyncio.to_thread(lambda: self.store.load(read(), owner if self.private else ""))
        except ValueError as error:
            warn(str(error))
            yield self.show({})
            return
        finally:
            Path(file).unlink(missing_ok=True)
        tell(f"{len(loaded)} conversation{'s' * (len(loaded) != 1)} imported")
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
            warn(str(error))
            yield [gr.skip()] * 5
            return
        self.passages[session] = turn
        seed = settings["sampling"]["seed"]
        yield gr.update(interactive=False), [*before, text], "", seed, gr.update(interactive=True)
        async for _ in turn.updates():
            yield text + turn.text, gr.skip(), line_of(turn.made()), gr.skip(), gr.skip()
        if turn.error:
            warn(f"the engine failed ({turn.error}); try again")
        yield (
            gr.update(value=text + turn.text, interactive=True), gr.skip(), line_of(turn.made()), seed, gr.update(interactive=False)
        )  # fmt: skip

    def halt(self, request: gr.Request) -> None:
        if turn := self.passages.get(str(request.session_hash)):
            turn.stop()

    def take_back(self, text: str, before: list[str]) -> tuple[str, list[str]]:
        return (before[-1], before[:-1]) if before else (text, before)


def with_messages(c: Conversation, messages: list[dict[str, Any]]) -> Conversation:
    """A title that came from the first question goes on coming from there; one that was typed stays."""
    return replace(c, messages=messages, title="" if c.title == title_of(c.messages) else c.title)


def read_asked(messages: list[dict[str, Any]], asked: Any) -> tuple[int, int | None]:
    """The question and the branch that the browser asks for. ValueError for what is none."""
    question, branch = (asked.get("question"), asked.get("branch")) if isinstance(asked, dict) else (None, None)
    if type(question) is not int or not 0 <= question < len(messages) or messages[question]["role"] != "user":
        raise ValueError(f"question={question!r} is none of this conversation; load the page again")
    if branch is not None and type(branch) is not int:
        raise ValueError(f"branch={branch!r} is no number of an answer; load the page again")
    return question, branch


def quoted(file: Any) -> str:
    """The text of a file that the browser read, {name, bytes, text}, with its name, as it goes into a message. ValueError in one line."""
    if not isinstance(file, dict) or not isinstance(file.get("text"), str | None):
        raise ValueError("this is no file; choose one")
    name, size, text = shortened(str(file.get("name"))), file.get("bytes"), file.get("text")
    if type(size) is not int or size > 4 * ATTACHED or len(text or "") > ATTACHED:
        size = f"{len(text):,} characters" if text else f"{size:,} bytes" if type(size) is int else "no size"
        raise ValueError(
            f"{name} has {size}; at most {ATTACHED:,} characters can be attached: paste the part that matters"
        )
    if text is None or "\0" in text:
        raise ValueError(f"{name} is not text in UTF-8; only that can be attached")
    if not text.strip():
        raise ValueError(f"{name} is empty; there is nothing to attach")
    return f"{name}:\n{fenced(text.rstrip())}\n"
