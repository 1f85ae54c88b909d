"""Formats in which conversations are stored: messages, ShareGPT, Alpaca. Content that cannot be
read is an error that names it; nothing is dropped."""

from collections.abc import Collection
from typing import Any

from nanochat.tokenizer.conversations import BadConversation, says_nothing

# Keys next to a conversation that only describe it. Any other key with a value could change what is
# trained (tools, a second answer), so it is an error until `ignore` names it.
METADATA = frozenset(
    "id idx index uuid uid hash conversation_id conversation_hash conv_id dialogue_id message_id "
    "parent_id thread_id prompt_id task_id source sources source_split dataset dataset_name origin "
    "url split subset category topic full_topic domain services tags labels language lang license "
    "author model model_name generator created created_at date timestamp version score scores "
    "rating quality difficulty turn turns num_turns num_tokens length metadata meta title".split()
)
SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
NAMES = {
    "ShareGPT": "ShareGPT (from and value)",
    "Alpaca": "Alpaca (instruction, input and output)",
}


def to_conversation(value: Any, ignore: Collection[str] = ()) -> tuple[dict[str, Any], str]:
    """A JSON value as a conversation, with the name of its format.

    `ignore` names keys that may be skipped. BadConversation for an unknown format, or for content
    that would not be read.
    """
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise BadConversation("it has no list of messages")
    key = next(
        (
            key
            for key in ("messages", "conversations", "conversation")
            if isinstance(value.get(key), list)
        ),
        None,
    )
    if key is None and {"instruction", "output"} <= set(value):
        return _alpaca(value, ignore), "Alpaca"
    if key is None:
        raise BadConversation(f"it has no list of messages{_advice(value)}")
    messages = value[key]
    if not any(isinstance(message, dict) and "from" in message for message in messages):
        _check_rest(value, {key}, ignore)
        return {**({} if key == "messages" else {"messages": messages}), **value}, "messages"
    _check_rest(value, {key, "system"}, ignore)
    before = [{"role": "system", "content": value["system"]}] if value.get("system") else []
    return {
        "messages": [*before, *(_sharegpt(number, m) for number, m in enumerate(messages))]
    }, "ShareGPT"


def _sharegpt(number: int, message: Any) -> Any:
    if not isinstance(message, dict) or "from" not in message or "value" not in message:
        raise BadConversation(f"message {number} has no from and value, unlike the others")
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    given = message["from"]
    return {
        "role": SHAREGPT.get(given, given) if isinstance(given, str) else given,
        "content": message["value"],
        **rest,
    }


def _alpaca(value: dict[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    # `text` repeats the other three, filled into a template
    _check_rest(value, {"instruction", "input", "output", "system", "text"}, ignore)
    for key in ("instruction", "input", "output", "system"):
        if not isinstance(value.get(key, ""), str | None):
            raise BadConversation(f"its {key} is not text")
    question = "\n\n".join(text for text in (value["instruction"], value.get("input")) if text)
    before = [{"role": "system", "content": value["system"]}] if value.get("system") else []
    return {
        "messages": [
            *before,
            {"role": "user", "content": question},
            {"role": "assistant", "content": value["output"] or ""},
        ]
    }


def _check_rest(value: dict[str, Any], read: set[str], ignore: Collection[str]) -> None:
    for key, held in value.items():
        if key not in read and key not in METADATA and key not in ignore and not says_nothing(held):
            raise BadConversation(
                f"it has {key}, which is not read; take it out, or name it in `ignore`"
            )


def _advice(value: dict[str, Any]) -> str:
    """The keys of `value`, and a command line that makes messages of the first two that
    are text."""
    texts = [key for key, held in value.items() if isinstance(held, str) and key not in METADATA]
    line = ""
    if len(texts) > 1:
        user, assistant = texts[:2]
        messages = ", ".join(
            f'{{role: "{role}", content: .["{key}"]}}'
            for role, key in (("user", user), ("assistant", assistant))
        )
        line = (
            f"; if {user} is the user's text and {assistant} the assistant's: "
            f"jq -c '{{messages: [{messages}]}}' FILE > talks.jsonl"
        )
    return f", its keys are: {', '.join(value) or 'none'}{line}"
