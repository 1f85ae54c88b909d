"""Accuracy on tiny tasks: by networks whose answers are known, and beside a plain loop over the full forward pass."""

from itertools import pairwise

import pytest
import torch

from nanochat.evals import chat
from nanochat.evals.chat import accuracy
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import BPETokenizer

TOKENIZER = BPETokenizer([])  # 256 bytes and the specials
SPECIAL = TOKENIZER.specials
V, T = TOKENIZER.vocab_size, 64


class Letters(Task):
    """Questions that end in a letter; the answer is given beside."""

    kind = "choice"

    def __init__(self, items, letters="ABCD"):
        super().__init__(name="letters")
        self.items, self.letters = items, letters

    def total(self):
        return len(self.items)

    def conversation(self, i):
        question, answer = self.items[i]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "letters": list(self.letters)}

    def score(self, conversation, completion):
        return float(completion == conversation["messages"][-1]["content"])


class Sums(Letters):
    """Right is what ends in the answer."""

    kind = "answer"

    def score(self, conversation, completion):
        return float(completion.endswith(conversation["messages"][-1]["content"]))


class Chat(Letters):
    kind = "chat"


class Parrot(GPT):
    """Answers with the letter that the question ended in; before it, <|user_end|> is likelier than any letter."""

    def blocks(self, x, bigram, idx, cos, sin, attends):
        return idx.roll(2, 1)[..., None]

    def logits(self, hidden):
        logits = torch.nn.functional.one_hot(hidden[..., 0], V).float()
        logits[..., SPECIAL["<|user_end|>"]] = 2
        return logits


CALL = [
    SPECIAL["<|assistant_start|>"],
    SPECIAL["<|python_start|>"],
    *b"12*3",
    SPECIAL["<|python_end|>"],
]


class Calculates(FrozenGPT):
    """Calls the calculator for 12*3 and stops after its result: what comes next is decided by the last token alone."""

    def blocks(self, x, bigram, idx, cos, sin, attends):
        script = dict(pairwise(CALL))
        script[SPECIAL["<|output_end|>"]] = SPECIAL["<|assistant_end|>"]
        return torch.tensor([[script.get(t, 0) for t in row] for row in idx.tolist()])[..., None]

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0], V).float()


CONFIG = GPTConfig(T, V, 2, 2, 2, 32)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    gpt = GPT.build(CONFIG)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.4, generator=drawn)
    return gpt


# questions of different lengths; the parrot says A, B, C, D, D, B, A
ITEMS = [
    ("A", "A"),
    ("which? B", "B"),
    ("C", "A"),
    ("is it D", "D"),
    ("or D", "C"),
    ("B", "B"),
    ("what is A", "B"),
]


@pytest.mark.parametrize("batch_rows", [1, 3, 16])
def test_choices_of_a_network_whose_answers_are_known(batch_rows):
    result = accuracy(Parrot.build(CONFIG), TOKENIZER, Letters(ITEMS), batch_rows=batch_rows)
    assert result == {"accuracy": pytest.approx(4 / 7), "correct": 4, "total": 7, "skipped": 0}


def test_only_the_letters_of_the_question_count():
    """The parrot wants D; of A and B, equally unlikely, the first is taken."""
    result = accuracy(
        Parrot.build(CONFIG), TOKENIZER, Letters([("D", "A"), ("D", "B"), ("B", "B")], letters="AB")
    )
    assert result["correct"] == 2


@pytest.mark.parametrize("batch_rows", [1, 4])
def test_choices_equal_a_plain_loop_over_logits(gpt, batch_rows):
    questions = [("x" * (n % 7) + chr(97 + n % 26), "ABCD"[n % 4]) for n in range(24)]
    task = Letters(questions)
    right = 0
    for i in range(len(task)):
        prompt = render_prompt(TOKENIZER, task[i])
        with torch.no_grad():
            after = gpt(torch.tensor([prompt]))[0, -1]
        best = max("ABCD", key=lambda letter: after[ord(letter)].item())
        right += best == questions[i][1]
    assert 0 < right < 24
    result = accuracy(gpt, TOKENIZER, task, batch_rows=batch_rows)
    assert result == {
        "accuracy": pytest.approx(right / 24),
        "correct": right,
        "total": 24,
        "skipped": 0,
    }


@pytest.mark.parametrize("batch_rows", [1, 2, 16])
def test_answers_of_a_network_whose_answers_are_known(batch_rows):
    said = "<|output_start|>36<|output_end|>"
    task = Sums(
        [("12*3?", said), ("what is it", said), ("12*4?", "<|output_start|>48<|output_end|>")]
    )
    result = accuracy(Calculates.build(CONFIG), TOKENIZER, task, batch_rows=batch_rows)
    assert result == {"accuracy": pytest.approx(2 / 3), "correct": 2, "total": 3, "skipped": 0}


