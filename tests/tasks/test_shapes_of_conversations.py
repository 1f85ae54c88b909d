"""Conversations as users have them: weights, keys that are not read, shapes and files."""

import gzip
import json

import pyarrow as pa
import pytest

from nanochat.datamodules.chat import jsonl
from nanochat.tasks.jsonl import JSONL
from nanochat.tasks.messages import Messages
from nanochat.tokenizer import train_bpe
from nanochat.tokenizer.conversations import BadConversation, check, render

ASK, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TALK = {"messages": [ASK, ANSWER]}
TALKS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
    for i in range(60)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["why q a 1 2 3"] * 4, 265, max_chars=None, doc_cap=None)


def trained(tokenizer, messages) -> str:
    ids, mask = render(tokenizer, {"messages": messages})
    return tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])


@pytest.mark.parametrize("key", ["weight", "train", "trainable", "loss"])
@pytest.mark.parametrize("off", [0, False, 0.0])
def test_a_message_of_weight_0_is_seen_and_not_trained(tokenizer, key, off):
    bad = {"role": "assistant", "content": "BAD", key: off}
    good = {"role": "assistant", "content": "GOOD", key: 1 - off}
    messages = [ASK, bad, ASK, good]
    plain = [{k: m[k] for k in ("role", "content")} for m in messages]
    assert trained(tokenizer, messages) == "GOOD<|assistant_end|>"
    assert trained(tokenizer, plain) == "BAD<|assistant_end|>GOOD<|assistant_end|>"
    assert (
        render(tokenizer, {"messages": messages})[0] == render(tokenizer, {"messages": plain})[0]
    ), "it is in the context"


REFUSED = [
    ({**ANSWER, "tool_calls": [{"id": "c1"}]}, "tool_calls"),
    ({**ANSWER, "content": None, "tool_calls": [{"id": "c1"}]}, "tool_calls"),
    ({"role": "assistant", "function_call": {"name": "w"}}, "function_call"),
    ({**ANSWER, "reasoning_content": "2+2"}, "reasoning_content"),
    ({**ANSWER, "name": "Ann"}, "name"),
    ({**ANSWER, "refusal": "no"}, "refusal"),
    ({**ANSWER, "audio": {"id": 1}}, "audio"),
    ({**ANSWER, "made_up": 0}, "made_up"),
    ({**ANSWER, "weight": 0.5}, "weight: 0.5"),
    ({**ANSWER, "weight": "0"}, "weight: '0'"),
    ({**ANSWER, "weight": 2}, "weight: 2"),
    ({**ANSWER, "weight": 0, "train": True}, "weight and train that disagree"),
    (
        {"role": "assistant", "content": [{"type": "text", "text": "a", "weight": 0}]},
        "a part .text. with weight",
    ),
    ({"role": "tool", "content": "4", "tool_call_id": "c1"}, "tool_call_id"),
    ({"role": "tool", "content": "4"}, "role 'tool'"),
]


@pytest.mark.parametrize(("message", "named"), REFUSED)
def test_what_is_not_learnt_is_refused_by_name(tmp_path, message, named):
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps(TALK) + "\n" + json.dumps({"messages": [ASK, message]}))
    with pytest.raises(BadConversation, match=rf"talks\.jsonl line 2: message 1 .*{named}"):
        JSONL(path=path)[1]


def test_what_says_nothing_may_be_there():
    empty = {
        "tool_calls": [],
        "name": None,
        "refusal": None,
        "function_call": None,
        "audio": {},
        "reasoning_content": "",
    }
    check({"messages": [{**ASK, "weight": 0, "name": None}, {**ANSWER, **empty, "weight": None}]})
    with pytest.raises(
        BadConversation, match=r"message 0 .user. has train: True; only what the assistant writes"
    ):
        check({"messages": [{**ASK, "train": True}, ANSWER]})


