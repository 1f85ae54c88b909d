"""A conversation as token ids and a mask of those the assistant is to learn (facts sheet 3.4).

A conversation is a dict with `messages`, each a `role` (an optional system message, then user and assistant in turn) and `content`: a
string, or for the assistant also a list of parts `{type, text}` of type text, python (a call of the tool) and python_output (its result).
Nothing is cut here: how long a conversation may be is for whoever lays out rows to say and to count.
"""

from collections.abc import Iterator
from typing import Any

from nanochat.tokenizer.tokenizer import Tokenizer

ROLES = ("user", "assistant")
# type of an assistant's part -> (special token before, after, 1 if the assistant writes it)
PARTS: dict[str, tuple[str | None, str | None, int]] = {
    "text": (None, None, 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


class BadConversation(ValueError):
    """A conversation that breaks the rules; the message is the reason."""


def check(conversation: Any, *, answered: bool = True) -> None:
    """Raise BadConversation if it cannot be rendered. `answered`: it must hold a turn of the assistant, and no empty one."""
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if not isinstance(messages, list):
        raise BadConversation("it has no list of messages")
    if not messages:
        raise BadConversation("it is empty")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise BadConversation(f"message {number} has no role and content")
    roles = [message["role"] for message in messages]
    if roles[0] == "system":
        if not isinstance(messages[0]["content"], str):
            raise BadConversation("message 0 (system): its content is not text")
        roles = roles[1:]
    offset = len(messages) - len(roles)
    for number, role in enumerate(roles):
        if role not in ROLES:
            raise BadConversation(
                f"message {number + offset} has the role {role!r}; roles are system (first only), user, assistant"
            )
        if role != ROLES[number % 2]:
            raise BadConversation(
                f"message {number + offset} is of {role} where {ROLES[number % 2]} comes: the roles must take turns, user first"
            )
    if answered and "assistant" not in roles:
        raise BadConversation("it has no turn of the assistant")
    if not roles:
        raise BadConversation("it has no turn of the user")
    for number, message in enumerate(messages[offset:], offset):
        if answered or message["role"] != "assistant" or message["content"] not in ("", []):  # a model may end at once
            _check_content(number, message["role"], message["content"])


def _check_content(number: int, role: str, content: Any) -> None:
    where = f"message {number} ({role})"
    if isinstance(content, str):
        if not content:
            raise BadConversation(f"{where} is empty")
        return
    if role != "assistant" or not isinstance(content, list):
        raise BadConversation(
            f"{where}: its content is not text" + (" or a list of parts" if role == "assistant" else "")
        )
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in PARTS:
            raise BadConversation(f"{where} has a part of type {kind!r}; types are {', '.join(PARTS)}")
        if not isinstance(part.get("text"), str):
            raise BadConversation(f"{where} has a part ({kind}) without text")
    if not any(part["text"] for part in content):
        raise BadConversation(f"{where} is empty")


def merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with a system message, if there is one, put before the first user's, an empty line between them."""
    if messages[0]["role"] != "system":
        return messages
    first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _pieces(messages: list[dict[str, Any]]) -> Iterator[tuple[str, bool, int]]:
    """(text or name of a special token, is it special, mask) in order, after bos."""
    for message in messages:
        role, content = message["role"], message["content"]
        yield f"<|{role}_start|>", True, 0
        if role == "user":
            yield content, False, 0
        else:
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                before, after, mask = PARTS[part["type"]]
                if before is not None:
                    yield before, True, mask
                yield part["text"], False, mask
                if after is not None:
                    yield after, True, mask
        yield f"<|{role}_end|>", True, int(role == "assistant")


def _layout(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    ids, mask = [tokenizer.bos_id], [0]
    for text, special, trained in _pieces(merged(messages)):
        new = [tokenizer.specials[text]] if special else tokenizer.encode(text)
        ids += new
        mask += [trained] * len(new)
    return ids, mask


def render(tokenizer: Tokenizer, conversation: dict[str, Any]) -> tuple[list[int], list[int]]:
    """ids and mask of a whole conversation, equally long; mask 1 where the assistant writes. Each part is encoded by itself.

    Raises BadConversation.
    """
    check(conversation)
    return _layout(tokenizer, conversation["messages"])


def render_prompt(tokenizer: Tokenizer, conversation: dict[str, Any]) -> list[int]:
    """ids of a conversation up to where the assistant is to speak; a last message of the assistant is left out. Raises BadConversation."""
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if (
        isinstance(messages, list)
        and messages
        and isinstance(messages[-1], dict)
        and messages[-1].get("role") == "assistant"
    ):
        messages = messages[:-1]
    check({"messages": messages}, answered=False)
    assert messages is not None
    return [*_layout(tokenizer, messages)[0], tokenizer.specials["<|assistant_start|>"]]
