"""What each sampled token weighs: advantages within a group, normalisation over the step, and the clipped objective.

Every algorithm here is one formula: minimise the sum over sampled tokens t of  w_t * (-clip(ratio_t) * A_t + kl * k3_t).  They differ in A, w
and the clip, so that each is a file in `conf/algo`. Weights are computed over the whole step, before it is split into micro-batches
and ranks, which therefore change nothing.

    nanochat   facts sheet 5.9: A = r - mean; each pass of 8 samples of a question is averaged over its tokens
    reinforce  A = r - mean; mean over all tokens of the step (Williams 1992; the baseline is the group's mean, Kool et al. 2019)
    grpo       Shao et al. 2024, arXiv:2402.03300: A = (r - mean) / std; mean over the tokens of an answer, then over answers
    dr_grpo    Liu et al. 2025, arXiv:2503.20783: A = r - mean; sum over the tokens of an answer / max_tokens, mean over answers
    dapo       Yu et al. 2025, arXiv:2503.14476: A = (r - mean) / std; mean over all tokens; clip-higher; groups without signal left out
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nanochat.runtime.settings import Beta, Count, Number, Whole, check, check_fields

STD_EPS = 1e-6  # from: verl, where the paper gives none; all rewards of a group equal: advantage 0
SIGNAL = 1e-8  # guess: rewards that differ by less are equal


@dataclass(frozen=True)
class Algorithm:
    """Settings of `conf/algo`. ValueError for one that makes no sense."""

    name: str
    advantage: Literal["mean", "std"] = "mean"  # r - mean of the group | over the group's standard deviation (n - 1)
    # pass | tokens (of the step) | answer (its tokens, then answers) | constant (max_tokens, then answers)
    normalise: Literal["pass", "tokens", "answer", "constant"] = "tokens"
    pass_rows: Count = 8  # answers averaged together by `pass`: nanochat's device batch
    train_stop: bool = True  # the token that ends the turn is trained like the others
    # log-probabilities of the truncated, tempered distribution | full: of the model's own
    distribution: Literal["sampled", "full"] = "sampled"
    epochs: Count = 1  # passes over the rollouts of a step
    minibatches: Count = 1  # optimizer steps of a pass
    clip_low: Beta | None = 0.2  # ratio is clipped to 1 - clip_low …
    clip_high: Number | None = 0.2  # … and 1 + clip_high; null: not at all
    kl: Number = 0.0  # weight of the divergence from the start model, by Schulman's estimator k3
    skip_dead: bool = False  # leave out groups whose rewards are all equal …
    refill: Whole = 0  # … and ask so many further rounds of questions for those

    def __post_init__(self) -> None:
        check_fields(self, "algo")
        if self.refill and not self.skip_dead:
            raise ValueError(
                "algo.refill asks for more where groups are left out; set algo.skip_dead=true, or refill=0"
            )

    @property
    def updates(self) -> int:
        """Optimizer steps per rollout."""
        return self.epochs * self.minibatches

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """Of the answers to one question.

        >>> Algorithm("x").advantages([1, 0, 0, 1]), Algorithm("x", advantage="std").advantages([1.0, 1.0])
        ([0.5, -0.5, -0.5, 0.5], [0.0, 0.0])
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
        """Weight of every token of each answer, for all groups that an optimizer step trains on: how many tokens of each were sampled.

        An answer without a sampled token has nothing to weigh. Hand-computed in tests/rl/test_algorithms.py.
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
                else:  # a pass is averaged over its tokens, a question over its passes, the step over its questions
                    first = n // self.pass_rows * self.pass_rows
                    in_pass = sum(group[first : first + self.pass_rows])
                    passes = -(-len(group) // self.pass_rows)
                    rows.append(1 / (max(in_pass, 1) * passes * len(counts)))
            weights.append(rows)
        return weights


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether the answers to a question differ in what they earn; without, the group teaches nothing."""
    return max(rewards) - min(rewards) > SIGNAL


def build_algorithm(settings: dict[str, Any]) -> Algorithm:
    return Algorithm(**check(settings, Algorithm, "algo."))


def objective(
    algorithm: Algorithm, logp: Tensor, old: Tensor | None, start: Tensor | None, advantage: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss to be minimised, summed over tokens; which tokens the clip holds; k3 against the start model. All (N,), but the loss, 0-d.

    `old` is the log-probability when the answer was sampled; None: the answers are of this very policy, and ratio is 1.
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
