"""Answers to tasks of conversations (facts sheet 6.4): multiple choice by likelihood, free
answers by decoding. Multiple choice needs no decoding: the answer is the likeliest of the
question's letters right after <|assistant_start|>; the likelihood of a letter is that of all its
tokens. Free answers are decoded with the calculator, many at a time, and judged by the task. Both
also give the likelihood of the right answer (evals/smooth.py), which distinguishes small models
whose accuracy is at chance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanochat.distributed import agreed, gathered
from nanochat.evals.asking import Judged, Question, asked_of, engine_for, judged_answers, questions
from nanochat.evals.evaluation import Context, Evaluation, Result, task_of
from nanochat.evals.items import Item
from nanochat.evals.pass_at_k import counts, unbiased
from nanochat.evals.smooth import measures
from nanochat.gpt import GPT
from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.likelihood import Continuation, likelihoods
from nanochat.inference.sampling import Sampling
from nanochat.runtime.settings import Count, Seed, Temperature, TopK
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render
from nanochat.tokenizer.tokenizer import Tokenizer

# from: facts sheet 6.4; accuracy of guessing
BASELINES = {"arc_easy": 0.25, "arc_challenge": 0.25, "mmlu": 0.25}
FIVE = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")
# from: facts sheet 6.4; with five tasks until 2025-10-24 and again in the modern generation
CHATCORE = {"chatcore_5": FIVE, "chatcore_6": (*FIVE, "spelling_bee")}
ROUNDS = 8  # guess: so many questions for each row are asked at once, and lost by an interruption


class Answers(Evaluation):
    """For each task in `of`, given by its settings, the first `limit` questions of `split` (if
    the task has splits). Results are `NAME_accuracy` and its standard error; with `samples`,
    `NAME_pass@k` from that many answers to each question; the smooth numbers; and ChatCORE if
    all its tasks are there.
    """

    no_matter = ("rows_per_device",)

    def __init__(
        self,
        of: dict[str, Any],
        split: str | None = "test",
        limit: Count | None = 256,
        samples: Count = 1,
        max_tokens: Count = 256,
        temperature: Temperature = 0.0,
        top_k: TopK = 50,
        seed: Seed = 42,
        rows_per_device: Count = 16,
    ) -> None:
        if samples > 1 and temperature == 0:
            raise ValueError(
                f"samples={samples} at temperature=0 give the same answer {samples} times; try "
                "temperature=1"
            )
        self.of = {name: task_of(settings, split) for name, settings in of.items() if settings}
        self.limit, self.samples, self.rows = limit, samples, rows_per_device
        self.sampling = Sampling(
            temperature=temperature, top_k=top_k, seed=seed, max_tokens=max_tokens
        )

    def check(self) -> None:
        for task in self.of.values():
            len(task)

    def identity(self) -> dict[str, Any]:
        return {"tasks": {name: task.settings() for name, task in self.of.items()}}

    def __call__(self, context: Context) -> Result:
        context = replace(context, gpt=FrozenGPT.of(context.gpt))  # once, not for every batch
        ranks = context.rank, context.world_size
        context.expect(sum(len(asked_of(task, self.limit, *ranks)) for task in self.of.values()))
        found: Result = {}
        for name, task in self.of.items():
            items = self.items(context, task)
            found |= {f"{name}_{key}": value for key, value in numbers(items).items()}
            if task.kind == "answer" and self.samples > 1:
                found |= passes(name, items, self.samples)
        return found | chatcore(found)

    def items(self, context: Context, task: Task) -> list[Item]:
        """What was asked, of all processes together and without prompts."""
        own = agreed(lambda: self._own_items(context, task), context.device)
        return [item for part in gathered([replace(i, prompt="") for i in own]) for item in part]

    def _own_items(self, context: Context, task: Task) -> list[Item]:
        """Those of this process. A few questions at a time are judged and recorded; what was
        recorded before is not asked again."""
        tokenizer = context.tokenizer
        ranks = {"rank": context.rank, "world_size": context.world_size}
        asked = questions(tokenizer, task, limit=self.limit, **ranks)
        found = {i: context.recorded.get((task.name, task.place(i))) for i, _, _ in asked}
        ahead = [one for one in asked if found[one.number] is None]
        engine = engine_for(context.gpt, tokenizer, self.rows)
        for first in range(0, len(ahead), ROUNDS * self.rows):
            some = ahead[first : first + ROUNDS * self.rows]
            for one, item in zip(some, self._judged(engine, task, some), strict=True):
                context.record(item)
                found[one.number] = item
        return [item for item in found.values() if item is not None]

    def _judged(self, engine: Engine, task: Task, asked: Sequence[Question]) -> list[Item]:
        tokenizer = engine.tokenizer
        if task.kind == "choice":
            return lettered(engine.gpt, tokenizer, task, asked)
        with engine.frozen():
            given = judged_answers(engine, task, asked, self.sampling, self.samples)
        known = right_answers(engine.gpt, tokenizer, asked)
        return [
            Item(
                task=task.name,
                index=task.place(question.number),
                prompt=tokenizer.decode(question.prompt),
                choices=(),
                gold=task.answer(question.conversation),
                answer=each[0].text if each else "",
                correct=self._share(each),
                scores=scores if each else {},
            )
            for question, each, scores in zip(asked, given, known, strict=True)
        ]

    def _share(self, given: Sequence[Judged]) -> float:
        """The score of one answer, or the share of right ones among several; 0 for none."""
        if self.samples > 1:
            return sum(answer.right for answer in given) / self.samples
        return given[0].score if given else 0.0


def lettered(gpt: GPT, tokenizer: Tokenizer, task: Task, asked: Sequence[Question]) -> list[Item]:
    """Answers to multiple choice: the likeliest letter. A question that does
    not fit counts as wrong."""
    room = gpt.config.sequence_len
    ids = [[tokenizer.encode(letter) for letter in one.conversation["letters"]] for one in asked]
    fits = [
        len(one.prompt) + max(map(len, each)) <= room for one, each in zip(asked, ids, strict=True)
    ]
    bare = [tokenizer.bos_id, *(tokenizer.specials[name] for name in EMPTY)]
    wanted = [
        Continuation(context, letter)
        for one, each, fit in zip(asked, ids, fits, strict=True)
        for context in ((one.prompt, bare) if fit else ())
        for letter in each
    ]
    nats = iter([math.fsum(found.nats) for found in likelihoods(gpt, wanted)])
    items = []
    for one, each, fit in zip(asked, ids, fits, strict=True):
        letters = one.conversation["letters"]
        scores = (
            {
                "nats": tuple(next(nats) for _ in letters),
                "unconditional": tuple(next(nats) for _ in letters),
                "tokens": tuple(map(float, map(len, each))),
                "bytes": tuple(float(len(letter.encode())) for letter in letters),
            }
            if fit
            else {}
        )
        chosen = min(range(len(letters)), key=scores["nats"].__getitem__) if fit else ""
        correct = task.score(one.conversation, letters[chosen]) if isinstance(chosen, int) else 0.0
        items.append(
            Item(
                task=task.name,
                index=task.place(one.number),
                prompt=tokenizer.decode(one.prompt),
                choices=tuple(letters),
                gold=letters.index(task.answer(one.conversation)),
                answer=chosen,
                correct=correct,
                scores=scores,
                cluster=one.conversation.get("subject"),
            )
        )
    return items


# instead of the question: an empty turn of the user
EMPTY = ("<|user_start|>", "<|user_end|>", "<|assistant_start|>")


def right_answers(
    gpt: GPT, tokenizer: Tokenizer, asked: Sequence[Question]
) -> list[dict[str, tuple[float, ...]]]:
    """Nats, tokens and bytes of the reference answer to each question: the text of the assistant
    without special tokens. Results of tools are context."""
    wanted, kept = [], []
    for one in asked:
        ids, mask = render(tokenizer, one.conversation)
        start = len(one.prompt)
        wanted.append(Continuation(ids[:start], ids[start:]))
        sizes = [int(tokenizer.token_bytes[token]) for token in ids[start:]]
        kept.append([size if m else 0 for size, m in zip(sizes, mask[start:], strict=True)])
    found = likelihoods(gpt, wanted)
    return [
        {
            "nats": (math.fsum(n for n, size in zip(one.nats, sizes, strict=True) if size),),
            "tokens": (float(sum(size > 0 for size in sizes)),),
            "bytes": (float(sum(sizes)),),
        }
        for one, sizes in zip(found, kept, strict=True)
    ]


def numbers(items: Sequence[Item]) -> Result:
    """Results of one task from its items: accuracy, its standard error (clustered by subject;
    Miller 2024, arXiv:2411.00640), the number of items, and the smooth numbers."""
    [found] = measures(items).values()
    total, skipped = int(found.pop("n")), sum(not item.scores for item in items)
    of = f"{math.fsum(item.correct for item in items):g} of {total:,}"
    return {**found, "of": of + (f", {skipped:,} too long" if skipped else "")}


def passes(name: str, items: Sequence[Item], samples: int) -> Result:
    """`NAME_pass@k` from items whose `correct` is the fraction of right answers among `samples`."""
    rights = [round(item.correct * samples) for item in items]
    return {
        f"{name}_pass@{k}": math.fsum(unbiased(samples, right, k) for right in rights) / len(items)
        for k in counts(samples)
    }


def chatcore(found: Mapping[str, Any]) -> Result:
    """ChatCORE with its standard error, in each definition whose tasks are all there: the mean of
    (accuracy - baseline) / (1 - baseline). Different definitions are not comparable."""
    scores: Result = {}
    for name, tasks in CHATCORE.items():
        if not all(f"{task}_accuracy" in found for task in tasks):
            continue
        scale = {task: 1 / (1 - BASELINES.get(task, 0.0)) for task in tasks}
        centred = [
            (found[f"{task}_accuracy"] - BASELINES.get(task, 0.0)) * scale[task] for task in tasks
        ]
        errors = [found[f"{task}_stderr"] * scale[task] for task in tasks]
        scores[name] = math.fsum(centred) / len(tasks)
        scores[f"{name}_stderr"] = math.hypot(*errors) / len(tasks)
        scores[f"{name}_of"] = "; ".join(f"{task} {found[f'{task}_of']}" for task in tasks)
    return scores
