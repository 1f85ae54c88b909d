"""The prompt for a conversation, shortened so that the answer has room."""

from bisect import bisect_left
from functools import cache
from typing import Any

from nanochat.inference.request import TooLong
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer


def fit(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], *, context: int, room: int, forget: bool
) -> tuple[list[int], int]:
    """Token ids that ask for the next answer, or for more of a last message of the assistant, and
    how many of the oldest turns were left out for it.

    With `forget` the oldest turns (of user and assistant together; never a system message or the
    last question) are left out until `room` of the `context` tokens are free for the answer.
    Without, all of it has to fit, with one token free. TooLong if it does not, BadConversation if
    it breaks the rules.
    """
    system = (
        messages[:1]
        if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system"
        else []
    )
    turns = messages[len(system) :]

    @cache
    def without(oldest: int) -> list[int]:
        return render_prompt(tokenizer, {"messages": [*system, *turns[2 * oldest :]]}, go_on=True)

    if len(without(0)) <= context - (max(1, min(room, context // 2)) if forget else 1):
        return without(0), 0
    most = max(0, (len(turns) - 1) // 2) if forget else 0
    wanted = context - max(1, min(room, context // 2))
    forgotten = bisect_left(range(most), True, key=lambda oldest: len(without(oldest)) <= wanted)
    if len(without(forgotten)) < context:  # the last question stays, with whatever room it leaves
        return without(forgotten), forgotten
    what, instead = (
        ("the last question", "")
        if forget
        else ("the conversation", ", or leave out the oldest turns")
    )
    raise TooLong(
        f"{what} has {len(without(forgotten)):,} tokens and leaves no room for an answer in the "
        f"model's context of {context:,}; say it in fewer words{instead}"
    )
