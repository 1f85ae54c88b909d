"""The page that asks several checkpoints at once."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from nanochat.inference.sampling import Sampling
from nanochat.serve.page.rows import begun, line_of, message_rows, plain
from nanochat.serve.page.settings import (
    LATEX,
    QUIET,
    TO_THE_END,
    AnswersPage,
    Shown,
    warn,
    with_system,
)
from nanochat.serve.page.turn import UPDATES_PER_SECOND, Turn
from nanochat.serve.service import Busy, ServedModel, Service


class Compare(AnswersPage):
    """A column for each model, all asked the same with the same seed; each goes on with its own
    answers.

    Nothing is stored. Gradio keeps the messages for the session, here: as a value in the browser
    they came back with every question, and a long conversation was more than a request of the page
    may have.
    """

    def __init__(self, service: Service, defaults: Sampling) -> None:
        super().__init__(service, defaults)
        self.asking: dict[str, object] = {}  # by session: a mark of its last question

    def build(self) -> None:
        with gr.Sidebar(width=300, open=False, elem_id="sidebar"):
            new = gr.Button("New conversation", variant="primary", elem_id="new")
            self.build_settings()
        self.talks = gr.State({})  # model -> its messages
        self.columns = []
        with gr.Row(elem_id="columns"):
            for model in self.service.models.values():
                with gr.Column(min_width=260, elem_classes="side"):
                    what = model.phase or "checkpoint"
                    gr.Markdown(
                        f"**{plain(model.name)}** ({plain(what)}, "
                        f"{'chats' if model.chats else 'continues the text as it is'})"
                    )
                    chat = gr.Chatbot(
                        show_label=False,
                        elem_classes="compared",
                        buttons=["copy"],
                        latex_delimiters=LATEX,
                        allow_tags=False,
                        feedback_options=None,
                        height=None,
                        placeholder=" ",
                        render_markdown=model.chats,
                        autoscroll=False,
                    )
                    self.columns.append((model, chat, gr.Markdown(elem_classes="numbers")))
        self.box = gr.Textbox(
            placeholder="Ask all of them",
            show_label=False,
            container=False,
            lines=1,
            max_lines=8,
            submit_btn="Send",
            autofocus=True,
            elem_id="box",
            elem_classes="for_all",
            label="Your message",
        )
        each = [component for _, chat, line in self.columns for component in (chat, line)]
        asked = self.box.submit(
            self.send,
            [self.box, self.talks, *self.settings],
            [self.box, self.talks, self.seed, *each],
            js=TO_THE_END,
            **QUIET,
        )
        self.box.stop(self.stop, None, None, queue=False, **QUIET)
        gr.on(
            [new.click, *(chat.clear for _, chat, _ in self.columns)],
            self.clear,
            None,
            [self.box, self.talks, self.seed, *each],
            cancels=[asked],
            **QUIET,
        )

    async def send(
        self, request: gr.Request, text: str, talks: dict[str, Any], *values: Any
    ) -> Shown:
        if not text.strip():
            yield [gr.skip()] * (3 + 2 * len(self.columns))
            return
        question = {"role": "user", "content": text}
        asked = {model.name: [*talks.get(model.name, []), question] for model, _, _ in self.columns}
        turns: list[Turn] = []
        try:
            settings, sampling = self.with_seed(self.settings_of(values))
            for model, _, _ in self.columns:
                turns.append(self.ask(request, model, asked[model.name], settings, sampling))
        except (ValueError, Busy) as error:
            for turn in turns:
                turn.stop()
            warn(str(error))
            yield [gr.skip()] * (3 + 2 * len(self.columns))
            return

        session, mine = str(request.session_hash), object()
        self.asking[session] = mine

        def columns() -> Iterator[Any]:
            for turn, messages in zip(turns, asked.values(), strict=True):
                yield message_rows([*messages, *begun(turn)], writing=not turn.task.done())[0]
                yield line_of(turn.made()) if turn.parts else ""

        stops = gr.update(value="", submit_btn=False, stop_btn="Stop")
        yield stops, gr.skip(), sampling.seed, *columns()
        while any(not turn.task.done() for turn in turns):
            await asyncio.wait([turn.task for turn in turns], timeout=1 / UPDATES_PER_SECOND)
            if self.asking.get(session) is not mine:  # cleared: nothing of it may be shown again
                yield [gr.skip()] * (3 + 2 * len(self.columns))
                return
            yield gr.skip(), gr.skip(), gr.skip(), *columns()
        for turn in turns:
            if turn.error:
                warn(f"the engine of {turn.model} failed ({turn.error})")
        talks = {
            name: [*asked[name], turn.message()] for name, turn in zip(asked, turns, strict=True)
        }
        yield gr.update(submit_btn="Send", stop_btn=False), talks, sampling.seed, *columns()

    def ask(
        self,
        request: gr.Request,
        model: ServedModel,
        messages: list[dict[str, Any]],
        settings: dict[str, Any],
        sampling: Sampling,
    ) -> Turn:
        """A base checkpoint gets only the last question, as a text to continue."""
        if model.chats:
            asked = with_system(settings, messages)
            reply, forgotten = self.service.chat(model.name, asked, sampling, forget=True)
        else:
            sampling, forgotten = replace(sampling, tools=False), 0
            reply = self.service.complete(model.name, messages[-1]["content"], sampling)
        return self.begin(
            Turn(reply, model, sampling, forgotten=forgotten, session=str(request.session_hash))
        )

    def stop(self, request: gr.Request) -> None:
        super().left(request)

    def left(self, request: gr.Request) -> None:
        super().left(request)
        self.asking.pop(str(request.session_hash), None)

    def clear(self, request: gr.Request) -> list[Any]:
        self.left(request)
        return [
            gr.update(submit_btn="Send", stop_btn=False),
            {},
            gr.skip(),
            *([[], ""] * len(self.columns)),
        ]
