"""Branches of a conversation: answers that were made again are kept, each with everything after it.

The messages of a conversation are what is shown. A question with several answers has `branches`:
{"at": n, "others": [messages, …]}, the lists of messages that followed it on other branches, in the
order in which they were begun; the shown one would be number `at` of all. So the conversation is a
tree in which nothing is stored twice, and reading only roles and contents gives one path.
"""

from collections.abc import Iterator
from typing import Any

from nanochat.serve.page.turn import NOTHING

Messages = list[dict[str, Any]]


def branches(messages: Messages, question: int) -> tuple[int, list[Messages]]:
    """The number of the branch that is shown after `messages[question]`, and all of them."""
    kept = messages[question].get("branches", {"at": 0, "others": []})
    at, others = kept["at"], kept["others"]
    return at, [*others[:at], messages[question + 1 :], *others[at:]]


def anew(messages: Messages, question: int) -> Messages:
    """Up to the question, for another answer; what follows it now is kept, if anything was
    answered."""
    now, tails = branches(messages, question)
    if not tails[now] or tails[now][0]["content"] == NOTHING:
        del tails[now]
    return _asked(messages, question, len(tails), tails)


def switched(messages: Messages, question: int, at: int) -> Messages:
    """With branch `at` after the question. ValueError if there is none such.

    >>> old = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"}]
    >>> new = [*anew(old, 0), {"role": "assistant", "content": "4"}]
    >>> [message["content"] for message in switched(new, 0, 0)]
    ['2+2?', '5']
    >>> switched(switched(new, 0, 0), 0, 1) == new
    True
    """
    tails = branches(messages, question)[1]
    if not 0 <= at < len(tails):
        raise ValueError(f"answer {at + 1} of {len(tails)} is not there; load the page again")
    tail = tails.pop(at)
    return [*_asked(messages, question, at, tails), *tail]


def _asked(messages: Messages, question: int, at: int, others: list[Messages]) -> Messages:
    asked = {key: value for key, value in messages[question].items() if key != "branches"}
    return [
        *messages[:question],
        asked | ({"branches": {"at": at, "others": others}} if others else {}),
    ]


def texts(messages: Messages) -> Iterator[str]:
    """Everything that was written, on every branch."""
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content)
        for tail in message.get("branches", {"others": []})["others"]:
            yield from texts(tail)
