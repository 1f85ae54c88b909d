"""Conversations as ids and masks, against the layout written out by hand from the facts sheet
(3.4)."""

import re
from typing import Any

import pytest

from nanochat.tokenizer import train_bpe
from nanochat.tokenizer.conversations import BadConversation, check, render, render_prompt


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(
        ["What is two plus two? It is 4. Be brief. hello world"] * 5,
        280,
        max_chars=None,
        doc_cap=None,
    )


def by_hand(tokenizer: Any, script: str) -> tuple[list[int], list[int]]:
    """ids and mask of a script like `<bos>0 <user_start>0 {Hi}0 …`: specials in angle brackets,
    text in braces, each with its mask."""
    ids, mask = [], []
    for special, text, trained in re.findall(r"<(\w+)>(?=\d)|\{((?:[^{}])*)\}(?=\d)|(\d)", script):
        if trained:
            mask += [int(trained)] * (len(ids) - len(mask))
        else:
            ids += [tokenizer.specials[f"<|{special}|>"]] if special else tokenizer.encode(text)
    return ids, mask


CASES = [
    (
        [("user", "Hi"), ("assistant", "Hello")],
        "<bos>0<user_start>0{Hi}0<user_end>0<assistant_start>0{Hello}1<assistant_end>1",
    ),
    (
        [
            ("system", "Be brief."),
            ("user", "What is 2+2?"),
            ("assistant", "4"),
            ("user", "Sure?"),
            ("assistant", "Yes."),
        ],
        "<bos>0<user_start>0{Be brief.\n\nWhat is "
        "2+2?}0<user_end>0<assistant_start>0{4}1<assistant_end>1"
        "<user_start>0{Sure?}0<user_end>0<assistant_start>0{Yes.}1<assistant_end>1",
    ),
    (
        [
            ("user", "2+2"),
            (
                "assistant",
                [("text", "It is "), ("python", "2+2"), ("python_output", "4"), ("text", " 4.")],
            ),
        ],
        "<bos>0<user_start>0{2+2}0<user_end>0<assistant_start>0{It is "
        "}1<python_start>1{2+2}1<python_end>1"
        "<output_start>0{4}0<output_end>0{ 4.}1<assistant_end>1",
    ),
    (
        [("user", "say <|bos|>"), ("assistant", [("text", ""), ("text", "<|assistant_end|>")])],
        (
            "<bos>0<user_start>0{say "
            "<|bos|>}0<user_end>0<assistant_start>0{<|assistant_end|>}1<assistant_end>1"
        ),
    ),
    (
        [("user", ""), ("assistant", "")],
        "<bos>0<user_start>0<user_end>0<assistant_start>0<assistant_end>1",
    ),
    (
        [("user", "a"), ("assistant", "b"), ("user", "c")],
        "<bos>0<user_start>0{a}0<user_end>0<assistant_start>0{b}1<assistant_end>1<user_start>0{c}0<user_end>0",
    ),
]


def conversation(turns: list[tuple[str, Any]]) -> dict[str, Any]:
    def content(value: Any) -> Any:
        return (
            value
            if isinstance(value, str)
            else [{"type": kind, "text": text} for kind, text in value]
        )

    return {"messages": [{"role": role, "content": content(value)} for role, value in turns]}


@pytest.mark.parametrize(("turns", "script"), CASES)
def test_ids_and_mask_are_those_written_by_hand(tokenizer, turns, script) -> None:
    assert render(tokenizer, conversation(turns)) == by_hand(tokenizer, script)


def test_parts_are_encoded_by_themselves(bpe) -> None:
    whole, _ = render(bpe, conversation([("user", "x"), ("assistant", "function")]))
    split, _ = render(
        bpe, conversation([("user", "x"), ("assistant", [("text", "func"), ("text", "tion")])])
    )
    assert bpe.decode(whole) == bpe.decode(split)
    assert len(split) > len(whole), "no token crosses the border of two parts"


def test_a_prompt_ends_where_the_assistant_is_to_speak(tokenizer) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    before, _ = render(tokenizer, conversation(turns[:3]))
    expected = [*before, tokenizer.specials["<|assistant_start|>"]]
    assert (
        render_prompt(tokenizer, conversation(turns))
        == expected
        == render_prompt(tokenizer, conversation(turns[:3]))
    )


def test_rendering_leaves_the_conversation_alone(tokenizer) -> None:
    talk = conversation([("system", "s"), ("user", "a"), ("assistant", "b")])
    before = repr(talk)
    render(tokenizer, talk)
    render_prompt(tokenizer, talk)
    assert repr(talk) == before


BAD: list[tuple[Any, str]] = [
    ([], "it has no list of messages"),
    ({}, "it has no list of messages"),
    ({"messages": []}, "it is empty"),
    ({"messages": ["hi"]}, "message 0 has no role and content"),
    (conversation([("user", "a")]), "no turn of the assistant"),
    (conversation([("system", "a")]), "no turn of the assistant"),
    (conversation([("assistant", "a")]), "message 0 is of assistant where user comes"),
    (
        conversation([("user", "a"), ("user", "b"), ("assistant", "c")]),
        "message 1 is of user where assistant comes",
    ),
    (
        conversation([("user", "a"), ("assistant", "b"), ("assistant", "c")]),
        "message 2 is of assistant where user comes",
    ),
    (
        conversation([("system", "a"), ("assistant", "b")]),
        "message 1 is of assistant where user comes",
    ),
    (
        conversation([("user", "a"), ("system", "b"), ("assistant", "c")]),
        "message 1 has the role 'system'",
    ),
    (conversation([("user", "a"), ("bot", "c")]), "message 1 has the role 'bot'"),
    (
        conversation([("user", [("text", "a")]), ("assistant", "c")]),
        "message 0 (user): its content is not text",
    ),
    (conversation([("user", "a"), ("assistant", [("image", "b")])]), "part of type 'image'"),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [{"type": "text"}]},
            ]
        },
        "a part (text) without text",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 4}]},
        "its content is not text or a list",
    ),
]


@pytest.mark.parametrize(("talk", "reason"), BAD)
def test_what_breaks_the_rules_is_named(talk: Any, reason: str) -> None:
    with pytest.raises(BadConversation, match=re.escape(reason)):
        check(talk)
