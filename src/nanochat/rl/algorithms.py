"""The weight of each sampled token: advantages within a group, normalisation over the step, and the
clipped objective.

Every algorithm here is one formula: minimise the sum over sampled tokens t of w_t * (-clip(ratio_t)
* A_t + kl * k3_t). They differ in A, w and the clip, so each is a file in `conf/algo`. Weights are
computed over the whole step, before it is divided into micro-batches and ranks; the division
therefore changes nothing.

    nanochat   facts sheet 5.9: A = r - mean; each pass of 8 samples of a question is averaged
               over its tokens
    reinforce  A = r - mean; mean over all tokens of the step (Williams 1992; the baseline is the
               group's mean, Kool et al. 2019)
    grpo       Shao et al. 2024, arXiv:2402.03300: A = (r - mean) / std; mean over the tokens of an
               answer, then over answers
    dr_grpo    Liu et al. 2025, arXiv:2503.20783: A = r - mean; sum over the tokens of an answer /
               max_tokens, mean over answers
    dapo       Yu et al. 2025, arXiv:2503.14476: A = (r - mean) / std; mean over all tokens;
               clip-higher; groups without signal left out
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nanochat.runtime.settings import Beta, Count, Number, Whole, check, check_fields

# from: verl, as the paper gives none; if all rewards of a group are equal, advantages are 0
STD_EPS = 1e-6
SIGNAL = 1e-8  # guess: a smaller difference of rewards counts as none


@dataclass(frozen=True)
class Algorithm:
    """Settings of `conf/algo`. ValueError for combinations that make no sense."""

    name: str
    # r - mean of the group | divided by the group's standard deviation (n - 1)
    advantage: Literal["mean", "std"] = "mean"
    # pass | tokens (of the step) | answer (its tokens, then answers) | constant (max_tokens, then
    # answers)
    normalise: Literal["pass", "tokens", "answer", "constant"] = "tokens"
    pass_rows: Count = 8  # answers averaged together by `pass`: nanochat's device batch
    train_stop: bool = True  # train the token that ends the turn like the others
    # log-probabilities of the truncated, tempered distribution | full: of the model's own
    # distribution
    distribution: Literal["sampled", "full"] = "sampled"
    epochs: Count = 1  # passes over the rollouts of a step
    minibatches: Count = 1  # optimizer steps of a pass
    clip_low: Beta | None = 0.2  # ratio is clipped to 1 - clip_low …
    clip_high: Number | None = 0.2  # … and 1 + clip_high; null: no clip
    # weight of the divergence from the start model, by Schulman's estimator k3
    kl: Number = 0.0
    skip_dead: bool = False  # leave out groups whose rewards are all equal …
    refill: Whole = 0  # … and ask up to this many further rounds of questions to replace them

    def __post_init__(self) -> None:
        check_fields(self, "algo")
        if self.refill and not self.skip_dead:
            raise ValueError(
                "algo.refill replaces groups that are left out; set algo.skip_dead=true, or "
                "refill=0"
            )

    @property
    def updates(self) -> int:
        """Optimizer steps per rollout."""
        return self.epochs * self.minibatches

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """Advantages of the answers to one question.

        >>> Algorithm("x").advantages([1, 0, 0, 1])
        [0.5, -0.5, -0.5, 0.5]
        >>> Algorithm("x", advantage="std").advantages([1.0, 1.0])
        [0.0, 0.0]
        """
        mean = sum(rewards) / len(rewards)
        centred = [reward - mean for reward in rewards]
        if self.advantage == "mean" or len(rewards) == 1:
            return centred
        if not has_signal(rewards):
            return [0.0] * len(rewards)
        std = math.sqrt(sum(x * x for x in centred) / (len(rewards) - 1))
        return [x / (std + STD_EPS) for x in centred]

    def token_weights(self, counts: Sequence[Sequence[int]], max_tokens: int) -> list[list[float]]:
        """Weight of every token of each answer, for all groups of an optimizer step; `counts` are
        the sampled tokens of each answer.

        An answer without sampled tokens has weight 0. Computed by hand in
        tests/rl/test_algorithms.py.
        """
        answers, tokens = sum(map(len, counts)), sum(map(sum, counts))
        weights = []
        for group in counts:
            rows: list[float] = []
            for n, count in enumerate(group):
                if self.normalise == "tokens":
                    rows.append(1 / max(tokens, 1))
                elif self.normalise == "answer":
                    rows.append(1 / (max(count, 1) * answers))
                elif self.normalise == "constant":
                    rows.append(1 / (max_tokens * answers))
                # a pass is averaged over its tokens, a question over its passes, the step over its
                # questions
                else:
                    first = n // self.pass_rows * self.pass_rows
                    in_pass = sum(group[first : first + self.pass_rows])
                    passes = -(-len(group) // self.pass_rows)
                    rows.append(1 / (max(in_pass, 1) * passes * len(counts)))
            weights.append(rows)
        return weights


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether the rewards of the answers to a question differ; if not, the group has no
    gradient."""
    return max(rewards) - min(rewards) > SIGNAL


def build_algorithm(settings: dict[str, Any]) -> Algorithm:
    return Algorithm(**check(settings, Algorithm, "algo."))


def objective(
    algorithm: Algorithm,
    logp: Tensor,
    old: Tensor | None,
    start: Tensor | None,
    advantage: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss to be minimised, summed over tokens (0-d); which tokens are clipped (N,); k3 against the
    start model (N,).

    `old` is the log-probability at sampling time (N,). None: the answers come from the current
    policy, and the ratio is 1.
    """
    ratio = (logp - (logp.detach() if old is None else old)).exp()
    gain = ratio * advantage
    clipped = torch.zeros_like(gain, dtype=torch.bool)
    if algorithm.clip_low is not None or algorithm.clip_high is not None:
        low = 0.0 if algorithm.clip_low is None else 1 - algorithm.clip_low
        high = math.inf if algorithm.clip_high is None else 1 + algorithm.clip_high
        held = ratio.clamp(low, high) * advantage
        clipped = held < gain
        gain = torch.minimum(gain, held)
    loss = -(weight * gain)
    k3 = torch.zeros_like(gain)
    if start is not None:
        gap = start - logp
        k3 = gap.exp() - gap - 1  # Schulman 2020, "Approximating KL divergence"
        loss = loss + algorithm.kl * weight * k3
    return loss.sum(), clipped, k3.detach()
