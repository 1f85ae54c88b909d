"""Spelling words and counting their letters, generated from a list of English words (facts sheet
4.4).

A model sees tokens, not letters. SimpleSpelling teaches the letters of a word. SpellingBee teaches
to spell the word first, count step by step, and check with Python. Seeds and order of draws are
nanochat's; the wording is this project's.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

from nanochat.runtime.files import text_lines
from nanochat.runtime.held_out import is_held_out
from nanochat.runtime.paths import hub_dir
from nanochat.runtime.settings import Part
from nanochat.tasks import stdlib
from nanochat.tasks.generated import Generated, Size, Split, checked_fraction
from nanochat.tasks.gsm8k import marked, score_marked
from nanochat.tasks.task import last_answer

LIBRARY = "library"  # value of `path` for the words in the running Python's documentation
WORDS_FILE = "dwyl/english-words/words_alpha.txt"  # in a mirror
SHUFFLE_SEED = 42  # from: facts sheet 4.4; with it, one index is a different word in the two tasks
FROM_WORD = 0.9  # from: facts sheet 4.4, as the next two
LOWER_CASE = 0.3
QUESTION_MARK = 0.5
QUOTES = ("", "'", '"')
QUESTIONS = (
    "How many {letter} are in {word}",
    "How many {letter} are in the word {word}",
    "How many {letter} are there in {word}",
    "How many times does {letter} occur in {word}",
    "How many times does {letter} appear in the word {word}",
    "How often does {letter} occur in {word}",
    "How often is the letter {letter} in {word}",
    "How many letters {letter} does {word} have",
    "How many {letter} does the word {word} contain",
    "How many {letter} do you see in {word}",
    "Count the {letter} in {word}",
    "Count the letter {letter} in the word {word}",
    "Count how many {letter} are in {word}",
    "Can you count the {letter} in {word}",
    "Please count the {letter} in {word}",
    "Tell me how many {letter} are in {word}",
    "Tell me how often {letter} is in the word {word}",
    "Find the number of {letter} in {word}",
    "Give me the number of {letter} in {word}",
    "Give me the count of the letter {letter} in {word}",
    "What is the number of {letter} in {word}",
    "What is the count of {letter} in the word {word}",
    "In {word}, how many {letter} are there",
    "In the word {word}, how often does {letter} occur",
    "The word {word} has how many {letter}",
    "If you spell {word}, how many {letter} do you write",
    "Number of {letter} in {word}",
    "{word}: how many {letter}",
    "Do you know how many {letter} are in {word}",
    "Look at the word {word}. How many {letter} does it have",
    "¿Cuántas {letter} hay en {word}",
    "¿Cuántas veces aparece {letter} en la palabra {word}",
    "Cuenta las {letter} en {word}",
    "¿Cuántas {letter} tiene la palabra {word}",
    "{word} 里有几个 {letter}",
    "单词 {word} 中有多少个 {letter}",
    "请数一数 {word} 里有多少个字母 {letter}",
    "{letter} 在 {word} 中出现了几次",
    "{word}에 {letter}가 몇 개 있나요",
    "단어 {word}에서 {letter}는 몇 번 나오나요",
    "{word}에 들어 있는 {letter}의 개수를 세어 주세요",
    "{word}에는 {letter}가 몇 번 들어가나요",
    "Combien de {letter} y a-t-il dans {word}",
    "Combien de fois trouve-t-on {letter} dans le mot {word}",
    "Compte les {letter} dans {word}",
    "Wie viele {letter} sind in {word}",
    "Wie oft kommt {letter} im Wort {word} vor",
    "Zähle die {letter} in {word}",
    "{word} に {letter} はいくつありますか",
    "単語 {word} の中に {letter} は何回出てきますか",
    "{word} の {letter} を数えてください",
)  # 30 English, 4 Spanish, 4 Chinese, 4 Korean, 3 French, 3 German, 3 Japanese: facts sheet 4.4


class Words(Generated):
    """A task about words: from the file `path` (one per line, in its order), from the word list in
    the mirror (None), or from the documentation of the running Python ("library").

    `held_out` is the share of the words that only the test split has. With 0 both splits draw from
    all words, as in nanochat.
    """

    kind = "answer"

    def __init__(self, *, path: str | Path | None = None, held_out: Part = 0.1, **common: Any):
        super().__init__(**common)
        self.path = Path(path).expanduser().absolute() if path and path != LIBRARY else None
        self.from_library = path == LIBRARY
        self.held_out = checked_fraction("held_out", held_out, zero=True)

    @cached_property
    def all_words(self) -> list[str]:
        path, mirror = self.path, hub_dir()
        if self.from_library:
            return list(stdlib.common_words())
        if path is None:
            if mirror is None:
                raise FileNotFoundError(
                    f"{self.name} needs a list of words; set `path` to a file with one word per "
                    "line (such as words_alpha.txt of github.com/dwyl/english-words) or to "
                    "library, or NANOCHAT_HUB_DIR to a mirror with dwyl/english-words/"
                )
            path = mirror / WORDS_FILE
        if not path.is_file():
            given = f"path={path}" if self.path else str(path)
            raise FileNotFoundError(
                f"{given} is not a file; set `path` of {self.name} to a file with one word per line"
            )
        words = []
        for number, line in enumerate(text_lines(path.read_text(encoding="utf-8")), 1):
            if word := line.strip():
                if not word.isalpha():
                    raise ValueError(
                        f"{path} line {number}: {word!r} is not a word of letters only; take it "
                        "out of the list"
                    )
                words.append(word)
        if not words:
            raise ValueError(f"{path} holds no words; write one per line")
        return words

    @cached_property
    def words(self) -> list[str]:
        """The words of this split."""
        if self.held_out == 0:
            return self.all_words
        chosen = [
            word
            for word in self.all_words
            if is_held_out(word, self.held_out) == (self.split == "test")
        ]
        if not chosen:
            raise ValueError(
                f"none of the {len(self.all_words)} words belongs to the {self.split} split at "
                f"held_out={self.held_out}; give a longer list, or held_out: 0"
            )
        return chosen

    def settings(self) -> dict[str, Any]:
        listed = hashlib.sha256("\n".join(self.all_words).encode()).hexdigest()
        return {**super().settings(), "held_out": self.held_out, "words": listed}


class SimpleSpelling(Words):
    """Spell a word. Only `word:w,o,r,d` is right."""

    def __init__(
        self, *, size: Size, split: Split = "train", name: str = "simple_spelling", **common: Any
    ):
        super().__init__(name=name, size=size, split=split, **common)

    @cached_property
    def shuffled(self) -> list[str]:
        words = list(self.words)
        Random(SHUFFLE_SEED).shuffle(words)
        return words

    def conversation(self, i: int) -> dict[str, Any]:
        word = self.random(i).choice(self.shuffled)
        return {
            "messages": [
                {"role": "user", "content": f"Spell the word: {word}"},
                {"role": "assistant", "content": spelled(word)},
            ]
        }

    def score(self, conversation: dict[str, Any], completion: str) -> float:
        return float(completion.strip() == conversation["messages"][-1]["content"])

    def reference(self, conversation: dict[str, Any]) -> str | None:
        return str(conversation["messages"][-1]["content"])


class SpellingBee(Words):
    """Count a letter in a word. Scored like GSM8K, by the number after `####`."""

    def __init__(
        self, *, size: Size, split: Split = "train", name: str = "spelling_bee", **common: Any
    ):
        super().__init__(name=name, size=size, split=split, **common)

    def conversation(self, i: int) -> dict[str, Any]:
        random = self.random(i)  # order of draws: facts sheet 4.4
        word = random.choice(self.words)
        letter = (
            random.choice(word) if random.random() < FROM_WORD else random.choice(ascii_lowercase)
        )
        question = random.choice(QUESTIONS)
        if random.random() < LOWER_CASE:
            question = question.lower()
        letter_quote, word_quote = random.choice(QUOTES), random.choice(QUOTES)
        question = question.format(
            letter=f"{letter_quote}{letter}{letter_quote}", word=f"{word_quote}{word}{word_quote}"
        )
        if random.random() < QUESTION_MARK:
            question += "?"
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": counted(word, letter)},
            ]
        }

    def score(self, conversation: dict[str, Any], completion: str) -> float:
        return score_marked(conversation, completion)

    def reference(self, conversation: dict[str, Any]) -> str | None:
        return marked(last_answer(conversation))


def spelled(word: str) -> str:
    return f"{word}:{','.join(word)}"


def counted(word: str, letter: str) -> list[dict[str, str]]:
    """The answer as parts: spell the word, count by hand, check with Python."""
    lines, count = [], 0
    for position, found in enumerate(word, 1):
        if found == letter:
            count += 1
            lines.append(f"{position}:{found} hit! count={count}")
        else:
            lines.append(f"{position}:{found}")
    by_hand = (
        f"I count the letter '{letter}' in the word '{word}'.\n\nSpelled out:\n{spelled(word)}\n\n"
        + "\n".join(lines)
        + f"\n\nBy hand I find {count}. I check it with Python:\n\n"
    )
    return [
        {"type": "text", "text": by_hand},
        {"type": "python", "text": f"'{word}'.count('{letter}')"},
        {"type": "python_output", "text": str(count)},
        {"type": "text", "text": f"\n\nPython also finds {count}.\n\n#### {count}"},
    ]
