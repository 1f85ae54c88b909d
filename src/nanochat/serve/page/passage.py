"""A text that a base checkpoint continues."""

from dataclasses import replace
from typing import Any

import gradio as gr

from nanochat.serve.page.rows import line_of
from nanochat.serve.page.settings import AT_ONCE, QUIET, AnswersPage, Shown, warn
from nanochat.serve.page.turn import Turn
from nanochat.serve.service import Busy


class Passage:
    """The text area of a page and its buttons."""

    def __init__(self, page: AnswersPage) -> None:
        self.page = page
        self.turns: dict[str, Turn] = {}  # by session

    def build(self) -> None:
        self.text = gr.Textbox(
            label="Text, which the model continues",
            lines=12,
            max_lines=24,
            elem_id="passage",
            info="Shift+Enter continues",
        )
        self.before = gr.JSON([], visible="hidden")  # the text before each continuation
        with gr.Row():
            self.go = gr.Button("Continue", variant="primary", elem_id="continue")
            self.halt = gr.Button("Stop", variant="stop", elem_id="halt", interactive=False)
            self.back = gr.Button("Take back", elem_id="take_back")
        self.numbers = gr.Markdown(elem_id="text_numbers")

    def connect(self, model: gr.Dropdown) -> None:
        """`model` is the checkpoint that is asked."""
        gr.on(
            [self.go.click, self.text.submit],
            self.go_on,
            [self.text, self.before, model, *self.page.settings],
            [self.text, self.before, self.numbers, self.page.seed, self.halt],
            **AT_ONCE,
        )
        self.halt.click(self.stop, None, None, queue=False, **QUIET)
        texts: list[Any] = [self.text, self.before]
        self.back.click(self.take_back, texts, texts, **QUIET)

    async def go_on(
        self, request: gr.Request, text: str, before: list[str], model: str, *values: Any
    ) -> Shown:
        """The text with its continuation. What it was goes into `before`, for `take_back`."""
        session, service = str(request.session_hash), self.page.service
        try:
            settings, sampling = self.page.with_seed(self.page.settings_of(values))
            sampling = replace(sampling, tools=False)
            reply = service.complete(model, text, sampling)
        except (ValueError, Busy) as error:
            warn(str(error))
            yield [gr.skip()] * 5
            return
        turn = self.page.begin(Turn(reply, service.model(model), sampling, session=session))
        self.turns[session] = turn
        seed = settings["sampling"]["seed"]
        busy, free = gr.update(interactive=False), gr.update(interactive=True)
        yield busy, [*before, text], "", seed, free
        async for _ in turn.updates():
            yield text + turn.text, gr.skip(), line_of(turn.made()), gr.skip(), gr.skip()
        if turn.error:
            warn(f"the engine failed ({turn.error}); try again")
        whole = gr.update(value=text + turn.text, interactive=True)
        yield whole, gr.skip(), line_of(turn.made()), seed, busy

    def stop(self, request: gr.Request) -> None:
        if turn := self.turns.get(str(request.session_hash)):
            turn.stop()

    def left(self, session: str) -> None:
        self.turns.pop(session, None)

    def take_back(self, text: str, before: list[str]) -> tuple[str, list[str]]:
        return (before[-1], before[:-1]) if before else (text, before)
