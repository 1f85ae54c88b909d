"""A conversation as token ids and a mask of those the assistant is to learn (facts sheet 3.4).

A conversation is a dict with `messages`, each a `role` (an optional system message, then user and assistant in turn) and `content`: a
string, or for the assistant also a list of parts `{type, text}` of type text, python (a call of the tool) and python_output (its result).
A message may be empty, as nanochat trains it. `weight: 0` on one of the assistant's (or train, trainable, loss: true, false, 0 or 1) keeps
it from being learnt. Any other key that holds something is refused by its name.
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


WEIGHTS = ("weight", "train", "trainable", "loss")  # weight is OpenAI's; the others are axolotl's and its like


class BadConversation(ValueError):
    """A conversation that breaks the rules: the `reason`, and before it in the message where it is."""

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason


def says_nothing(value: Any) -> bool:
    """Whether a key with this value might as well not be there: null, or empty."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def is_trained(message: dict[str, Any]) -> bool:
    """Whether the assistant's message is to be learnt."""
    return all(message[key] is None or bool(message[key]) for key in WEIGHTS if key in message)


def is_empty(message: dict[str, Any]) -> bool:
    content = message["content"]
    return not (content if isinstance(content, str) else any(part["text"] for part in content))


def check(conversation: Any, *, answered: bool = True) -> None:
    """Raise BadConversation if it cannot be rendered. `answered`: it must hold a turn of the assistant; without, no turn of the user may be
    empty."""
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if not isinstance(messages, list):
        raise BadConversation("it has no list of messages")
    if not messages:
        raise BadConversation("it is empty")
    for number, message in enumerate(messages):
        if isinstance(message, dict):
            _check_keys(number, message)
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
        _check_content(number, message["role"], message["content"])
        if not answered and message["role"] == "user" and not message["content"]:
            raise BadConversation(f"message {number} (user) is empty")


def _check_keys(number: int, message: dict[str, Any]) -> None:
    where = f"message {number}" + (f" ({message['role']})" if isinstance(message.get("role"), str) else "")
    for key, value in message.items():
        if key in ("role", "content") or says_nothing(value):
            continue
        if key not in WEIGHTS:
            raise BadConversation(f"{where} has {key}, which is not learnt; a message has role, content and weight")
        if not isinstance(value, int | float) or value not in (0, 1):
            raise BadConversation(f"{where} has {key}: {value!r}; it must be 0 or 1, or true or false")
        if value and message.get("role") in ("user", "system"):
            raise BadConversation(f"{where} has {key}: {value!r}; only what the assistant writes is trained")
    if len({bool(message[key]) for key in WEIGHTS if message.get(key) is not None}) > 1:
        raise BadConversation(f"{where} has {' and '.join(key for key in WEIGHTS if key in message)} that disagree")


def _check_content(number: int, role: str, content: Any) -> None:
    where = f"message {number} ({role})"
    if isinstance(content, str):
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
        if extra := [key for key in part if key not in ("type", "text") and not says_nothing(part[key])]:
            raise BadConversation(f"{where} has a part ({kind}) with {extra[0]}; a part has type and text")


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
        learnt = int(role == "assistant" and is_trained(message))
        yield f"<|{role}_start|>", True, 0
        if role == "user":
            yield content, False, 0
        else:
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                before, after, mask = PARTS[part["type"]]
                if before is not None:
                    yield before, True, mask * learnt
                yield part["text"], False, mask * learnt
                if after is not None:
                    yield after, True, mask * learnt
        yield f"<|{role}_end|>", True, learnt


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


def render_prompt(tokenizer: Tokenizer, conversation: dict[str, Any], *, go_on: bool = False) -> list[int]:
    """ids of a conversation up to where the assistant is to speak. A last message of the assistant is left out, or with `go_on` not ended,
    so that what follows continues it. Raises BadConversation."""
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    answered = (
        isinstance(messages, list)
        and bool(messages)
        and isinstance(messages[-1], dict)
        and messages[-1].get("role") == "assistant"
    )
    if answered and go_on:
        check({"messages": messages}, answered=False)
        return _layout(tokenizer, conversation["messages"])[0][:-1]
    if answered:
        messages = conversation["messages"][:-1]
    check({"messages": messages}, answered=False)
    assert messages is not None
    return [*_layout(tokenizer, messages)[0], tokenizer.specials["<|assistant_start|>"]]
