"""Questions that share words with a text, compared with the runs written out."""

import random

from nanochat.evals.items import Item
from nanochat.evals.overlap import FEWEST, WORDS, WordRuns, lines, text_of


def plainly(questions: dict, texts: list[list[str]]) -> set:
    """Every run of words as a tuple."""
    there = {
        tuple(words[i : i + n])
        for words in texts
        for n in range(FEWEST, WORDS + 1)
        for i in range(len(words) - n + 1)
    }
    found = set()
    for name, words in questions.items():
        n = min(WORDS, len(words))
        if n >= FEWEST and any(tuple(words[i : i + n]) in there for i in range(len(words) - n + 1)):
            found.add(name)
    return found


def test_flagged_are_those_of_which_a_run_is_in_a_text() -> None:
    drawn = random.Random(0)
    words = [f"w{i}" for i in range(9)]
    texts = [drawn.choices([*words, "else"], k=drawn.randint(0, 60)) for _ in range(40)]
    questions = {}
    for i in range(200):
        own = drawn.choices(words, k=drawn.randint(0, 6))
        text = drawn.choice(texts)
        start = drawn.randint(0, len(text))
        questions["t", i] = own + text[start : start + drawn.randint(5, 16)]
    runs = WordRuns({name: " ".join(own) for name, own in questions.items()})
    found = runs.found_in(", ".join(text).upper() + "." for text in texts)
    assert found == plainly(questions, texts) and 20 < len(found) < 180
    assert runs.short == {name for name, own in questions.items() if len(own) < FEWEST}
    assert WordRuns({}).found_in(["a b c"]) == set()


def test_examples_and_special_tokens_are_no_part_of_a_question() -> None:
    item = Item("t", 3, "1 + 1 = 2\n\nthe<|user_end|> question is", ("x", "y"), 1, 0, 0.0, own=11)
    assert text_of(item) == "the  question is y"
    other = Item("t", 4, "", (), "free", "", 1.0)
    assert text_of(other) == " free"
    assert lines([item, other], {("t", 3)}, {("t", 4)}) == [
        "t: 1 of 2 questions share 13 words with the training text, 1 are too short to tell; "
        "accuracy 0.5000 on all, 1.0000 on the others"
    ]
