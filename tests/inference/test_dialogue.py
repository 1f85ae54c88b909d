"""A conversation is fitted into the context by leaving out its oldest turns, and nothing more than
needed."""

import pytest
from tiny_networks import TOKENIZER

from nanochat.inference.dialogue import fit
from nanochat.inference.request import TooLong
from nanochat.tokenizer.conversations import render_prompt


def talk(turns: int, *, system: bool = False) -> list[dict]:
    """A question of 10 bytes and an answer of 10 for each turn, then a question."""
    messages = [{"role": "system", "content": "be short"}] if system else []
    for n in range(turns):
        messages += [
            {"role": "user", "content": f"question {n}"},
            {"role": "assistant", "content": f"answer   {n}"},
        ]
    return [*messages, {"role": "user", "content": "the last ?"}]


def plain(messages, *, context, room):
    """The definition: one turn less as long as it does not fit."""
    system = [m for m in messages if m["role"] == "system"]
    turns, forgotten = messages[len(system) :], 0
    while (
        len(prompt := render_prompt(TOKENIZER, {"messages": [*system, *turns]})) > context - room
        and len(turns) > 2
    ):
        turns, forgotten = turns[2:], forgotten + 1
    return prompt, forgotten


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 7, 30])
@pytest.mark.parametrize("context", [60, 100, 250])
@pytest.mark.parametrize("room", [1, 20])
def test_only_as_many_of_the_oldest_turns_as_needed_are_forgotten(system, turns, context, room):
    messages = talk(turns, system=system)
    assert fit(TOKENIZER, messages, context=context, room=room, forget=True) == plain(
        messages, context=context, room=room
    )


def test_a_room_of_more_than_half_the_context_is_half_of_it():
    messages = talk(7)
    assert fit(TOKENIZER, messages, context=100, room=10**6, forget=True) == plain(
        messages, context=100, room=50
    )


def test_without_forgetting_all_of_it_fits_or_is_refused():
    prompt = render_prompt(TOKENIZER, {"messages": talk(3)})
    n = len(prompt)
    assert fit(TOKENIZER, talk(3), context=n + 1, room=50, forget=False) == (prompt, 0)
    with pytest.raises(
        TooLong,
        match=f"the conversation has {n} tokens .* context of {n}; .* leave out the oldest turns",
    ):
        fit(TOKENIZER, talk(3), context=n, room=50, forget=False)


def test_a_last_question_that_is_too_long_is_refused_and_one_that_leaves_little_room_is_not():
    messages = [*talk(2)[:-1], {"role": "user", "content": "x" * 40}]
    prompt, forgotten = fit(TOKENIZER, messages, context=50, room=20, forget=True)
    assert forgotten == 2 and len(prompt) == 44
    with pytest.raises(TooLong, match="the last question has 44 tokens"):
        fit(TOKENIZER, messages, context=44, room=20, forget=True)
