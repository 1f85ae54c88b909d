"""Messages as Gradio's Chatbot shows them, and names from elsewhere so that Gradio shows them as
they are."""

import re
from collections.abc import Iterator
from typing import Any

from nanochat.serve.page.branches import branches
from nanochat.serve.page.store import shortened
from nanochat.serve.page.turn import NOTHING, Turn, numbers


def message_rows(
    messages: list[dict[str, Any]], *, writing: bool = False
) -> tuple[list[dict[str, Any]], list[int]]:
    """What a Chatbot shows, and the number of the message that each of it is of. `writing`: the
    last message may have an open call."""
    shown: list[dict[str, Any]] = []
    number_of: list[int] = []
    for number, message in enumerate(messages):
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        of_message = list(_rows_of(message["role"], parts, writing and number == len(messages) - 1))
        shown += of_message
        number_of += [number] * len(of_message)
    return shown, number_of


def _rows_of(role: str, parts: list[dict[str, str]], writing: bool) -> Iterator[dict[str, Any]]:
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
                "metadata": {
                    "title": plain(shortened(f"calculator: {line}")),
                    "status": "pending" if pending else "done",
                },
            }


def escaped(text: str) -> str:
    """What follows a call goes on with a line: a result with a full stop, "91.", is no list, nor is
    "+ 3" or "# 4"."""
    return re.sub(r"^(\s*\d*)([.)#>+*-])(?=\s|$)", r"\1\\\2", text)


def fenced(text: str) -> str:
    """A code block, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def plain(text: str) -> str:
    """As Markdown and as HTML, both show it as it is: no link, formula or tag is found in it, nor
    an address to make a link of."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda sign: f"&#{ord(sign[0])};", text)


def line_of(made: dict[str, Any]) -> str:
    """The numbers of an answer, of which an import may name anything as the model."""
    return plain(numbers(made))


def choices_of(messages: list[dict[str, Any]]) -> list[list[int]]:
    """For each answer: the number of its question, which branch is shown there, and of how many.
    `page.js` draws them."""
    found = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            at, tails = branches(messages, number - 1)
            found.append([number - 1, at, len(tails)])
    return found


def begun(turn: Turn) -> list[dict[str, Any]]:
    """Its message as far as it is; none before the first token, where Gradio shows that it is
    waiting."""
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
    numbers_of = message_rows(messages)[1]
    at = numbers_of[min(row[0] if isinstance(row, list | tuple) else row, len(numbers_of) - 1)]
    return next(n for n in range(at, -1, -1) if messages[n]["role"] == "user")
