"""What the page and the page that compares share: sampling settings, and answers being written."""

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from nanochat.inference.sampling import Sampling
from nanochat.serve.page.rows import plain
from nanochat.serve.page.turn import Turn
from nanochat.serve.service import Service

SEEDS = 2**31  # a random seed is below
# single dollars are prices more often than formulas: GSM8K is full of them
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

Shown = AsyncIterator[Sequence[Any]]  # values for the outputs of a handler, again and again
# how events are run: not listed in the API, without a progress bar, as many at once as there are
QUIET: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": None,
}
AT_ONCE: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}
# Before the event: one that is only this would wait for the end of the answer.
TO_THE_END = "(...inputs) => { nanochat.toTheEnd(); return inputs; }"


class AnswersPage:
    """What both pages share: the settings, and the turns that are being written."""

    def __init__(self, service: Service, defaults: Sampling) -> None:
        self.service, self.defaults = service, defaults
        self.turns: list[Turn] = []

    def build_settings(self) -> None:
        """`values_of` and `settings_of` know their order."""
        d = self.defaults
        self.seed = gr.Number(
            d.seed,
            label="Seed",
            info="of the last answer, if it is random",
            precision=0,
            elem_id="seed",
            render=False,
        )
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.settings: list[Any] = [
                gr.Textbox(label="System prompt", lines=2, max_lines=6, elem_id="system"),
                gr.Slider(
                    0,
                    2,
                    d.temperature,
                    step=0.05,
                    label="Temperature",
                    info="0: always the likeliest token",
                    elem_id="temperature",
                ),
                gr.Number(
                    d.top_k,
                    label="Top-k",
                    info="empty: every token",
                    precision=0,
                    minimum=1,
                    elem_id="top_k",
                ),
                gr.Slider(0, 1, d.top_p or 1, step=0.01, label="Top-p", info="1: off"),
                gr.Slider(0, 1, d.min_p or 0, step=0.01, label="Min-p", info="0: off"),
                gr.Slider(
                    1,
                    2,
                    d.repetition_penalty or 1,
                    step=0.05,
                    label="Repetition penalty",
                    info="1: off",
                ),
                gr.Number(
                    d.max_tokens,
                    label="Longest answer",
                    info="tokens; empty: until the context is full",
                    precision=0,
                    minimum=1,
                    elem_id="max_tokens",
                ),
                gr.Checkbox(True, label="Random seed", elem_id="random_seed"),
                self.seed.render(),
                gr.Checkbox(
                    d.tools,
                    label="Calculator",
                    info="the model's calls of it are answered",
                    elem_id="tools",
                ),
            ]

    def values_of(self, settings: dict[str, Any]) -> list[Any]:
        """What the components of the settings show."""
        s = Sampling(**{**asdict(self.defaults), **settings.get("sampling", {})})
        return [
            settings.get("system", ""),
            s.temperature,
            s.top_k,
            s.top_p or 1,
            s.min_p or 0,
            s.repetition_penalty or 1,
            s.max_tokens,
            settings.get("random_seed", True),
            s.seed,
            s.tools,
        ]

    def settings_of(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """The other way. ValueError for what makes no sense."""
        system, temperature, top_k, top_p, min_p, penalty, max_tokens, random_seed, seed, tools = (
            values
        )
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

    def with_seed(self, settings: dict[str, Any]) -> tuple[dict[str, Any], Sampling]:
        """The settings with the seed that the next answer is written with, and that sampling."""
        sampling = Sampling(**settings["sampling"])
        if settings["random_seed"]:
            sampling = replace(sampling, seed=random.randrange(SEEDS))
        return {**settings, "sampling": asdict(sampling)}, sampling

    def begin(self, turn: Turn) -> Turn:
        self.turns = [other for other in self.turns if not other.task.done()] + [turn]
        return turn

    def left(self, request: gr.Request) -> None:
        """A page was closed or reloaded: cancel what is being written there."""
        for turn in self.turns:
            if turn.session == request.session_hash:
                turn.stop()

    def build(self) -> None:
        raise NotImplementedError


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def with_system(settings: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the model is asked: roles and contents, and the system prompt if there is one."""
    asked = [{"role": message["role"], "content": message["content"]} for message in messages]
    system = settings["system"]
    return [{"role": "system", "content": system}, *asked] if system.strip() else asked


def warn(text: str) -> None:
    """A line that goes away; Gradio reads it as HTML."""
    gr.Warning(plain(text))


def inform(text: str) -> None:
    gr.Info(plain(text))
