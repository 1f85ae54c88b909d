"""Rewards as plug-ins: their sum, and an error that names function and item for whatever is no
number."""

import math
import time

import pytest
from rollouts import Sums, rollout

from nanochat.rl.rewards import Answer, Format, Length, Rewards

TASK = Sums()


def rewards(function, **more) -> Rewards:
    """One reward called mine, given as an object."""
    made = Rewards({"mine": {"_target_": "nanochat.rl.rewards.Answer", **more}})
    made.of["mine"].function = function
    return made


def test_the_reward_is_the_weighted_sum_of_its_parts() -> None:
    given = Rewards(
        {
            "answer": {"_target_": "nanochat.rl.rewards.Answer", "weight": 2.0},
            "length": {
                "_target_": "nanochat.rl.rewards.Length",
                "free": 1,
                "longest": 3,
                "weight": 0.5,
            },
        }
    )
    rollouts = [rollout("1"), rollout("xx"), rollout("xxxx1")]
    given.give(rollouts, TASK)
    assert [r.rewards for r in rollouts] == [
        {"answer": 1.0, "length": 0.0},
        {"answer": 0.0, "length": -0.5},
        {"answer": 0.0, "length": -1.0},
    ]
    assert [r.reward for r in rollouts] == [2.0, -0.25, -0.5]


def test_strict_is_the_tasks_own_score_and_lenient_a_persons() -> None:
    rollouts = [rollout(text) for text in ("1", "1.0", " 1.", "$1", "2")]
    assert Answer("strict")(rollouts, TASK) == [1, 0, 0, 0, 0]
    assert Answer("lenient")(rollouts, TASK) == [1, 1, 1, 1, 0]
    with pytest.raises(ValueError, match="grader='kind' is not known; choose from lenient, strict"):
        Answer("kind")


def test_format_wants_an_end_and_the_mark_once_where_the_task_has_it() -> None:
    assert Format()([rollout("1"), rollout("1", reason="length")], TASK) == [1.0, 0.0]
    marked = [rollout(text) for text in ("so #### 1", "#### 1 #### 2", "1")]
    for one in marked:
        one.conversation = {"messages": [{}, {"content": [{"type": "text", "text": "#### 1"}]}]}
    assert Format()(marked, TASK) == [1.0, 0.0, 0.0]


def test_length_falls_from_free_to_longest() -> None:
    made = Length(free=2, longest=6)
    assert made([rollout("x" * n) for n in (1, 2, 3, 6, 9)], TASK) == [0, 0, -0.25, -1, -1]
    with pytest.raises(ValueError, match="free=3 and longest=3"):
        Length(3, 3)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([1.0, math.nan], "nan"),
        ([1.0, None], "None"),
        ([1.0, math.inf], "inf"),
        ([0.5, "1"], "'1'"),
    ],
)
def test_what_is_no_number_names_function_and_item(values, named: str) -> None:
    rollouts = [rollout("a", 0), rollout("b", 3, 5)]
    with pytest.raises(
        ValueError, match=rf"rewards.mine gave {named} for question 3 of sums, sample 5 \('b'\)"
    ):
        rewards(lambda rollouts, task: values).give(rollouts, TASK)


def test_a_missing_field_and_whatever_is_raised_name_function_and_item() -> None:
    def needs(rollouts, task):
        return [float(one.conversation["level"]) for one in rollouts]

    rollouts = [rollout("a", 0), rollout("b", 3)]
    rollouts[0].conversation["level"] = 1
    with pytest.raises(
        ValueError,
        match=(
            r"rewards.mine failed for question 3 of sums, sample 0 \('b'\): there is no field "
            r"'level'"
        ),
    ):
        rewards(needs).give(rollouts, TASK)
    with pytest.raises(ValueError, match=r"question 0 of sums.*ZeroDivisionError"):
        rewards(lambda rollouts, task: [1 / 0]).give(rollouts, TASK)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0, 1.0], 1.0, None])
def test_a_number_for_each_rollout(values) -> None:
    with pytest.raises(ValueError, match=r"rewards.mine gave .* 2 rollouts"):
        rewards(lambda rollouts, task: values).give([rollout("a"), rollout("b")], TASK)


def test_a_reward_that_takes_too_long_is_an_error() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"rewards.mine took more than 0.05 s for 1 rollouts, the first for question 0 .*; "
            r"raise rewards.mine.timeout"
        ),
    ):
        rewards(lambda rollouts, task: time.sleep(5), timeout=0.05).give([rollout("a")], TASK)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "no reward has a weight"),
        ({"a": {"_target_": "nanochat.rl.rewards.Answer", "weight": 0}}, "no reward has a weight"),
        (
            {"a": {"_target_": "nanochat.rl.rewards.Answer", "weight": "much"}},
            "rewards.a.weight=much must be a number",
        ),
        (
            {"a": {"_target_": "nanochat.rl.rewards.Answer", "timeout": 0}},
            "rewards.a.timeout=0 must be a number above 0",
        ),
        (
            {"a": {"_target_": "builtins.int"}},
            "rewards.a names builtins.int, which cannot be called",
        ),
    ],
)
def test_settings_that_make_no_sense(settings, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Rewards(settings)
