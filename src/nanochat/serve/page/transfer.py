"""Conversations as a JSON file: what is exported, and what may be imported."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

from nanochat.inference.sampling import Sampling
from nanochat.serve.page.store import VERSION, Conversation, Store
from nanochat.tokenizer.conversations import BadConversation, check

FIELDS = ("title", "model", "settings", "messages", "created", "updated")


def export(store: Store, id: str | None = None, owner: str | None = None) -> str:
    """JSON that `load` reads: of one conversation, or of all."""
    ids = [entry.id for entry in store.entries(owner)] if id is None else [id]
    found = [asdict(c) for each in ids if (c := store.get(each, owner))]
    conversations = [{name: c[name] for name in FIELDS} for c in found]
    whole = {"nanochat_conversations": VERSION, "conversations": conversations}
    return json.dumps(whole, ensure_ascii=False, indent=1)


def load(store: Store, text: str | bytes, owner: str = "") -> list[Conversation]:
    """Add the conversations of an export as new ones, or one that is {"messages": […]} or only a
    list of messages.

    ValueError for a file that cannot be read; then nothing of it is added.
    """
    return store.put_all([replace(conversation, owner=owner) for conversation in parsed(text)])


def parsed(text: str | bytes) -> Iterator[Conversation]:
    """The conversations of a JSON file, none of them stored. ValueError in one line."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        data = json.loads(text)
        text.encode()
        json.dumps(data, ensure_ascii=False).encode()  # \ud800 is no text
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"this is not a JSON file ({error}); choose one that was exported here"
        ) from None
    version = data.get("nanochat_conversations", VERSION) if isinstance(data, dict) else VERSION
    if version != VERSION:
        raise ValueError(
            f"this file is of version {version!r}, which is not {VERSION}; export it again from "
            "there"
        )
    if isinstance(data, dict) and "conversations" in data:
        data = data["conversations"]
    elif isinstance(data, dict) or (
        data and isinstance(data, list) and isinstance(data[0], dict) and "role" in data[0]
    ):
        data = [data]
    if not isinstance(data, list) or not data:
        raise ValueError(
            "this file has no conversations; it should be an export, or a list of messages [{role, "
            "content}, …]"
        )
    for number, item in enumerate(data, 1):
        try:
            yield _checked(item if isinstance(item, dict) else {"messages": item})
        except BadConversation as error:
            raise ValueError(
                f"conversation {number} of {len(data)}: {error}; nothing was imported"
            ) from None


def _checked(item: dict[str, Any]) -> Conversation:
    messages = item.get("messages")
    if messages != []:  # one that was cleared may be empty
        try:
            check({"messages": _without_notes(messages)}, answered=False)
        except RecursionError:
            raise BadConversation("its branches are nested too deep") from None
    assert isinstance(messages, list)
    settings, model, title = item.get("settings", {}), item.get("model"), item.get("title", "")
    if not isinstance(settings, dict):
        raise BadConversation(f"settings={settings!r} is not a dict")
    if not isinstance(model, str | None) or not isinstance(title, str):
        raise BadConversation("model and title must be texts")
    if messages and messages[0]["role"] == "system":
        settings = {**settings, "system": messages[0]["content"]}
        messages = messages[1:]
    return Conversation(
        [_kept(message) for message in messages], _checked_settings(settings), model, title
    )


def _without_notes(messages: Any) -> Any:
    """What `check` has to see: without `made` and `branches`. BadConversation where one of the
    branches cannot follow its question."""
    if not isinstance(messages, list):
        return messages
    plain = [
        {k: v for k, v in m.items() if k not in ("made", "branches")} if isinstance(m, dict) else m
        for m in messages
    ]
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "branches" not in message:
            continue
        kept = message["branches"]
        at, others = (
            (kept.get("at"), kept.get("others")) if isinstance(kept, dict) else (None, None)
        )
        if (
            message.get("role") != "user"
            or not isinstance(others, list)
            or type(at) is not int
            or not 0 <= at <= len(others)
        ):
            raise BadConversation(
                f'message {number} has branches that are not {{"at": number, "others": [messages, '
                "…]} of a question"
            )
        for tail in others:
            check(
                {
                    "messages": [
                        plain[number],
                        *(_without_notes(tail) if isinstance(tail, list) else [tail]),
                    ]
                },
                answered=False,
            )
    return plain


def _kept(message: dict[str, Any]) -> dict[str, Any]:
    """What of a message is kept, that has passed the check."""
    content = message["content"]
    if isinstance(content, list):
        content = [{"type": part["type"], "text": part["text"]} for part in content]
    kept = {"role": message["role"], "content": content}
    if message["role"] == "assistant" and isinstance(message.get("made"), dict):
        kept["made"] = message["made"]
    if "branches" in message:
        others = [[_kept(each) for each in tail] for tail in message["branches"]["others"]]
        kept["branches"] = {"at": message["branches"]["at"], "others": others}
    return kept


def _checked_settings(settings: dict[str, Any]) -> dict[str, Any]:
    known = {"system": str, "random_seed": bool, "sampling": dict}
    for key, value in settings.items():
        if key not in known or not isinstance(value, known[key]):
            raise BadConversation(f"settings have {key}={value!r}; they are {', '.join(known)}")
    sampling = settings.get("sampling", {})
    names = [f.name for f in fields(Sampling)]
    for key in sampling:
        if key not in names:
            raise BadConversation(f"settings.sampling has {key!r}; there are: {', '.join(names)}")
    try:
        Sampling(**sampling)
    except ValueError as error:
        raise BadConversation(f"settings.sampling: {error}") from None
    return settings
