"""The chat template of an export, rendered by transformers, gives the ids and the mask of
tokenizer/conversations.py."""

import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat.export.text_files import CUT, write_text_files
from nanochat.serve.api.messages import ChatMessage, Tool
from nanochat.serve.api.tools import as_turns
from nanochat.tasks.arithmetic import Arithmetic
from nanochat.tasks.spelling import SpellingBee
from nanochat.tokenizer.conversations import render, render_prompt
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, CharTokenizer

transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install '.[hub]'"
)
sys.path.append(str(Path(__file__).parents[1] / "tokenizer"))
from test_conversations import BAD, CASES, conversation  # noqa: E402


def load(tokenizer, folder: Path) -> Any:
    write_text_files(folder, tokenizer, "sft", 256)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    return load(tokenizer, tmp_path_factory.mktemp("words"))


def ids(theirs, messages: list[dict], **more: Any) -> list[int]:
    return theirs.apply_chat_template(messages, return_dict=False, **more)


ODD = [
    conversation([("user", f"({name}x '{name} \n{name}"), ("assistant", f"{name}{name}")])
    for name in SPECIAL_TOKENS
]
PARTS = conversation(
    [("user", "a"), ("assistant", [("text", "hel"), ("text", "lo"), ("text", "")])]
)
WEIGHTS = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "not learnt", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "learnt"},
    ]
}
TASKS = [Arithmetic(size=9)[3], SpellingBee(size=9, path="library")[1]]


@pytest.mark.parametrize(
    "talk", [*(conversation(turns) for turns, _ in CASES), *ODD, PARTS, WEIGHTS, *TASKS]
)
def test_ids_and_mask_are_ours(tokenizer, theirs, talk) -> None:
    messages = talk["messages"]
    expected, mask = render(tokenizer, talk)
    found = theirs.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found["input_ids"] == expected
    assert found["assistant_masks"] == mask
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if messages[0]["content"]:  # ours asks nothing of an empty turn
        asked = ids(theirs, messages, add_generation_prompt=True)
        assert asked == render_prompt(tokenizer, {"messages": messages})


def test_the_cut_is_needed(theirs, tokenizer) -> None:
    """Without it a special token in a text would be that token: what the template is
    compared with can differ."""
    assert theirs("<|user_end|>", add_special_tokens=False)["input_ids"] == [
        tokenizer.specials["<|user_end|>"]
    ]
    with pytest.raises(Exception, match=r"U\+FDD0"):
        ids(theirs, [{"role": "user", "content": f"a{CUT}b"}])


def test_calls_of_functions_are_as_the_server_writes_them(tokenizer, theirs) -> None:
    function = {
        "name": "add",
        "description": "Adds two\n numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}},
    }
    tools = [{"type": "function", "function": function}]
    call = {"id": "c1", "type": "function"}
    written = {**call, "function": {"name": "add", "arguments": '{"a":1,"b":2}'}}
    as_a_dict = {**call, "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+2?"}]
    result = {"role": "tool", "tool_call_id": "c1", "content": "3"}
    after = [{"role": "assistant", "content": "It is 3."}, {"role": "user", "content": "and 3+3?"}]
    for number, one in enumerate((written, as_a_dict)):
        asked = {"role": "assistant", "content": "I ask." if number else None, "tool_calls": [one]}
        ours = {**asked, "tool_calls": [written]}
        for tail in ([result], [result, *after]):
            turns = as_turns(
                [ChatMessage(**m) for m in [*before, ours, *tail]], [Tool(**t) for t in tools]
            )
            found = ids(theirs, [*before, asked, *tail], tools=tools, add_generation_prompt=True)
            assert found == render_prompt(tokenizer, {"messages": turns}, go_on=len(tail) == 1)


def test_what_breaks_the_rules_is_refused(theirs) -> None:
    for talk, reason in BAD:
        messages = talk["messages"] if isinstance(talk, dict) and talk.get("messages") else []
        if "no turn of the assistant" in reason or not all(isinstance(m, dict) for m in messages):
            continue  # a prompt has none
        with pytest.raises(Exception, match=r"turn|speaks first|roles|type|text|empty|iterable"):
            ids(theirs, messages)


def test_text_is_encoded_as_by_ours(tokenizer, theirs, tmp_path: Path) -> None:
    text = "What is 12345?\n\n  It's 4…  naïve 東京 🙂\r\n"
    assert theirs(text)["input_ids"] == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert theirs.decode(tokenizer.encode(text)) == text
    chars = CharTokenizer("".join(sorted(set(text))))
    letters = load(chars, tmp_path)
    assert letters(text)["input_ids"] == [chars.bos_id, *chars.encode(text)]
    assert letters.decode(chars.encode(text)) == text
