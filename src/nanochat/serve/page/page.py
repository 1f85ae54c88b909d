"""What the page does: its events and their handlers."""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from nanochat.serve.page import transfer
from nanochat.serve.page.branches import anew, switched
from nanochat.serve.page.conversations import Conversations, Done, stop_box, with_messages
from nanochat.serve.page.files import ATTACHED, quoted
from nanochat.serve.page.rows import question_at
from nanochat.serve.page.settings import AT_ONCE, QUIET, TO_THE_END, Shown, inform, warn
from nanochat.serve.page.store import Conversation, new_id
from nanochat.serve.page.turn import Turn

ASK_FIRST = (
    '(opened, owner) => [window.confirm("Delete this conversation?") ? opened : null, owner]'
)


class Page(Conversations):
    """Conversations, or for a base checkpoint a text to be continued."""

    def build(self) -> None:
        super().build()
        self.here: list[Any] = [self.opened, self.owner]
        self.ask: list[Any] = [*self.here, self.model, *self.settings]
        self.connect_chat()
        self.connect_sidebar()
        self.passage.connect(self.model)
        self.model.change(self.pick, [self.model], [self.talk, self.text], **QUIET)
        self.opened.change(None, [self.opened], None, js="(value) => nanochat.idInAddress(value)")
        blocks = gr.context.Context.root_block
        assert blocks is not None
        blocks.load(
            self.arrive,
            [self.owner, self.arrival],
            [self.owner, self.sidebar, *self.view],
            js="(value) => nanochat.onArrival(value)",
            **AT_ONCE,
        ).then(None, None, None, js="(value) => nanochat.toTheBox(value)")

    def connect_chat(self) -> None:
        self.box.submit(self.send, [self.box, *self.ask], self.view, js=TO_THE_END, **AT_ONCE)
        self.box.stop(self.stop, self.here, None, queue=False, **QUIET)
        self.chat.edit(self.edit, self.ask, self.view, js=TO_THE_END, **QUIET)
        self.chat.undo(self.undo, self.here, self.view, **QUIET)
        self.chat.clear(self.clear, self.here, self.view, **QUIET)
        self.turn_to_button.click(
            self.turn_to,
            [self.asked, *self.ask],
            self.view,
            js="(_, ...rest) => [nanochat.asked(), ...rest]",
            **QUIET,
        )
        self.answers.change(None, [self.answers], None, js="(value) => nanochat.drawAnswers(value)")
        self.attach_button.click(
            self.attach,
            [self.attached, self.box],
            [self.box],
            js=f"async (_, typed) => [await nanochat.pickFile({4 * ATTACHED}), typed]",
            **QUIET,
        ).then(None, None, None, js="(value) => nanochat.toTheBox(value)")

    def connect_sidebar(self) -> None:
        self.new.click(self.start_new, [self.owner], self.view, **AT_ONCE)
        self.entries.input(self.open, [self.entries, self.owner], self.view, **AT_ONCE)
        gr.on(
            [self.new.click, self.entries.input],
            None,
            None,
            None,
            js="(value) => nanochat.awayOnAPhone(value)",
        )
        gr.on(
            [self.search.change, self.search.submit],
            self.find,
            [self.search, *self.here],
            [self.entries],
            trigger_mode="always_last",
            **QUIET,
        )
        self.title.submit(self.rename, [self.title, *self.here], [self.entries], **QUIET)
        self.delete_button.click(self.delete, self.here, self.view, js=ASK_FIRST, **AT_ONCE)
        exports: list[Any] = [
            (self.export_button, self.export, self.here),
            (self.export_all_button, self.export_all, [self.owner]),
        ]
        for button, export, inputs in exports:
            button.click(export, inputs, [self.file], **QUIET).then(
                None, [self.file], None, js="(value) => nanochat.saveFile(value)"
            )
        self.import_button.upload(self.load, [self.import_button, self.owner], self.view, **AT_ONCE)
        changed = [
            c.release
            if isinstance(c, gr.Slider)
            else c.input
            if isinstance(c, gr.Checkbox)
            else c.blur
            for c in self.settings
        ]
        gr.on([*changed, self.model.input], self.keep, self.ask, None, **QUIET)

    # --- which conversation is shown ---

    async def arrive(self, request: gr.Request, owner: str, arrival: dict[str, Any]) -> Shown:
        """A window was opened, wide enough for the list next to the chat or not."""
        owner = owner or secrets.token_urlsafe(18)
        async for view in self.open(request, arrival["id"], owner):
            yield [owner, gr.update(open=arrival["wide"]), *view]

    async def open(self, request: gr.Request, id: str, owner: str) -> Shown:
        """Show a conversation, with the answer that is being written to it; a new one for ""."""
        session = str(request.session_hash)
        async with self.sending[session]:
            c = self.stored(id, owner)
            if id and not c.revision:
                inform("there is no such conversation")
            self.shown[session] = c.id
            turn, view = self.writing.get(c.id), self.view_of(c, owner, session)
            if c.model in self.service.models:
                view[self.model] = c.model
            elif c.model:
                inform(f"it was held with {c.model}, which is not served now")
                chats = [m.name for m in self.service.models.values() if m.chats]
                view[self.model] = [*chats, self.service.default.name][0]
            yield self.show(view)
        async for update in self.follow(c, turn, owner, session):
            yield update

    async def start_new(self, request: gr.Request, owner: str) -> Shown:
        async for update in self.open(request, "", owner):
            yield update

    async def delete(self, request: gr.Request, opened: dict[str, Any] | None, owner: str) -> Shown:
        """Nothing if `opened` is None: then it was not confirmed."""
        if not opened or not opened["id"]:
            yield self.show({})
            return
        if turn := self.own_turn(opened, owner):
            turn.stop()
            await turn.task
        self.store.delete(opened["id"], self.whose(owner))
        async for update in self.open(request, "", owner):
            yield update

    async def load(self, request: gr.Request, file: str, owner: str) -> Shown:
        try:
            read = Path(file).read_bytes
            new_owner = owner if self.private else ""
            loaded = await asyncio.to_thread(lambda: transfer.load(self.store, read(), new_owner))
        except ValueError as error:
            warn(str(error))
            yield self.show({})
            return
        finally:
            Path(file).unlink(missing_ok=True)
        inform(f"{len(loaded)} conversation{'s' * (len(loaded) != 1)} imported")
        async for update in self.open(request, loaded[-1].id, owner):
            yield update

    # --- its messages ---

    async def send(
        self, request: gr.Request, text: str, opened: dict[str, Any], owner: str, *ask: Any
    ) -> Shown:
        def sent(c: Conversation) -> Done:
            messages = [*c.messages, {"role": "user", "content": text}]
            asked = self.ask_model(str(request.session_hash), with_messages(c, messages), *ask)
            return asked, {self.box: stop_box(value="")}

        if not text.strip():
            yield self.show({})
            return
        async for update in self.tried(request, opened, owner, sent):
            yield update

    async def turn_to(
        self, request: gr.Request, asked: Any, opened: dict[str, Any], owner: str, *ask: Any
    ) -> Shown:
        """Another answer to a question: a stored one, or a new one where `branch` is None. All are
        kept."""

        def turned(c: Conversation) -> Done:
            question, branch = read_asked(c.messages, asked)
            if branch is not None:
                return self.store.put(
                    replace(c, messages=switched(c.messages, question, branch))
                ), {}
            again = replace(c, messages=anew(c.messages, question))
            return self.ask_model(str(request.session_hash), again, *ask), {}

        async for update in self.tried(request, opened, owner, turned):
            yield update

    async def edit(
        self, request: gr.Request, event: gr.EditData, opened: dict[str, Any], owner: str, *ask: Any
    ) -> Shown:
        """What followed the message goes; if that is more than one answer, a copy of the old one is
        kept."""

        def edited(c: Conversation) -> Done:
            at = question_at(c.messages, event.index)
            new = with_messages(
                c, [*c.messages[:at], {"role": "user", "content": str(event.value)}]
            )
            old = replace(c, id=new_id(), revision=0, title=f"Before an edit: {c.title}")
            more = len(c.messages) > at + 2 or "branches" in c.messages[at]
            session = str(request.session_hash)
            return self.ask_model(session, new, *ask, also=old if more else None), {}

        async for update in self.tried(request, opened, owner, edited):
            yield update

    async def undo(
        self, request: gr.Request, event: gr.UndoData, opened: dict[str, Any], owner: str
    ) -> Shown:
        """The question goes back into the box."""

        def undone(c: Conversation) -> Done:
            at = question_at(c.messages, event.index)
            kept = self.store.put(with_messages(c, c.messages[:at]))
            return kept, {self.box: gr.update(value=c.messages[at]["content"])}

        async for update in self.tried(request, opened, owner, undone):
            yield update

    async def clear(self, request: gr.Request, opened: dict[str, Any], owner: str) -> Shown:
        def cleared(c: Conversation) -> Done:
            return self.store.put(with_messages(c, [])) if c.revision else c, {}

        async for update in self.tried(request, opened, owner, cleared):
            yield update

    def stop(self, opened: dict[str, Any], owner: str) -> None:
        if turn := self.own_turn(opened, owner):
            turn.stop()

    def own_turn(self, opened: dict[str, Any], owner: str) -> Turn | None:
        """The answer being written in a conversation, for its owner only: the id stands in the
        address bar."""
        return self.writing.get(opened["id"]) if self.stored(opened["id"], owner).revision else None

    def attach(self, file: Any, typed: str) -> Any:
        """A file's text goes into the box, so that it is seen before it is sent."""
        if file is None:
            return gr.skip()
        try:
            return f"{typed}\n\n{quoted(file)}".lstrip()
        except ValueError as error:
            warn(str(error))
            return gr.skip()

    # --- around it ---

    def find(self, request: gr.Request, text: str, opened: dict[str, Any], owner: str) -> Any:
        session = str(request.session_hash)
        if text.strip():
            found = self.store.search(text, self.whose(owner))
            self.sought[session] = {entry.id for entry in found}
        else:
            self.sought.pop(session, None)
        # the page may not know yet which one is opened
        return self.listed(self.shown.get(session, opened["id"]), owner, session)

    def rename(self, request: gr.Request, title: str, opened: dict[str, Any], owner: str) -> Any:
        try:
            self.store.set(opened["id"], self.whose(owner), title=title)
        except ValueError as error:
            warn(str(error))
        return self.listed(opened["id"], owner, str(request.session_hash))

    def keep(self, opened: dict[str, Any], owner: str, model: str, *values: Any) -> None:
        """Store settings that were changed between two answers; never for a base checkpoint."""
        if opened["id"] and self.service.model(model).chats:
            with suppress(ValueError):  # reported where they are used
                settings = self.settings_of(values)
                self.store.set(opened["id"], self.whose(owner), model=model, settings=settings)

    def pick(self, model: str) -> tuple[Any, Any]:
        chats = self.service.model(model).chats
        return gr.update(visible=chats), gr.update(visible=not chats)

    def export(self, opened: dict[str, Any], owner: str) -> str:
        if not opened["id"]:
            inform("there is nothing to export yet")
            return ""
        return transfer.export(self.store, opened["id"], self.whose(owner))

    def export_all(self, owner: str) -> str:
        return transfer.export(self.store, None, self.whose(owner))


def read_asked(messages: list[dict[str, Any]], asked: Any) -> tuple[int, int | None]:
    """The question and the branch that the browser asks for. ValueError if they do not exist."""
    given = asked if isinstance(asked, dict) else {}
    question, branch = given.get("question"), given.get("branch")
    if (
        type(question) is not int
        or not 0 <= question < len(messages)
        or messages[question]["role"] != "user"
    ):
        raise ValueError(f"question={question!r} is none of this conversation; load the page again")
    if branch is not None and type(branch) is not int:
        raise ValueError(f"branch={branch!r} is not the number of an answer; load the page again")
    return question, branch