def test_max_tokens_cuts_answers():
    task = Sums([("12*3?", "<|output_end|>"), ("12*3?", "<|python_end|>")])
    assert accuracy(Calculates.build(CONFIG), TOKENIZER, task)["correct"] == 1
    assert accuracy(Calculates.build(CONFIG), TOKENIZER, task, max_tokens=6)["correct"] == 1
    assert accuracy(Calculates.build(CONFIG), TOKENIZER, task, max_tokens=5)["correct"] == 0


def test_answers_equal_a_plain_loop_of_generation(gpt):
    class Even(Sums):
        """Right is an answer of an even number of its own kind of byte: a coin for a random network."""

        def score(self, conversation, completion):
            seen.append((conversation["messages"][0]["content"], completion))
            return float(sum(map(ord, completion)) % 2 == 0)

    seen: list[tuple[str, str]] = []
    questions = ["a", "bcd", "what", "12+5", "z" * 20, "is it so", "q"]
    result = accuracy(
        gpt, TOKENIZER, Even([(q, "-") for q in questions]), max_tokens=9, batch_rows=3
    )
    stops = (SPECIAL["<|assistant_end|>"], SPECIAL["<|bos|>"])
    plain = []
    for question in questions:
        prompt = render_prompt(TOKENIZER, {"messages": [{"role": "user", "content": question}]})
        row = list(prompt)
        for _ in range(9):
            with torch.no_grad():
                row.append(int(gpt(torch.tensor([row[-T:]]))[0, -1].argmax()))
        del row[: len(prompt)]
        end = next((n for n, t in enumerate(row) if t in stops), len(row))
        plain.append((question, TOKENIZER.decode(row[:end])))
    assert seen == plain  # each answer beside its own question
    right = sum(sum(map(ord, answer)) % 2 == 0 for _, answer in plain)
    assert 0 < right < 7
    assert result == {
        "accuracy": pytest.approx(right / 7),
        "correct": right,
        "total": 7,
        "skipped": 0,
    }


# --- what is counted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Letters, Sums])
def test_what_does_not_fit_the_context_is_wrong_and_counted(kind):
    longest = T - 1 - 4  # bos, user_start, user_end, assistant_start
    model = Parrot.build(CONFIG) if kind is Letters else Calculates.build(CONFIG)
    answer = "B" if kind is Letters else ""
    task = kind(
        [
            ("B", answer),
            ("B" * longest, answer),
            ("B" * (longest + 1), answer),
            ("B" * 1000, answer),
        ]
    )
    result = accuracy(model, TOKENIZER, task)
    assert result == {"accuracy": 0.5, "correct": 2, "total": 4, "skipped": 2}
    assert (
        accuracy(model, TOKENIZER, kind([("B" * 1000, answer)]))["skipped"] == 1
    )  # nothing is left to decode


def test_limit_takes_the_first_ones():
    model = Parrot.build(CONFIG)
    assert accuracy(model, TOKENIZER, Letters(ITEMS), limit=3) == {
        "accuracy": pytest.approx(2 / 3),
        "correct": 2,
        "total": 3,
        "skipped": 0,
    }
    assert accuracy(model, TOKENIZER, Letters(ITEMS), limit=1000)["total"] == 7


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_shares_add_up_to_the_whole(world_size, monkeypatch):
    """Every process but one hands in its share where the last one adds them up; with 9 some have nothing to do."""
    model, task = Parrot.build(CONFIG), Letters([*ITEMS, ("B" * 1000, "B")])
    shares = []
    monkeypatch.setattr(chat, "summed", lambda sums: shares.append(sums.clone()) or sums.fill_(1))
    for rank in range(world_size - 1):
        accuracy(model, TOKENIZER, task, rank=rank, world_size=world_size)
    monkeypatch.setattr(chat, "summed", lambda sums: sums.add_(sum(shares)))
    whole = accuracy(model, TOKENIZER, task, rank=world_size - 1, world_size=world_size)
    assert whole == {"accuracy": 0.5, "correct": 4, "total": 8, "skipped": 1}


@pytest.mark.parametrize(
    ("task", "settings", "named"),
    [
        (Chat([("a", "b")]), {}, "letters holds conversations of kind 'chat'"),
        (Letters([("A", "A")], letters=["A", "BC"]), {}, "'BC' is 2 tokens"),
        (Letters(ITEMS), {"limit": 0}, "limit=0"),
        (Letters(ITEMS), {"batch_rows": 0}, "batch_rows=0"),
        (Sums(ITEMS), {"max_tokens": 0}, "max_tokens=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_one_clear_line(gpt, task, settings, named):
    with pytest.raises(ValueError, match=named) as caught:
        accuracy(gpt, TOKENIZER, task, **settings)
    assert "\n" not in str(caught.value)
