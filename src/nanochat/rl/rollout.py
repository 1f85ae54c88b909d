"""Rollouts: answers of the model to questions of a task, sampled in batches by the engine, with
everything the loss needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.gpt import GPT
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.inference.text import Completion
from nanochat.sandbox.execution import python_tool
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer


@dataclass
class Rollout:
    """One answer to one question, with its rewards. The answers to one question are a group."""

    question: int  # number of the conversation in its task
    sample: int  # number within its group
    conversation: dict[str, Any]
    prompt: list[int]
    completion: Completion
    rewards: dict[str, float] = field(default_factory=dict)  # by name, unweighted
    reward: float = 0.0
    advantage: float = 0.0

    @property
    def text(self) -> str:
        return self.completion.text

    @property
    def truncated(self) -> bool:
        """Whether it was cut off before the model ended it."""
        return self.completion.finish_reason == "length"

    def tokens(self, *, train_stop: bool) -> tuple[list[int], list[int], list[float]]:
        """Token ids of prompt and answer, a mask of the sampled ones, and their log-probabilities
        at sampling time (0 where mask is 0).

        The prompt and forced tool tokens have mask 0 (facts sheet 5.9). With `train_stop` the token
        that ended the turn is included, with mask 1.
        """
        c = self.completion
        ids, mask = [*self.prompt, *c.ids], [0] * len(self.prompt) + c.mask
        logprobs = [0.0] * len(self.prompt) + [p or 0.0 for p in c.logprobs]
        if train_stop and c.end_id is not None:
            ids, mask, logprobs = [*ids, c.end_id], [*mask, 1], [*logprobs, c.end_logprob or 0.0]
        return ids, mask, logprobs


def engine_for(gpt: GPT, tokenizer: Tokenizer, sampling: Sampling, max_rows: int) -> Engine:
    """An engine that reads all prompts at once and keeps no cache of finished texts."""
    run_python = python_tool if sampling.python else None
    return Engine(
        gpt, tokenizer, max_rows=max_rows, prefill_tokens=None, pool_bytes=0, run_python=run_python
    )


def has_room(gpt: GPT, tokenizer: Tokenizer, conversation: dict[str, Any]) -> bool:
    """Whether the question leaves room for an answer in the model's context."""
    return len(render_prompt(tokenizer, conversation)) < gpt.config.sequence_len


def sample_rollouts(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    questions: Sequence[int],
    *,
    samples: int,
    sampling: Sampling,
    seeds: Sequence[str],
) -> list[Rollout]:
    """`samples` answers to each of `questions`, those of one question next to each other.

    The answers to a question depend on its own entry in `seeds`, not on the other questions.
    ValueError for a prompt that leaves no room for an answer in the model's context.
    """
    asked = []
    for number in questions:
        conversation = task[number]
        prompt = render_prompt(tokenizer, conversation)
        if len(prompt) >= engine.gpt.config.sequence_len:
            raise ValueError(
                f"question {number} of {task.name} has {len(prompt):,} tokens and leaves no room "
                "for an answer in the model's "
                f"sequence_len={engine.gpt.config.sequence_len:,}; train on other questions "
                "(task.start, task.stop), or a model with a longer context"
            )
        asked.append((number, conversation, prompt))
    completions = engine.sample([prompt for _, _, prompt in asked], sampling, samples, list(seeds))
    return [
        Rollout(number, n, conversation, prompt, answers[n])
        for (number, conversation, prompt), answers in zip(asked, completions, strict=True)
        for n in range(samples)
    ]


def by_question(rollouts: Sequence[Rollout], samples: int) -> list[list[Rollout]]:
    """The rollouts of each question, in order."""
    return [list(rollouts[first : first + samples]) for first in range(0, len(rollouts), samples)]
