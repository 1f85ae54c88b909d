"""Rollouts made by hand, and a task of a few questions, for the tests of reinforcement learning."""

from collections.abc import Sequence

from tiny_networks import TOKENIZER

from nanochat.inference.engine import Completion
from nanochat.rl.rollout import Rollout
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render_prompt


class Sums(Task):
    """What is a + 1? Answers are single digits."""

    kind = "answer"

    def __init__(self, name: str = "sums", size: int = 8, **common) -> None:
        super().__init__(name=name, **common)
        self.size = size

    def total(self) -> int:
        return self.size

    def conversation(self, i: int) -> dict:
        answer = str((i + 1) % 10)
        return {
            "messages": [
                {"role": "user", "content": f"{i}+1"},
                {"role": "assistant", "content": answer},
            ],
            "answer": answer,
        }

    def score(self, conversation: dict, completion: str) -> float:
        return float(completion == conversation["answer"])

    def reference(self, conversation: dict) -> str | None:
        return conversation["answer"]


def rollout(
    text: str, question: int = 0, sample: int = 0, *, reason: str = "stop", task: Task | None = None
) -> Rollout:
    conversation = (task or Sums())[question]
    ids = TOKENIZER.encode(text)
    completion = Completion(ids, [1] * len(ids), text, reason, logprobs=[-1.0] * len(ids))
    return Rollout(
        question, sample, conversation, render_prompt(TOKENIZER, conversation), completion
    )


def letters_e(rollouts: Sequence[Rollout], task: Task) -> list[float]:
    """Share of the letter e: what even a network with random weights can learn to write."""
    return [rollout.text.count("e") / max(len(rollout.text), 1) for rollout in rollouts]
