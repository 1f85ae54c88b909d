"""Slices, errors and settings that hold for every task."""

import pickle

import pytest

from nanochat.tasks import Task
from nanochat.tokenizer.conversations import BadConversation


class Numbers(Task):
    kind = "chat"

    def __init__(self, count: int = 10, word: str = "number", **common):
        super().__init__(name="numbers", **common)
        self.count, self.word = count, word

    def total(self):
        return self.count

    def conversation(self, i):
        if i == 7:
            raise BadConversation("seven is bad")
        said = [
            {"role": "user", "content": f"{self.word} {i}"},
            {"role": "assistant", "content": str(i)},
        ]
        return {"messages": said}


def taken(**slices) -> list[int]:
    task = Numbers(**slices)
    return [task._indices[k] for k in range(len(task))]


def test_a_slice_takes_what_python_would():
    for start, stop, step in [
        (0, None, 1),
        (3, None, 1),
        (0, 10, 3),
        (2, 9, 2),
        (9, 10, 1),
        (0, 4, 7),
    ]:
        assert taken(start=start, stop=stop, step=step) == list(range(10))[start:stop:step], (
            start,
            stop,
            step,
        )
    task = Numbers(start=2, stop=9, step=3)
    assert [c["messages"][1]["content"] for c in (task[0], task[1], task[2])] == ["2", "5", "8"]
    assert len(Numbers(repeat=4)) == 10, "repeat is for mixtures"


@pytest.mark.parametrize("i", [3, -1, 100])
def test_out_of_range_is_an_index_error(i):
    with pytest.raises(IndexError, match=f"numbers has no conversation {i}; it has 3"):
        Numbers(stop=3)[i]


@pytest.mark.parametrize(
    ("slices", "line"),
    [
        ({"start": -1}, "start=-1 must be a whole number from 0 up"),
        ({"start": 5, "stop": 5}, "stop=5 must be a whole number from 6 up"),
        ({"step": 0}, "step=0 must be a whole number from 1 up"),
        ({"repeat": 0}, "repeat=0 must be a whole number from 1 up"),
        ({"stop": 2.5}, r"stop=2\.5 must be a whole number"),
        ({"start": True}, "start=True must be a whole number"),
    ],
)
def test_a_slice_that_makes_no_sense_fails_at_once(slices, line):
    with pytest.raises(ValueError, match=line):
        Numbers(**slices)


@pytest.mark.parametrize(
    ("slices", "line"),
    [
        ({"stop": 11}, "stop=11 is past the end of numbers: it has 10 conversations; lower stop"),
        (
            {"start": 10},
            "start=10 is past the end of numbers: it has 10 conversations; lower start",
        ),
    ],
)
def test_a_slice_past_the_end_fails_when_the_length_is_known(slices, line):
    with pytest.raises(ValueError, match=line):
        len(Numbers(**slices))


def test_settings_change_with_what_decides_the_conversations():
    first = Numbers().settings()
    assert first == Numbers().settings() == Numbers(repeat=3).settings()
    for other in (
        Numbers(start=1),
        Numbers(stop=9),
        Numbers(step=2),
        Numbers(count=11),
        Numbers(word="digit"),
    ):
        assert other.settings() != first
    assert first["task"].endswith("Numbers") and first["total"] == 10


def test_chat_has_no_score():
    with pytest.raises(ValueError, match="numbers is chat, which has no right or wrong answers"):
        Numbers().score(Numbers()[0], "0")


def test_what_was_loaded_is_not_pickled():
    task = Numbers()
    assert len(task) == 10 and "_indices" in vars(task)
    again = pickle.loads(pickle.dumps(task))
    assert "_indices" not in vars(again) and again[3] == task[3]
