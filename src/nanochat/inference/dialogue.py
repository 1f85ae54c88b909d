"""A conversation as a prompt that leaves room for the answer."""

from typing import Any

from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer


class TooLong(ValueError):
    """A conversation that does not fit the context of the model."""


def fit(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], *, context: int, room: int, forget: bool
) -> tuple[list[int], int]:
    """Token ids that ask for the next answer, and how many of the oldest turns were left out for it.

    With `forget` the oldest turns (of user and assistant together; never a system message or the last question) are left out until `room`
    of the `context` tokens are free for the answer. Without, all of it has to fit, with one token free. TooLong if it does not,
    BadConversation if it breaks the rules.
    """
    system = messages[:1] if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system" else []
    turns = messages[len(system) :]
    forgotten = 0
    while True:
        prompt = render_prompt(tokenizer, {"messages": [*system, *turns]})
        if len(prompt) <= context - (max(1, min(room, context // 2)) if forget and len(turns) > 2 else 1):
            return prompt, forgotten
        if not forget or len(turns) <= 2:
            what = "the last question" if forget else "the conversation"
            raise TooLong(
                f"{what} has {len(prompt):,} tokens and leaves no room for an answer in the model's context of {context:,}; "
                f"say it in fewer words" + ("" if forget else ", or leave out the oldest turns")
            )
        turns, forgotten = turns[2:], forgotten + 1
