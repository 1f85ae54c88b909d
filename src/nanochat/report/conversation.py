"""The conversation in a report: a few questions, asked once of the last
checkpoint that can chat."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.checkpoint import folder
from nanochat.checkpoint.atomic import write_json
from nanochat.report.chapter import Chapter

GREEDY = {
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "repetition_penalty": None,
    "max_tokens": 200,  # guess: enough for the answers of small models
    "seed": 0,
    "stop": None,
    "tools": True,
    "python": False,
}


def talk_with(
    chapter: Chapter, questions: Sequence[str], kept: Path, *, device: str, precision: str
) -> dict[str, Any] | None:
    """The turns with the newest checkpoint of a run, None if it has none or cannot chat. They are
    stored in the file `kept` and not generated again for the same checkpoint and questions.
    """
    steps = chapter.checkpoints.steps()
    if not steps or not questions or chapter.info.phase == "base":
        return None
    checkpoint = chapter.checkpoints.path(steps[-1])
    if folder.problem(checkpoint):
        return None
    key = {"checkpoint": checkpoint.name, "questions": list(questions)}
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or {k: found.get(k) for k in key} != key:
        found = {**key, "messages": messages_of(checkpoint, questions, device, precision)}
        write_json(kept, found)
    return {"checkpoint": f"{chapter.info.name}@{steps[-1]}", "turns": turns(found["messages"])}


def messages_of(
    checkpoint: Path, questions: Sequence[str], device: str, precision: str
) -> list[dict[str, Any]]:
    """Messages of one conversation, answered as `nanochat.cli` does."""
    from nanochat.checkpoint.opened import open_checkpoint
    from nanochat.inference.engine import Engine
    from nanochat.serve.terminal.screen import Screen
    from nanochat.serve.terminal.talk import Talk

    opened = open_checkpoint(str(checkpoint), device=device, precision=precision)
    talk = Talk(Engine(opened.gpt, opened.tokenizer, max_rows=1), Screen(io.StringIO()), GREEDY)
    with talk.engine.frozen():
        for question in questions:
            talk.ask(question)
    return talk.messages


def turns(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Role and parts. A part is (kind, text); a call of the calculator and its
    result are in brackets."""
    found = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kinds = [part["type"] for part in parts]
        shown = [
            (
                part["type"],
                {"python": "[", "python_output": " → "}.get(part["type"], "")
                + part["text"]
                + ("]" if part["type"] != "text" and after != "python_output" else ""),
            )
            for part, after in zip(parts, [*kinds[1:], "text"], strict=True)
        ]
        found.append({"role": message["role"], "parts": shown})
    return found
