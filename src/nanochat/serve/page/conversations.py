"""Conversations of the store as the page shows them, and answers being written to them.

The store holds what is true; the browser holds the id and the revision of the conversation that it
shows, in components that nobody sees. So a page that stayed open goes on after a restart of the
server, and two tabs with the same conversation cannot overwrite each other: the second one shows it
again, with a line that says so. Answers are written by `Turn`s, which a page watches: they go on
while the page shows another conversation, and end when it is closed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from nanochat.inference.sampling import Sampling
from nanochat.serve.page.rows import answered, begun, choices_of, line_of, message_rows
from nanochat.serve.page.settings import Shown, warn, with_system
from nanochat.serve.page.store import Changed, Conversation, Store, new_id, title_of
from nanochat.serve.page.turn import Turn
from nanochat.serve.page.window import Window
from nanochat.serve.service import Busy, Service

# a conversation after a change, and what to show beyond it
Done = tuple[Conversation, dict[Any, Any]]


class NotNow(ValueError):
    """What was asked for cannot be done now; the message says why."""


class Conversations(Window):
    """`private`: a browser sees only the conversations that it made."""

    def __init__(
        self, service: Service, store: Store, defaults: Sampling, *, private: bool
    ) -> None:
        super().__init__(service, defaults)
        self.store, self.private = store, private
        self.writing: dict[str, Turn] = {}  # by conversation
        # by session: the conversation it shows, and those it searched for
        self.shown: dict[str, str] = {}
        self.sought: dict[str, set[str]] = {}
        # By session: held while a view is chosen and sent. Gradio resumes a handler when what it
        # yielded is in the session's queue, so views arrive in the order in which they were chosen.
        self.sending: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def left(self, request: gr.Request) -> None:
        super().left(request)
        session = str(request.session_hash)
        self.passage.left(session)
        for known in (self.shown, self.sought, self.sending):
            known.pop(session, None)

    # --- views ---

    def show(self, view: dict[Any, Any]) -> list[Any]:
        """A value for each component of the view; those not named stay as they are."""
        return [view.get(component, gr.skip()) for component in self.view]

    def view_of(self, c: Conversation, owner: str, session: str) -> dict[Any, Any]:
        """Everything about a conversation, and the answer that is being written to it."""
        view = self.all_of(c, owner, session)
        if turn := self.writing.get(c.id):
            view |= {
                self.chat: written(c, turn),
                self.answers: choices_of(c.messages),  # without the one that is being written
                self.numbers: "",
                self.box: stop_box(),
            }
        return view

    def all_of(self, c: Conversation, owner: str, session: str) -> dict[Any, Any]:
        """Everything about a conversation that is not being written; settings only if it is in the
        store."""
        made = next((m["made"] for m in reversed(c.messages) if "made" in m), None)
        view = {
            self.chat: message_rows(answered(c.messages))[0],
            self.answers: choices_of(answered(c.messages)),
            self.numbers: line_of(made) if made else "",
            self.opened: {"id": c.id if c.revision else "", "revision": c.revision},
            self.entries: self.listed(c.id, owner, session),
            self.title: c.title,
            self.box: gr.update(submit_btn="Send", stop_btn=False, interactive=True),
        }
        if c.revision:
            view |= dict(zip(self.settings, self.values_of(c.settings), strict=True))
        return view

    def listed(self, id: str, owner: str, session: str) -> Any:
        """The list; after a search only what was found, and conversation `id`."""
        sought = self.sought.get(session)
        choices = [
            (entry.title, entry.id)
            for entry in self.store.entries(self.whose(owner))
            if sought is None or entry.id in sought or entry.id == id
        ]
        chosen = id if any(id == other for _, other in choices) else None
        return gr.update(choices=choices, value=chosen)

    # --- the store ---

    def whose(self, owner: str) -> str | None:
        """The owner for the store, where "" is everybody; the page sends "" before it knows its
        owner."""
        return (owner or "nobody") if self.private else None

    def stored(self, id: str, owner: str) -> Conversation:
        """A new one if there is none of that id."""
        new = Conversation(owner=owner if self.private else "")
        return (self.store.get(id, self.whose(owner)) if id else None) or new

    def current(self, session: str, opened: dict[str, Any], owner: str) -> Conversation:
        """What the page shows, to be changed. NotNow if it is being written, Changed if the store
        has another."""
        if opened["id"] and self.shown.get(session, opened["id"]) != opened["id"]:
            raise NotNow("another conversation is being opened; do this again when it is here")
        # one that is new there may have its first question already, and the page not know it yet
        if (opened["id"] or self.shown.get(session)) in self.writing:
            raise NotNow("an answer is being written in this conversation; wait for it, or stop it")
        c = self.stored(opened["id"], owner)
        if opened["id"] and not c.revision:
            raise Changed(
                "this conversation was deleted elsewhere; what you send now begins a new one"
            )
        if c.revision != opened["revision"]:
            raise Changed("this conversation went on elsewhere; here is what it is now")
        return replace(c, messages=answered(c.messages))

    # --- what is done ---

    async def tried(
        self,
        request: gr.Request,
        opened: dict[str, Any],
        owner: str,
        do: Callable[[Conversation], Done],
    ) -> Shown:
        """What `do` makes of the conversation on the page. Where it is refused, why; what was typed
        stays."""
        session = str(request.session_hash)
        turn = None
        async with self.sending[session]:
            try:
                c, more = do(self.current(session, opened, owner))
                turn = self.writing.get(c.id)
                view = self.view_of(c, owner, session) | more
            except NotNow as error:
                warn(str(error))
                c, view = Conversation(), {}
            except (ValueError, Busy) as error:
                warn(str(error))
                c = self.stored(opened["id"], owner)
                self.shown[session] = c.id
                view = self.all_of(c, owner, session)
                view = view if isinstance(error, Changed) else {self.chat: view[self.chat]}
            yield self.show(view)
        async for update in self.follow(c, turn, owner, session):
            yield update

    def ask_model(
        self,
        session: str,
        c: Conversation,
        model: str,
        *values: Any,
        also: Conversation | None = None,
    ) -> Conversation:
        """Ask for the answer to the last message of `c`, and store `c` (and `also`); nothing where
        refused."""
        settings, sampling = self.with_seed(self.settings_of(values))
        messages = with_system(settings, c.messages)
        reply, forgotten = self.service.chat(model, messages, sampling, forget=True)
        try:
            if also:
                self.store.put(also)
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

        served = self.service.model(model)
        turn = Turn(reply, served, sampling, forgotten=forgotten, session=session, ended=ended)
        self.writing[asked.id] = self.begin(turn)
        self.shown[session] = asked.id
        return asked

    async def follow(self, c: Conversation, turn: Turn | None, owner: str, session: str) -> Shown:
        """Show the answer `turn` that is being written to `c`, as long as the session shows `c`.

        The last view is empty, because Gradio sends it once more at the end of the event.
        """
        if turn:
            async for _ in turn.updates():
                async with self.sending[session]:
                    if self.shown.get(session) != c.id:
                        break
                    numbers = line_of(turn.made()) if turn.parts else ""
                    yield self.show({self.chat: written(c, turn), self.numbers: numbers})
            async with self.sending[session]:
                if self.shown.get(session) == c.id:
                    if turn.error:
                        warn(f"the engine failed ({turn.error}); what it wrote is kept, try again")
                    yield self.show(self.all_of(self.stored(c.id, owner), owner, session))
        yield self.show({})


def stop_box(**more: Any) -> dict[str, Any]:
    """The box while an answer is written: it can be typed in, and Stop is where Send was."""
    return gr.update(submit_btn=False, stop_btn="Stop", interactive=True, **more)


def written(c: Conversation, turn: Turn) -> list[dict[str, Any]]:
    """Rows of a conversation with the answer as far as it is."""
    return message_rows([*c.messages, *begun(turn)], writing=True)[0]


def with_messages(c: Conversation, messages: list[dict[str, Any]]) -> Conversation:
    """A title that came from the first question goes on following it; one that was typed stays."""
    follows = c.title == title_of(c.messages)
    return replace(c, messages=messages, title="" if follows else c.title)
