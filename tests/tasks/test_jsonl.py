import json
import pickle

import pytest

from nanochat.tasks.jsonl import JSONL
from nanochat.tokenizer.conversations import BadConversation

HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
TOOL = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "1+1?"},
    {
        "role": "assistant",
        "content": [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}],
    },
]


def write(tmp_path, *lines) -> str:
    path = tmp_path / "talks.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return str(path)


def test_arrays_and_objects_in_file_order(tmp_path, rules):
    task = JSONL(path=write(tmp_path, HI, "", "  ", {"messages": TOOL, "source": "me"}, HI))
    assert [task[i] for i in range(len(task))] == [
        {"messages": HI},
        {"messages": TOOL, "source": "me"},
        {"messages": HI},
    ]
    assert not any(rules(task[i]) for i in range(3))
    again = pickle.loads(pickle.dumps(task))
    assert again[1] == task[1] and again.settings() == task.settings()


def test_settings_follow_the_content_not_the_place(tmp_path):
    first = JSONL(path=write(tmp_path, HI)).settings()
    (tmp_path / "other").mkdir()
    assert JSONL(path=write(tmp_path / "other", HI)).settings() == first
    assert JSONL(path=write(tmp_path, HI, TOOL)).settings() != first


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('"text"', "it has no list of messages"),
        ("[]", "it is empty"),
        ({"message": HI}, "it has no list of messages"),
        ([HI[1], HI[0]], "message 0 is of assistant where user comes"),
        ([HI[0], HI[0]], "message 1 is of user where assistant comes"),
        ([HI[0]], "it has no turn of the assistant"),
        ([HI[0], {"role": "assistant", "content": 5}], "message 1 .*not text"),
        (
            [HI[0], {"role": "assistant", "content": [{"type": "image", "text": ""}]}],
            ".*type 'image'",
        ),
        ([{"role": "tool", "content": "x"}], ".*role 'tool'"),
    ],
)
def test_a_conversation_that_breaks_the_rules_is_named_with_file_line_and_reason(
    tmp_path, line, reason
):
    task = JSONL(path=write(tmp_path, HI, "", line, HI))
    assert len(task) == 3 and task[0] == task[2] == {"messages": HI}, "the others are there"
    with pytest.raises(BadConversation, match=rf"talks\.jsonl line 3: {reason}"):
        task[1]
    assert task.settings() == JSONL(path=task.path).settings()


@pytest.mark.parametrize("line", ["{not json", "[", "\xff"])
def test_a_line_that_is_no_json_fails_at_once(tmp_path, line):
    (tmp_path / "talks.jsonl").write_bytes(json.dumps(HI).encode() + b"\n" + line.encode("latin1"))
    with pytest.raises(ValueError, match=r"talks\.jsonl line 2 is not JSON \(.*\)"):
        len(JSONL(path=tmp_path / "talks.jsonl"))


def test_train_and_test_share_nothing_and_lose_nothing(tmp_path):
    talks = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n)}]
        for n in range(300)
    ]
    path = write(tmp_path, *talks)
    everything, train, test = (
        JSONL(path=path, split=split, held_out=0.2) for split in ("all", "train", "test")
    )
    found = [[task[i]["messages"] for i in range(len(task))] for task in (everything, train, test)]
    assert found[0] == talks
    assert sorted(found[1] + found[2], key=talks.index) == talks and 30 < len(test) < 90
    assert len({json.dumps(t.settings()) for t in (everything, train, test)}) == 3
    for wrong, line in (
        ({"split": "val"}, "split=val is not known; set `split` to all, train or test"),
        ({"held_out": 0}, "held_out=0 must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=line):
            JSONL(path=path, **wrong)
    with pytest.raises(
        ValueError, match=r"holds no conversation for test at held_out=1e-09; raise it"
    ):
        len(JSONL(path=path, split="test", held_out=1e-9))


def test_a_missing_or_empty_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path=.*none\.jsonl is not a file; set `path`"):
        JSONL(path=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no conversation"):
        len(JSONL(path=write(tmp_path, "", " ")))
