"""50 conversations of every kind, rendered by the code and by an independent, slow reading of the
facts sheet (3.4) into one string of text and names of special tokens, with the loss mask as a
string of the same pieces."""

from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.tasks.arithmetic import Arithmetic
from nanochat.tasks.identity import Identity
from nanochat.tasks.pydocs_qa import PyDocsQA
from nanochat.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat.tasks.task import Task
from nanochat.tokenizer import BPETokenizer, train_bpe
from nanochat.tokenizer.conversations import render

COUNT = 50


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    texts = [str(PyDocsQA(size=200)[i]["messages"]) for i in range(200)]
    return train_bpe(texts, 700, max_chars=None, doc_cap=None)


def pieces(conversation: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(special or text, what it says, mask), read off the rules one by one."""
    messages = [dict(m) for m in conversation["messages"]]
    if messages[0]["role"] == "system":
        text = messages.pop(0)["content"]
        messages[0]["content"] = text + "\n" + "\n" + messages[0]["content"]
    yield "special", "<|bos|>", 0
    for message in messages:
        if message["role"] == "user":
            yield "special", "<|user_start|>", 0
            yield "text", message["content"], 0
            yield "special", "<|user_end|>", 0
        if message["role"] == "assistant":
            yield "special", "<|assistant_start|>", 0
            content = message["content"]
            for part in (
                [{"type": "text", "text": content}] if isinstance(content, str) else content
            ):
                if part["type"] == "text":
                    yield "text", part["text"], 1
                if part["type"] == "python":
                    yield "special", "<|python_start|>", 1
                    yield "text", part["text"], 1
                    yield "special", "<|python_end|>", 1
                if part["type"] == "python_output":
                    yield "special", "<|output_start|>", 0
                    yield "text", part["text"], 0
                    yield "special", "<|output_end|>", 0
            yield "special", "<|assistant_end|>", 1


def assert_as_written(task: Task, tokenizer: BPETokenizer) -> None:
    for number in range(0, len(task), max(len(task) // COUNT, 1)):
        conversation = task[number]
        ids, mask = render(tokenizer, conversation)
        at = 0
        for kind, text, trained in pieces(conversation):
            if kind == "special":
                assert tokenizer.decode([ids[at]]) == text and ids[at] >= tokenizer.vocab_size - 9
                count = 1
            else:
                # as many tokens as spell the text, none of them special
                raw, count = b"", 0
                while len(raw) < len(text.encode()):
                    assert ids[at + count] < tokenizer.vocab_size - 9
                    raw += tokenizer.tokens[ids[at + count]]
                    count += 1
                assert raw == text.encode()
            assert mask[at : at + count] == [trained] * count, (text, trained)
            at += count
        assert at == len(ids) == len(mask)


@pytest.mark.parametrize(
    "task",
    [
        Arithmetic(size=500),
        PyDocsQA(size=500),
        SimpleSpelling(size=500, path="library"),
        SpellingBee(size=500, path="library"),
        Identity(
            size=500,
            model_name="Ada",
            maker="the Society",
            purpose="help",
            facts={"colour": "blue"},
        ),
    ],
    ids=lambda task: task.name,
)
def test_made_up_conversations_are_rendered_as_written(task: Task, tokenizer: BPETokenizer) -> None:
    assert_as_written(task, tokenizer)


@pytest.mark.parametrize(
    "name",
    [
        "gsm8k",
        "mmlu",
        "arc_easy",
        "arc_challenge",
        "openbookqa",
        "humaneval",
        "dolly",
        "oasst",
        "self_dialogue",
        "schema_guided",
        "topical_chat",
    ],
)
def test_real_conversations_are_rendered_as_written(
    name: str, tokenizer: BPETokenizer, mirror: str
) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import instantiate

    from nanochat.runtime.paths import conf_dir

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(f"task/{name}")["task"]
    if name in ("mmlu", "humaneval"):
        config.split = "test"  # the mirror has no auxiliary_train
    assert_as_written(instantiate(config), tokenizer)
