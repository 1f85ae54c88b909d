"""What the page consists of, made of Gradio's components; what it does is in page.py."""

from typing import Any

import gradio as gr

from nanochat.inference.sampling import Sampling
from nanochat.serve.page.passage import Passage
from nanochat.serve.page.settings import LATEX, AnswersPage
from nanochat.serve.service import Service


class Window(AnswersPage):
    """A sidebar with conversations and settings, and a chat; for a base checkpoint a text
    instead."""

    def __init__(self, service: Service, defaults: Sampling) -> None:
        super().__init__(service, defaults)
        self.passage = Passage(self)

    def build(self) -> None:
        first = self.service.default
        self.build_hidden()
        with gr.Sidebar(width=300, open=False, elem_id="sidebar") as self.sidebar:
            self.build_sidebar()
        self.model = gr.Dropdown(
            [
                (f"{model.name} ({model.phase})" if model.phase else model.name, model.name)
                for model in self.service.models.values()
            ],
            value=first.name,
            show_label=False,
            container=False,
            filterable=False,
            elem_id="model",
            label="Checkpoint",
        )
        with gr.Column(visible=first.chats, scale=1, elem_id="talk") as self.talk:
            self.build_chat()
        with gr.Column(visible=not first.chats, scale=1, elem_id="text") as self.text:
            self.passage.build()
        self.view: list[Any] = [
            self.chat,
            self.answers,
            self.numbers,
            self.opened,
            self.entries,
            self.title,
            self.box,
            self.model,
            *self.settings,
        ]

    def build_hidden(self) -> None:
        """Values that are in the page but never seen."""
        self.owner = gr.BrowserState("", storage_key="nanochat", secret="nanochat")
        # the conversation that is shown
        self.opened = gr.JSON({"id": "", "revision": 0}, visible="hidden")
        self.arrival = gr.JSON(visible="hidden")
        self.file = gr.Textbox(visible="hidden")  # on its way to the browser
        self.attached = gr.JSON(visible="hidden")
        self.answers = gr.JSON([], visible="hidden")  # `choices_of` what is shown
        self.asked = gr.JSON(visible="hidden")
        self.turn_to_button = gr.Button(visible="hidden", elem_id="turn_to")  # `page.js` presses it

    def build_sidebar(self) -> None:
        small: dict[str, Any] = {"size": "sm", "min_width": 80}
        self.new = gr.Button("New conversation", variant="primary", elem_id="new")
        self.search = gr.Textbox(
            placeholder="Search",
            show_label=False,
            container=False,
            max_lines=1,
            max_length=200,
            elem_id="search",
            label="Search conversations",
        )
        self.entries = gr.Radio([], show_label=False, container=False, elem_id="conversations")
        with gr.Accordion("This conversation", open=False, elem_id="this"):
            self.title = gr.Textbox(
                label="Title", max_lines=1, elem_id="title", info="Enter keeps it"
            )
            with gr.Row():
                self.export_button = gr.Button("Export", elem_id="export", **small)
                self.delete_button = gr.Button("Delete", variant="stop", elem_id="delete", **small)
        self.build_settings()
        with gr.Row():
            self.export_all_button = gr.Button("Export all", elem_id="export_all", **small)
            self.import_button = gr.UploadButton(
                "Import", file_types=[".json"], elem_id="import", **small
            )

    def build_chat(self) -> None:
        self.chat = gr.Chatbot(
            show_label=False,
            elem_id="chat",
            editable="user",
            buttons=["copy", "copy_all"],
            latex_delimiters=LATEX,
            allow_tags=False,
            feedback_options=None,
            placeholder="### What shall we talk about?",
            scale=1,
            height="100%",
            autoscroll=False,  # `page.js` does it
        )
        with gr.Row(elem_id="asking"):
            self.attach_button = gr.Button(
                "Attach", size="sm", scale=0, min_width=64, elem_id="attach"
            )
            self.box = gr.Textbox(
                interactive=False,  # until `arrive` has said whose page it is
                placeholder="Ask something",
                show_label=False,
                container=False,
                lines=1,
                max_lines=8,
                submit_btn="Send",
                elem_id="box",
                label="Your message",
                scale=1,
            )
        self.numbers = gr.Markdown(elem_id="numbers")
