"""Accuracy on tiny tasks: by networks whose answers are known, and beside a plain loop over
the full forward pass."""

import math
from itertools import combinations, pairwise

import pytest
import torch

from nanochat.evals import chat
from nanochat.evals.chat import Answers, chatcore, numbers, passes
from nanochat.evals.evaluation import Context
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render, render_prompt
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


class Parrot(FrozenGPT):
    """Answers with the letter that the question ended in; before it, <|user_end|> is
    likelier than any letter."""

    def hidden_cached(self, idx, positions, attends, rows, first, ends):
        # (M, 2) -> (m, 1, 1): the tokens of a text follow each other
        return idx[:, 1].roll(2)[ends, None, None]

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
    """Calls the calculator for 12*3 and stops after its result: what comes next is decided by
    the last token alone."""

    def blocks(self, x, bigram, idx, cos, sin, attends, ends=None):
        idx = idx if ends is None else idx[ends]
        script = dict(pairwise(CALL))
        script[SPECIAL["<|output_end|>"]] = SPECIAL["<|assistant_end|>"]
        return torch.tensor([[script.get(t, 0) for t in row] for row in idx.tolist()])[..., None]

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0], V).float()


CONFIG = GPTConfig(T, V, 2, 2, 2, 32)


def judged(gpt, task, rank=0, world_size=1, **settings):
    """What is recorded about each question, and the items of all processes."""
    recorded = []
    context = Context(gpt, TOKENIZER, pytest.fail, rank, world_size, recorded.append)
    return recorded, Answers({}, **settings).items(context, task)


def accuracy(gpt, task, **settings):
    items = judged(gpt, task, **settings)[1]
    found = numbers(items)
    skipped = sum(not item.scores for item in items)
    correct = sum(item.correct for item in items)
    assert found["accuracy"] == pytest.approx(correct / len(items))
    return {"correct": correct, "total": len(items), "skipped": skipped}


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
    result = accuracy(Parrot.build(CONFIG), Letters(ITEMS), rows_per_device=batch_rows)
    assert result == {"correct": 4, "total": 7, "skipped": 0}