def test_a_key_beside_the_messages_is_known_ignored_or_refused(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(
        json.dumps({**TALK, "id": 1, "source": "x", "score": 0.5, "tags": ["y"], "tools": []})
    )
    assert JSONL(path=path)[0]["messages"] == TALK["messages"]
    for key in ("tools", "functions", "rejected", "prompt"):
        path.write_text(json.dumps({**TALK, key: [{"type": "function"}]}))
        with pytest.raises(BadConversation, match=f"line 1: it has {key}, which is not read"):
            JSONL(path=path)[0]
        assert JSONL(path=path, ignore=[key])[0]["messages"] == TALK["messages"]


def test_a_column_beside_the_messages_is_known_ignored_or_refused(small_mirror):
    small_mirror("me/talks", [{"messages": [ASK, ANSWER], "id": 1, "tools": "[...]"}])
    with pytest.raises(
        ValueError, match=r"me/talks train also has tools, which would not be read; .*\[tools\]"
    ):
        len(Messages(name="m", dataset="me/talks"))
    assert Messages(name="m", dataset="me/talks", ignore=["tools"])[0] == TALK
    small_mirror("me/calls", [{"messages": [ASK, {**ANSWER, "tool_calls": "f()"}]}])
    with pytest.raises(
        BadConversation, match=r"row 0 of me/calls train: message 1 .assistant. has tool_calls"
    ):
        Messages(name="m", dataset="me/calls")[0]


def write_zst(path, text):
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(text.encode())


LINES = "\n".join(map(json.dumps, TALKS))
FILES = {
    "lines.jsonl": lambda p: p.write_text(LINES),
    "crlf.jsonl": lambda p: p.write_bytes(LINES.replace("\n", "\r\n").encode()),
    "bom.jsonl": lambda p: p.write_text("\ufeff" + LINES),
    "list.json": lambda p: p.write_text(json.dumps(TALKS)),
    "indented.json": lambda p: p.write_text(json.dumps(TALKS, indent=1)),
    "arrays.json": lambda p: p.write_text(json.dumps([t["messages"] for t in TALKS])),
    "lines.jsonl.gz": lambda p: p.write_bytes(gzip.compress(LINES.encode())),
    "lines.jsonl.zst": lambda p: write_zst(p, LINES),
    "list.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps(TALKS, indent=2).encode())),
    "share.jsonl": lambda p: p.write_text(
        "\n".join(
            json.dumps(
                {
                    "conversations": [
                        {"from": "human", "value": t["messages"][0]["content"]},
                        {"from": "gpt", "value": t["messages"][1]["content"]},
                    ]
                }
            )
            for t in TALKS
        )
    ),
    "alpaca.json": lambda p: p.write_text(
        json.dumps(
            [
                {
                    "instruction": t["messages"][0]["content"],
                    "input": "",
                    "output": t["messages"][1]["content"],
                }
                for t in TALKS
            ],
            indent=1,
        )
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_gives_the_same_conversations(tmp_path, name):
    FILES[name](tmp_path / name)
    task = JSONL(path=tmp_path / name)
    assert [{"messages": task[i]["messages"]} for i in range(len(task))] == TALKS
    read = {
        "share": "60 conversations read as ShareGPT",
        "alpac": "60 conversations read as Alpaca",
    }.get(name[:5])
    assert not task.notes() if read is None else read in task.notes()[0]


def test_a_single_conversation_stays_one(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(TALK, indent=1))
    assert JSONL(path=tmp_path / "one.json")[0] == TALK
    (tmp_path / "one.json").write_text(json.dumps(TALK["messages"], indent=1))
    assert JSONL(path=tmp_path / "one.json")[0] == TALK


def test_roles_inputs_and_systems_of_the_shapes(tmp_path):
    path = tmp_path / "talks.jsonl"
    share = {
        "system": "s",
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a", "weight": 0},
        ],
    }
    call = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": "f()"},
        ]
    }
    alpaca = {"instruction": "Add", "input": "1 2", "output": "3", "text": "Below is …"}
    more = {"instruction": "Add", "output": "3", "history": [["q", "a"]]}
    path.write_text("\n".join(map(json.dumps, (share, call, alpaca, more))))
    task = JSONL(path=path)
    assert task[0]["messages"] == [{"role": "system", "content": "s"}, ASK, {**ANSWER, "weight": 0}]
    assert task[2]["messages"] == [
        {"role": "user", "content": "Add\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    for number, named in (
        (1, "line 2: .*role 'function_call'"),
        (3, "line 4: it has history, which is not read"),
    ):
        with pytest.raises(BadConversation, match=named):
            task[number]


def test_another_shape_is_named_with_the_line_that_converts_it(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"id": "7", "prompt": "q", "completion": "a"}))
    with pytest.raises(
        BadConversation,
        match=r"its keys are: id, prompt, completion; .*jq -c .*\.\[.prompt.\].*\.\[.completion.\]",
    ):
        JSONL(path=path)[0]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:-30]),
        ("b.jsonl.gz", b"{}"),
        ("c.jsonl.zst", b"{}"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"{name} is damaged.*; download or write it again"):
        len(JSONL(path=tmp_path / name))


