"""The experience of a step: questions asked, answers sampled and rewarded, and the rows that its
updates train on.

The questions of a step, and the random numbers for their answers, follow from the seed and the
number of questions asked before. A step is therefore the same on any number of processes, and after
a resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.distributed import agreed, gathered
from nanochat.gpt import GPT
from nanochat.inference.ahead import to_device
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.rl.algorithms import Algorithm, has_signal
from nanochat.rl.rewards import Rewards
from nanochat.rl.rollout import Rollout, by_question, engine_for, has_room, sample_rollouts
from nanochat.runtime import hardware
from nanochat.tasks.task import Task
from nanochat.tokenizer.tokenizer import Tokenizer


@dataclass
class Row:
    """An answer in the form an update needs. Lists have the length of `ids` and count where `mask`
    is 1."""

    ids: list[int]
    mask: list[int]
    drawn: list[float]  # log-probability at sampling time, by the engine
    advantage: float
    weight: float  # weight of each of its tokens in the loss
    update: int  # number of its minibatch
    # log-probabilities before the first update, by the trainer, of the tokens with mask 1
    old: list[float] | None = None
    start: list[float] | None = None  # by the start model


class GroupFacts(NamedTuple):
    """What every process needs to know of a group."""

    position: int  # in the order in which questions were asked
    rewards: list[float]
    parts: dict[str, float]  # mean of each reward
    sampled: list[int]  # trained tokens of each answer
    lengths: list[int]  # tokens of each answer
    truncated: int
    answer: list[float]  # values of the reward called answer, for pass@k; else of the sum


@dataclass
class Experience:
    """The rows of one process; `numbers` are over all processes."""

    rollouts: list[Rollout]
    rows: list[Row]
    asked: int  # questions asked so far in the run
    numbers: dict[str, float] = field(default_factory=dict)

    def of_update(self, update: int, minibatches: int) -> list[Row]:
        return [row for row in self.rows if row.update == update % minibatches]


class Collector:
    """Asks `questions` per step with `samples` answers each; process `rank` of `world_size` asks
    its share of them."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: Task,
        rewards: Rewards,
        algorithm: Algorithm,
        sampling: Sampling,
        *,
        questions: int,
        samples: int,
        seed: int,
        max_rows: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.rewards = rewards
        self.algorithm = algorithm
        self.sampling = sampling
        self.questions, self.samples, self.seed, self.max_rows = questions, samples, seed, max_rows
        self.rank, self.world_size = rank, world_size

    def collect(self, gpt: GPT, asked: int) -> Experience:
        """The experience of a step, after `asked` questions in the run. An exception on one process
        is raised on all."""
        engine = engine_for(gpt, self.tokenizer, self.sampling, self.max_rows)
        mine: dict[int, list[Rollout]] = {}  # by position
        facts: list[GroupFacts] = []
        spent: dict[str, float] = {}
        first, wanted = asked, self.questions
        for _ in range(1 + self.algorithm.refill):
            positions = range(asked, asked + wanted)
            asked += wanted
            device = gpt.device
            new = agreed(partial(self._ask, engine, positions, spent), device)
            mine.update(new)
            for of_process in gathered(
                [self._facts(position, group) for position, group in new.items()]
            ):
                facts += of_process
            live = sum(has_signal(group.rewards) for group in facts)
            wanted = self.questions - live
            if not self.algorithm.skip_dead or wanted <= 0:
                break
        if not facts:
            raise ValueError(
                f"none of {asked - first} questions of {self.task.name} leaves room for an answer "
                "in the model's context; choose a task with "
                "shorter ones, or a model with a longer context"
            )
        facts.sort()
        rows = self._rows(mine, facts)
        rollouts = [rollout for position in sorted(mine) for rollout in mine[position]]
        return Experience(
            rollouts,
            rows,
            asked,
            {**step_numbers(facts), "rl/no_room": float(asked - first - len(facts)), **spent},
        )

    def _ask(
        self, engine: Engine, positions: range, spent: dict[str, float]
    ) -> dict[int, list[Rollout]]:
        """This process's share of the questions at `positions`, answered and rewarded; questions
        without room for an answer are left out."""
        own = [
            position
            for position in positions
            if position % self.world_size == self.rank
            and has_room(engine.gpt, self.tokenizer, self.task[position % len(self.task)])
        ]
        device = engine.gpt.device
        with hardware.measured(spent, "rollout", device):
            rollouts = sample_rollouts(
                engine,
                self.tokenizer,
                self.task,
                [position % len(self.task) for position in own],
                samples=self.samples,
                sampling=self.sampling,
                seeds=[f"{self.seed}/{position}" for position in own],
            )
        with hardware.measured(spent, "reward", device):
            if rollouts:
                self.rewards.give(rollouts, self.task)
        found = dict(zip(own, by_question(rollouts, self.samples), strict=True))
        for group in found.values():
            for rollout, advantage in zip(
                group, self.algorithm.advantages([r.reward for r in group]), strict=True
            ):
                rollout.advantage = advantage
        return found

    def _facts(self, position: int, group: list[Rollout]) -> GroupFacts:
        stop = self.algorithm.train_stop
        return GroupFacts(
            position,
            [r.reward for r in group],
            {name: sum(r.rewards[name] for r in group) / len(group) for name in group[0].rewards},
            [sum(r.tokens(train_stop=stop)[1]) for r in group],
            [len(r.completion.ids) for r in group],
            sum(r.truncated for r in group),
            [r.rewards.get("answer", r.reward) for r in group],
        )

    def _rows(self, mine: dict[int, list[Rollout]], facts: list[GroupFacts]) -> list[Row]:
        """The rows of this process's groups, with weights computed over the groups of all
        processes."""
        algorithm = self.algorithm
        kept = [group for group in facts if not algorithm.skip_dead or has_signal(group.rewards)]
        rows = []
        for minibatch in range(algorithm.minibatches):
            part = kept[minibatch :: algorithm.minibatches]
            weights = algorithm.token_weights(
                [group.sampled for group in part], self.sampling.max_tokens or 1
            )
            for group, of_group in zip(part, weights, strict=True):
                for rollout, weight in zip(mine.get(group.position, []), of_group, strict=False):
                    if rollout.advantage == 0 and not algorithm.kl:
                        continue  # it has no gradient
                    ids, mask, drawn = rollout.tokens(train_stop=algorithm.train_stop)
                    if any(mask):
                        rows.append(Row(ids, mask, drawn, rollout.advantage, weight, minibatch))
        return rows