def test_only_the_letters_of_the_question_count():
    """The parrot wants D; of A and B, equally unlikely, the first is taken."""
    result = accuracy(
        Parrot.build(CONFIG), Letters([("D", "A"), ("D", "B"), ("B", "B")], letters="AB")
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
    result = accuracy(gpt, task, rows_per_device=batch_rows)
    assert result == {"correct": right, "total": 24, "skipped": 0}


@pytest.mark.parametrize("batch_rows", [1, 2, 16])
def test_answers_of_a_network_whose_answers_are_known(batch_rows):
    said = "<|output_start|>36<|output_end|>"
    task = Sums(
        [("12*3?", said), ("what is it", said), ("12*4?", "<|output_start|>48<|output_end|>")]
    )
    result = accuracy(Calculates.build(CONFIG), task, rows_per_device=batch_rows)
    assert result == {"correct": 2, "total": 3, "skipped": 0}


def test_max_tokens_cuts_answers():
    task = Sums([("12*3?", "<|output_end|>"), ("12*3?", "<|python_end|>")])
    assert accuracy(Calculates.build(CONFIG), task)["correct"] == 1
    assert accuracy(Calculates.build(CONFIG), task, max_tokens=6)["correct"] == 1
    assert accuracy(Calculates.build(CONFIG), task, max_tokens=5)["correct"] == 0


def test_answers_equal_a_plain_loop_of_generation(gpt):
    class Even(Sums):
        """Right is an answer of an even number of its own kind of byte: a coin
        for a random network."""

        def score(self, conversation, completion):
            seen.append((conversation["messages"][0]["content"], completion))
            return float(sum(map(ord, completion)) % 2 == 0)

    seen: list[tuple[str, str]] = []
    questions = ["a", "bcd", "what", "12+5", "z" * 20, "is it so", "q"]
    result = accuracy(gpt, Even([(q, "-") for q in questions]), max_tokens=9, rows_per_device=3)
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
    assert result == {"correct": right, "total": 7, "skipped": 0}


# --- what is counted ------------------------------------------------------------------------------


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
    result = accuracy(model, task)
    assert result == {"correct": 2, "total": 4, "skipped": 2}
    assert (
        accuracy(model, kind([("B" * 1000, answer)]))["skipped"] == 1
    )  # nothing is left to decode


def test_limit_takes_the_first_ones():
    model = Parrot.build(CONFIG)
    assert accuracy(model, Letters(ITEMS), limit=3) == {"correct": 2, "total": 3, "skipped": 0}
    assert accuracy(model, Letters(ITEMS), limit=1000)["total"] == 7


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_shares_add_up_to_the_whole(world_size, monkeypatch):
    """Every process records its own questions, and all get the items of all; with 9
    some have nothing to do."""
    model, task = Parrot.build(CONFIG), Letters([*ITEMS, ("B" * 1000, "B")])
    alone, whole = judged(model, task)
    shares = []
    monkeypatch.setattr(chat, "gathered", lambda own: shares.append(own) or [own])
    recorded = [judged(model, task, rank, world_size)[0] for rank in range(world_size)]
    order = lambda items: sorted(items, key=lambda item: item.index)  # noqa: E731
    assert order(item for part in recorded for item in part) == alone
    assert order(item for part in shares for item in part) == whole
    assert {item.prompt for item in whole} == {""} != {item.prompt for item in alone}


@pytest.mark.parametrize("kind", [Letters, Sums])
def test_what_is_recorded_is_not_asked_again(gpt, kind):
    task = kind([("x" * n, "A") for n in range(1, 12)])
    settings = {"rows_per_device": 1, "max_tokens": 3}  # eight questions at a time
    recorded, items = judged(gpt, task, **settings)
    again = []
    known = {(item.task, item.index): item for item in recorded[2:9]}
    context = Context(gpt, TOKENIZER, pytest.fail, record=again.append, recorded=known)
    whole = Answers({}, **settings).items(context, task)
    assert [(i.index, i.answer) for i in whole] == [(i.index, i.answer) for i in items]
    assert whole[2:9] == items[2:9]
    assert [item.index for item in again] == [0, 1, 9, 10]


# --- letters of several tokens, likelihoods, pass@k, ChatCORE ------------------------------------


def plain_nats(gpt, prompt, answer):
    """Negative log-likelihood of `answer` after `prompt`, a token at a time."""
    total = 0.0
    for n, token in enumerate(answer):
        with torch.no_grad():
            logits = gpt(torch.tensor([[*prompt, *answer[:n]]]))[0, -1].double()
        total += (logits.logsumexp(0) - logits[token]).item()
    return total


def test_letters_of_several_tokens_are_compared_as_a_whole(gpt):
    letters = ["A", "BC", "DEF"]  # a token for each byte
    items, _ = judged(gpt, Letters([("x" * n, "BC") for n in range(1, 5)], letters))
    for item in items:
        prompt = [SPECIAL["<|bos|>"], SPECIAL["<|user_start|>"], *b"x" * (item.index + 1)]
        prompt += [SPECIAL["<|user_end|>"], SPECIAL["<|assistant_start|>"]]
        wanted = [plain_nats(gpt, prompt, list(letter.encode())) for letter in letters]
        assert item.scores["nats"] == pytest.approx(wanted, rel=1e-5)  # fp32
        assert (item.gold, item.answer) == (1, wanted.index(min(wanted)))
        assert item.scores["tokens"] == item.scores["bytes"] == (1, 2, 3)
        silent = [token for token in prompt if token != ord("x")]
        wanted = [plain_nats(gpt, silent, list(letter.encode())) for letter in letters]
        assert item.scores["unconditional"] == pytest.approx(wanted, rel=1e-5)


def test_the_right_answer_is_what_the_assistant_writes_without_marks_and_results(gpt):
    class Tool(Sums):
        def conversation(self, i):
            parts = [("text", "I say "), ("python", "1+2"), ("python_output", "3"), ("text", "3.")]
            content = [{"type": kind, "text": text} for kind, text in parts]
            user = {"role": "user", "content": self.items[i][0]}
            return {"messages": [user, {"role": "assistant", "content": content}]}

        def score(self, conversation, completion):
            return 0.0

    [item], _ = judged(gpt, Tool([("what", "")]), max_tokens=1)
    ids, mask = render(TOKENIZER, Tool([("what", "")])[0])
    counted = [n for n, m in enumerate(mask) if m and ids[n] < 256]
    assert bytes(ids[n] for n in counted) == b"I say 1+23."
    wanted = sum(plain_nats(gpt, ids[:n], [ids[n]]) for n in counted)
    assert item.scores["nats"] == (pytest.approx(wanted, rel=1e-5),)
    assert item.scores["tokens"] == item.scores["bytes"] == (11,)
    assert item.gold == "3."


def test_pass_at_k_of_several_answers_equals_a_plain_count(gpt):
    class Even(Sums):
        def score(self, conversation, completion):
            return float(sum(map(ord, completion)) % 2 == 0)

    task = Even([(q, "-") for q in ("a", "bcd", "what", "z" * 20)])
    settings = {"samples": 4, "temperature": 1.0, "top_k": None, "max_tokens": 3}
    items, _ = judged(gpt, task, **settings)
    rights = [round(4 * item.correct) for item in items]
    assert 0 < sum(rights) < 16
    subsets = list(combinations(range(4), 2))
    pairs = [sum(min(s) < right for s in subsets) / 6 for right in rights]  # the first are right
    found = passes("even", items, 4)
    assert found["even_pass@1"] == pytest.approx(sum(rights) / 16)
    assert found["even_pass@2"] == pytest.approx(sum(pairs) / 4)
    assert found["even_pass@4"] == sum(right > 0 for right in rights) / 4
    assert judged(gpt, task, **settings)[0] == items  # from the seed


def test_several_answers_without_chance_are_refused():
    with pytest.raises(ValueError, match=r"samples=4 at temperature=0 .* try temperature=1"):
        Answers({}, samples=4)


def test_chatcore_is_the_mean_of_centred_accuracies_of_five_or_six_tasks():
    """The d20 of facts sheet 6.5, after SFT: 0.0884 of five tasks."""
    published = {"arc_challenge": 0.2807, "arc_easy": 0.3876, "gsm8k": 0.0455, "humaneval": 0.0854}
    found = {f"{task}_accuracy": value for task, value in (published | {"mmlu": 0.3151}).items()}
    found |= {f"{task}_stderr": 0.01 for task in (*published, "mmlu")}
    found |= {f"{task}_of": "1 of 2" for task in (*published, "mmlu")}
    five = chatcore(found)
    assert set(five) == {"chatcore_5", "chatcore_5_stderr", "chatcore_5_of"}
    assert five["chatcore_5"] == pytest.approx(0.0884, abs=5e-5)  # as many digits as published
    by_hand = math.sqrt(3 * (0.01 / 0.75) ** 2 + 2 * 0.01**2) / 5
    assert five["chatcore_5_stderr"] == pytest.approx(by_hand)
    bee = {"spelling_bee_accuracy": 0.9, "spelling_bee_stderr": 0.0, "spelling_bee_of": "9 of 10"}
    six = chatcore(found | bee)
    assert six["chatcore_6"] == pytest.approx((5 * five["chatcore_5"] + 0.9) / 6)
    assert six["chatcore_5"] == five["chatcore_5"]
    del found["gsm8k_accuracy"]
    assert chatcore(found | bee) == {}


@pytest.mark.parametrize(
    ("task", "settings", "named"),
    [
        (Chat([("a", "b")]), {}, "letters holds conversations of kind 'chat'"),
        (Sums(ITEMS), {"max_tokens": 0}, "max_tokens=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_one_clear_line(gpt, task, settings, named):
    with pytest.raises(ValueError, match=named) as caught:
        accuracy(gpt, task, **settings)
    assert "\n" not in str(caught.value)
