"""A conversation as token ids, with a mask of the tokens that are trained (facts sheet 3.4).

A conversation is a dict with `messages`. Each message has a `role` (an optional system message
first, then user and assistant in turn) and a `content`: a string, or, for the assistant, also a
list of parts `{type, text}`. Part types are text, python (a tool call) and python_output (its
result).

A message may be empty, as in nanochat's training. `weight: 0` on an assistant message (also train,
trainable or loss, with true, false, 0 or 1) excludes it from the loss. Any other key with a value
is an error that names the key.

Nothing is truncated here: the code that packs rows decides about length and counts what it drops.
"""

from collections.abc import Iterator
from typing import Any

from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer

ROLES = ("user", "assistant")
# part type -> (special token before, special token after, 1 if the assistant writes it)
PARTS: dict[str, tuple[str | None, str | None, int]] = {
    "text": (None, None, 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


# weight is OpenAI's name; the others are used by axolotl and similar tools
WEIGHTS = ("weight", "train", "trainable", "loss")


class BadConversation(ValueError):
    """A conversation that breaks the rules. `reason` says how; the message starts with its
    location, `where`."""

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason


def says_nothing(value: Any) -> bool:
    """Whether a key with this value can be ignored: it is null or empty."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def is_trained(message: dict[str, Any]) -> bool:
    """Whether this assistant message is trained."""
    return all(message[key] is None or bool(message[key]) for key in WEIGHTS if key in message)


def is_empty(message: dict[str, Any]) -> bool:
    content = message["content"]
    return not (content if isinstance(content, str) else any(part["text"] for part in content))


def check(conversation: Any, *, answered: bool = True) -> None:
    """Raise BadConversation if the conversation cannot be rendered.

    With `answered` it needs at least one assistant turn. Without it, no user turn may be empty.
    """
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
                f"message {number + offset} has the role {role!r}; roles are system (first only), "
                "user, assistant"
            )
        if role != ROLES[number % 2]:
            raise BadConversation(
                f"message {number + offset} is of {role} where {ROLES[number % 2]} comes: the "
                "roles must take turns, user first"
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
    where = f"message {number}" + (
        f" ({message['role']})" if isinstance(message.get("role"), str) else ""
    )
    for key, value in message.items():
        if key in ("role", "content") or says_nothing(value):
            continue
        if key not in WEIGHTS:
            raise BadConversation(
                f"{where} has {key}, which is not learnt; a message has role, content and weight"
            )
        if not isinstance(value, int | float) or value not in (0, 1):
            raise BadConversation(
                f"{where} has {key}: {value!r}; it must be 0 or 1, or true or false"
            )
        if value and message.get("role") in ("user", "system"):
            raise BadConversation(
                f"{where} has {key}: {value!r}; only what the assistant writes is trained"
            )
    if len({bool(message[key]) for key in WEIGHTS if message.get(key) is not None}) > 1:
        raise BadConversation(
            f"{where} has {' and '.join(key for key in WEIGHTS if key in message)} that disagree"
        )


def _check_content(number: int, role: str, content: Any) -> None:
    where = f"message {number} ({role})"
    if isinstance(content, str):
        return
    if role != "assistant" or not isinstance(content, list):
        raise BadConversation(
            f"{where}: its content is not text"
            + (" or a list of parts" if role == "assistant" else "")
        )
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in PARTS:
            raise BadConversation(
                f"{where} has a part of type {kind!r}; types are {', '.join(PARTS)}"
            )
        if not isinstance(part.get("text"), str):
            raise BadConversation(f"{where} has a part ({kind}) without text")
        if extra := [
            key for key in part if key not in ("type", "text") and not says_nothing(part[key])
        ]:
            raise BadConversation(
                f"{where} has a part ({kind}) with {extra[0]}; a part has type and text"
            )


def merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with a system message merged into the first user message after it, separated by
    an empty line."""
    if messages[0]["role"] != "system":
        return messages
    first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _pieces(messages: list[dict[str, Any]]) -> Iterator[tuple[str, bool, int]]:
    """(text or name of a special token, whether it is special, mask) in order, without the bos
    token."""
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


def check_chat_tokens(tokenizer: Tokenizer) -> None:
    """ValueError if the tokenizer has no special tokens to lay out conversations with."""
    if missing := [name for name in SPECIAL_TOKENS if name not in tokenizer.specials]:
        raise ValueError(
            f"its tokenizer has no {missing[0]}, which conversations need; convert the model with "
            "them: python -m nanochat.import src=hf:… out=DIR chat_tokens=true"
        )


def _layout(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    check_chat_tokens(tokenizer)
    ids, mask = [tokenizer.bos_id], [0]
    for text, special, trained in _pieces(merged(messages)):
        new = [tokenizer.specials[text]] if special else tokenizer.encode(text)
        ids += new
        mask += [trained] * len(new)
    return ids, mask


def render(tokenizer: Tokenizer, conversation: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Token ids and mask of a whole conversation, two lists of one length; the mask is 1 where the
    assistant writes. Each part is encoded separately.

    Raises BadConversation.
    """
    check(conversation)
    return _layout(tokenizer, conversation["messages"])


def render_prompt(
    tokenizer: Tokenizer, conversation: dict[str, Any], *, go_on: bool = False
) -> list[int]:
    """Token ids of a conversation up to the point where the assistant answers.

    A final assistant message is dropped. With `go_on` it is kept and left open, so that the model
    continues it. Raises BadConversation.
    """
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    answered = (
        isinstance(messages, list)
        and bool(messages)
        and isinstance(messages[-1], dict)
        and messages[-1].get("role") == "assistant"
    )
    if answered and go_on:
        check({"messages": messages}, answered=False)
        if tokenizer.template is not None:
            return tokenizer.template(conversation["messages"], True)
        return _layout(tokenizer, conversation["messages"])[0][:-1]
    if answered:
        messages = conversation["messages"][:-1]
    check({"messages": messages}, answered=False)
    assert messages is not None
    if tokenizer.template is not None:
        return tokenizer.template(messages, False)
    return [*_layout(tokenizer, messages)[0], tokenizer.specials["<|assistant_start|>"]]