def data(path, tokenizer, tmp_path, **options):
    settings = {
        "sequence_len": 64,
        "num_workers": 0,
        "prepare_workers": 0,
        "rendered_dir": tmp_path / "rendered",
        **options,
    }
    made = jsonl(str(path), str(path), **settings)
    made.attach(tokenizer, batch_tokens=128)
    return made


def test_skipping_counts_each_reason_and_says_when_nothing_is_left(tokenizer, tmp_path):
    path = tmp_path / "talks.jsonl"
    calls, tools = {"messages": [ASK, {**ANSWER, "tool_calls": [1]}]}, {**TALK, "tools": [1]}
    path.write_text("\n".join(map(json.dumps, [TALK, calls, calls, tools])))
    some = data(path, tokenizer, tmp_path, on_bad="skip")
    assert some.shares()[0].bad == 3
    (left_out,) = [note for note in some.notes() if note.startswith("left out of own (train)")]
    assert "2: a message (assistant) has tool_calls" in left_out and "1: it has tools" in left_out
    with pytest.raises(ValueError, match=r"line 2: message 1 .assistant. has tool_calls"):
        data(path, tokenizer, tmp_path).prepare_data()
    path.write_text("\n".join([json.dumps({"q": "x", "a": "y"})] * 60))
    with pytest.raises(
        ValueError,
        match=(
            r"60 of 60 conversations of own break the rules, e\.g\. .*talks\.jsonl line 1: it has "
            r"no list"
        ),
    ):
        data(path, tokenizer, tmp_path, on_bad="skip").setup()


def test_empty_messages_are_trained_as_nanochat_does_and_counted(tokenizer, tmp_path):
    path, special = tmp_path / "talks.jsonl", tokenizer.specials
    silent = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    path.write_text(
        "\n".join(map(json.dumps, [silent, [ASK, {"role": "assistant", "content": []}], TALK]))
    )
    ids, mask = render(tokenizer, {"messages": silent})
    names = ("user_start", "user_end", "assistant_start", "assistant_end")
    assert ids == [tokenizer.bos_id, *(special[f"<|{name}|>"] for name in names)] and mask == [
        0,
        0,
        0,
        0,
        1,
    ]
    made = data(path, tokenizer, tmp_path)
    assert len(made.rows("train").mixture) == 3
    assert (
        "2 conversations of own (train) have an empty message, which is trained as it is"
        in made.notes()
    )


def test_weight_0_and_all_tokens_trained_contradict(tokenizer, tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps([ASK, {**ANSWER, "weight": 0}, ASK, ANSWER]))
    assert (
        "1 conversations of own (train) have messages of weight 0, which are not trained"
        in data(path, tokenizer, tmp_path).notes()
    )
    with pytest.raises(
        ValueError,
        match=r"1 conversations of own have messages of weight 0, and data\.supervise=all",
    ):
        data(path, tokenizer, tmp_path, supervise="all").setup()