def step_numbers(facts: Sequence[GroupFacts]) -> dict[str, float]:
    """Statistics of the policy from the answers of a step, over all processes."""
    answers = sum(len(group.rewards) for group in facts)
    n = len(facts[0].rewards)
    numbers = {
        "rl/reward": sum(sum(group.rewards) for group in facts) / answers,
        "rl/dead_groups": sum(not has_signal(group.rewards) for group in facts) / len(facts),
        "rl/truncated": sum(group.truncated for group in facts) / answers,
        "rl/length": sum(sum(group.lengths) for group in facts) / answers,
        "rl/questions": float(len(facts)),
        "rl/pass@1": sum(right > 0.5 for group in facts for right in group.answer) / answers,
        f"rl/pass@{n}": sum(any(right > 0.5 for right in group.answer) for group in facts)
        / len(facts),
    }
    return numbers | {
        f"rl/reward_{name}": sum(group.parts[name] for group in facts) / len(facts)
        for name in facts[0].parts
    }


def group_by_length(rows: Sequence[Row], micro_tokens: int) -> list[list[Row]]:
    """Batches of rows of similar length, with at most `micro_tokens` padded tokens (or a single
    row)."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= micro_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """idx (B, T) int64, padded with 0 on the right, and the numbers (N,) of its tokens whose mask
    is 1, counted row by row."""
    T = max(len(row.ids) for row in rows)
    idx = to_device([row.ids + [0] * (T - len(row.ids)) for row in rows], device)
    chosen = [b * T + t for b, row in enumerate(rows) for t, kept in enumerate(row.mask) if kept]
    return idx, to_device(chosen, device, torch.long)


def per_token(rows: Sequence[Row], values: Sequence[float], device: torch.device) -> Tensor:
    """The value of each row, repeated for its sampled tokens, (N,)."""
    repeated = [x for row, x in zip(rows, values, strict=True) for _ in range(sum(row.mask))]
    return to_device(repeated, device, torch.float32)


def drawn_logprobs(rows: Sequence[Row], device: torch.device) -> Tensor:
    """Log-probabilities of the sampled tokens at sampling time, by the engine, (N,)."""
    found = [p for row in rows for p, sampled in zip(row.drawn, row.mask, strict=True) if sampled]
    return to_device(found, device, torch.float32)
