"""Which questions share a run of words with the training text, so that a right answer may be
remembered and not found (Brown et al. 2020, arXiv:2005.14165, appendix C).

A question is flagged if WORDS consecutive words of it and of its right answer are in the text; one
of fewer words if all of them are, one of less than FEWEST never: so few words are shared by chance.
Words are compared without case and punctuation.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nanochat.evals.items import Item

WORDS, FEWEST = 13, 8  # from: Brown et al. 2020, appendix C
WORD = re.compile(r"\w+")
MARK = re.compile(r"<\|\w+\|>")  # names of special tokens in prompts
AT_ONCE = 2**20  # guess: words that are compared at a time
FACTOR = 0x9E3779B97F4A7C15  # odd, so that no word of a run is lost; from: Knuth, TAOCP 3, 6.4

Name = tuple[str, int]  # task and number of a question


def text_of(item: Item) -> str:
    """A question without its examples, and its right answer."""
    gold = item.choices[item.gold] if isinstance(item.gold, int) and item.choices else item.gold
    return f"{MARK.sub(' ', item.prompt[item.own :])} {gold}"


class WordRuns:
    """The runs of words of questions, to be looked for in texts."""

    def __init__(self, questions: Mapping[Name, str]) -> None:
        split = {name: WORD.findall(text.lower()) for name, text in questions.items()}
        every = sorted({word for words in split.values() for word in words})
        self.numbers = {word: n for n, word in enumerate(every, 1)}  # 0: any other word
        drawn = np.random.default_rng(0)
        self.codes = drawn.integers(2**64, size=len(every) + 1, dtype=np.uint64)
        self.short = {name for name, words in split.items() if len(words) < FEWEST}
        runs: dict[int, dict[int, set[Name]]] = defaultdict(lambda: defaultdict(set))
        for name, words in split.items():
            if name in self.short:
                continue
            size = min(WORDS, len(words))
            for code in self._hashed(self._numbered(words))[size].tolist():
                runs[size][code].add(name)
        self.owners = runs
        self.known = {size: np.array(sorted(of), dtype=np.uint64) for size, of in runs.items()}

    def _numbered(self, words: Sequence[str]) -> list[int]:
        return [self.numbers.get(word, 0) for word in words]

    def _hashed(self, numbers: list[int]) -> dict[int, np.ndarray]:
        """For each number of words from FEWEST to WORDS the code of every run of so many: the sum
        of its words' codes, each times a power of FACTOR, modulo 2**64."""
        codes, found = self.codes[np.array(numbers, dtype=np.int64)], {}
        total = np.zeros(len(codes), dtype=np.uint64)
        for size in range(1, WORDS + 1):
            places = max(0, len(codes) - size + 1)
            factor = np.uint64(pow(FACTOR, size - 1, 2**64))
            total = total[:places] + codes[size - 1 :] * factor
            if size >= FEWEST:
                found[size] = total
        return found

    def found_in(self, texts: Iterable[str]) -> set[Name]:
        """The questions of which a run is in one of `texts`."""
        found: set[Name] = set()
        waiting: list[int] = []
        for text in texts:
            waiting += [*self._numbered(WORD.findall(text.lower())), 0]  # 0: no run goes on
            if len(waiting) >= AT_ONCE:
                found |= self._look(waiting)
                waiting = []
        return found | self._look(waiting)

    def _look(self, numbers: list[int]) -> set[Name]:
        hashed, found = self._hashed(numbers), set()
        for size, known in self.known.items():
            near = known[np.searchsorted(known, hashed[size]).clip(max=len(known) - 1)]
            for code in set(near[near == hashed[size]].tolist()):
                found |= self.owners[size][code]
        return found


def lines(items: Sequence[Item], flagged: set[Name], short: set[Name]) -> list[str]:
    """For each task how many questions are flagged, and the accuracy on all and on the others."""
    found = []
    for task in dict.fromkeys(item.task for item in items):
        own = [item for item in items if item.task == task]
        clean = [item for item in own if (item.task, item.index) not in flagged]
        few = sum((item.task, item.index) in short for item in own)
        right = [
            f"{sum(i.correct for i in of) / len(of):.4f}" if of else "-" for of in (own, clean)
        ]
        found.append(
            f"{task}: {len(own) - len(clean):,} of {len(own):,} questions share {WORDS} words with "
            f"the training text, {few:,} are too short to tell; accuracy {right[0]} on all, "
            f"{right[1]} on the others"
        )
    return found
