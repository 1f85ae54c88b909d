"""Reinforcement learning: the model answers, rewards judge, and what earned more than its group is
made likelier.

An optimizer step is one `training_step`. The first of the `algo.updates` steps on the same answers
collects them; micro-batches and processes only split a sum whose weights were fixed before
(rl/algorithms.py), so gradients are added up here, not by Lightning. FSDP2 adds them up itself;
there all processes make as many passes as the one with the most.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from nanochat.distributed import gathered, maximum, summed
from nanochat.gpt import GPT
from nanochat.inference.ahead import to_device
from nanochat.inference.sampling import Sampling
from nanochat.modules.phase import PhaseModule
from nanochat.optim import GroupedOptimizer, Schedule
from nanochat.rl.algorithms import objective
from nanochat.rl.collect import (
    Collector,
    Experience,
    Row,
    drawn_logprobs,
    group_by_length,
    padded,
    per_token,
)
from nanochat.rl.policy import logprobs, policy_loss
from nanochat.runtime import hardware


class RLModule(PhaseModule):
    """`collector` gives the experience of a step; `micro_tokens` bounds the padded tokens of a
    forward pass; `start`, where there is a KL term, is the start model, which does not learn."""

    def __init__(
        self,
        gpt: GPT,
        optim: Callable[[GPT], GroupedOptimizer],
        schedule: Schedule,
        total_steps: int,
        *,
        collector: Collector,
        micro_tokens: int,
        clip_norm: float | None = None,
        start: GPT | None = None,
    ) -> None:
        super().__init__(gpt, optim, schedule, total_steps)
        self.automatic_optimization = False
        self.collector, self.micro_tokens, self.clip_norm = collector, micro_tokens, clip_norm
        self._start = (start,)  # in a tuple: no part of what is trained or saved
        self.asked = 0
        self._at_rest = False
        self.experience: Experience | None = None
        self.collected_at = -1  # the step before which the experience was collected
        algorithm = collector.algorithm
        self.sampling = collector.sampling if algorithm.distribution == "sampled" else Sampling()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # type: ignore[override]
        algorithm, step = self.collector.algorithm, self.global_step
        update = step % algorithm.updates
        if update == 0:
            # no memory for gradients while answers are written
            self.optimizers().zero_grad()  # type: ignore[union-attr]
            self._collect()
        assert self.experience is not None, "the answers of this step were not restored"
        spent: dict[str, float] = {}
        with hardware.measured(spent, "update", self.device):
            self._update(self.experience.of_update(update, algorithm.minibatches))
        self.numbers |= spent

    def _collect(self) -> None:
        """Answers, and what the algorithm compares their log-probabilities with."""
        algorithm, start = self.collector.algorithm, self._start[0]
        with self.whole_gpt():
            self.experience = self.collector.collect(self.gpt, self.asked)
            self.asked, self.collected_at = self.experience.asked, self.global_step
            self.numbers = dict(self.experience.numbers)
            with hardware.measured(self.numbers, "rescore", self.device):
                for rows in group_by_length(self.experience.rows, self.micro_tokens):
                    of = (*padded(rows, self.device), self.sampling)
                    if algorithm.updates > 1:
                        _keep(rows, "old", logprobs(self.gpt, *of))
                    if start is not None and algorithm.kl:
                        _keep(rows, "start", logprobs(start, *of))

    def _update(self, rows: list[Row]) -> None:
        algorithm, optimizer = self.collector.algorithm, self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        # loss, tokens, clipped, entropy, k3, gap to the engine; and the largest gap
        sums, widest = torch.zeros(6, device=self.device), torch.zeros(1, device=self.device)
        parts = group_by_length(rows, self.micro_tokens)
        idle = self._idle_passes(len(parts))
        for part in parts:
            found, gap = self._pass(part)
            sums += found
            widest = torch.maximum(widest, gap)
        for _ in range(idle):
            self._pass_idly()
        self._running = sums[0].clone()
        norm = self._add_up()
        if self.clip_norm is not None:
            self.clip_gradients(
                optimizer, gradient_clip_val=self.clip_norm, gradient_clip_algorithm="norm"
            )  # type: ignore[arg-type]
        summed(sums)
        maximum(widest)
        # a step without a signal is counted; where dead groups are left out it moves nothing, as if
        # it had not been
        self._at_rest = algorithm.skip_dead and float(sums[1]) == 0
        optimizer.step()  # type: ignore[union-attr]
        self._tell(sums.tolist(), float(widest), norm)

    def _pass(self, part: list[Row]) -> tuple[Tensor, Tensor]:
        """Forward and backward pass of some rows; the sums (6,) of `_update`, and the largest
        gap."""
        algorithm = self.collector.algorithm
        idx, chosen = padded(part, self.device)
        advantage = per_token(part, [row.advantage for row in part], self.device)
        weight = per_token(part, [row.weight for row in part], self.device)
        old = _joined(part, "old", self.device)
        start = _joined(part, "start", self.device)
        seen = torch.zeros(2, device=self.device)

        def loss_of(logp: Tensor, at: slice) -> Tensor:
            loss, clipped, k3 = objective(
                algorithm,
                logp,
                None if old is None else old[at],
                None if start is None else start[at],
                advantage[at],
                weight[at],
            )
            seen.add_(torch.stack((clipped.sum(), k3.sum())))
            return loss

        loss, logp, entropy = policy_loss(self.gpt, idx, chosen, self.sampling, loss_of)
        self._differentiate(loss)
        gap = torch.zeros_like(logp)
        if algorithm.distribution == "sampled" and old is None:
            gap = (logp - drawn_logprobs(part, self.device)).abs()
        tokens = torch.full_like(seen[0], logp.numel())
        found = (loss.detach(), tokens, seen[0], entropy.sum(), seen[1], gap.sum())
        return torch.stack(found), gap.max()

    def _idle_passes(self, passes: int) -> int:
        """How many more passes another process makes. Weights that are shared out are gathered by
        all processes at once; else each makes as many as it has."""
        if self.device_mesh is None:
            return 0
        return int(maximum(torch.tensor([passes], device=self.device))) - passes

    def _pass_idly(self) -> None:
        """A pass whose gradients are 0."""
        idx = torch.zeros(1, 3, dtype=torch.long, device=self.device)
        chosen = torch.full((1,), 2, device=self.device)
        loss, _, _ = policy_loss(
            self.gpt, idx, chosen, self.sampling, lambda logp, at: 0 * logp.sum()
        )
        self._differentiate(loss)

    def _differentiate(self, loss: Tensor) -> None:
        """DDP's hooks rest here: `_add_up` adds the gradients up. FSDP2 takes their mean over the
        processes."""
        (loss if self.device_mesh is None else loss * self.trainer.world_size).backward()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        if self._at_rest:
            for group in self.optimizer_of_run.param_groups:
                group["lr"] = 0.0

    def _add_up(self) -> float:
        """Gradients over all processes; their norm."""
        shared_out, grads = self.device_mesh is not None, []
        for p in self.gpt.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            grads.append(p.grad if shared_out else summed(p.grad))
        norm: Any = torch.nn.utils.get_total_norm(grads)
        return float(norm.full_tensor() if shared_out else norm)

    def _tell(self, sums: list[float], widest: float, norm: float) -> None:
        _, tokens, clipped, entropy, k3, gap = sums
        if tokens == 0:
            stale = ("rl/entropy", "rl/clipped", "rl/kl", "rl/logprob_gap", "rl/logprob_gap_max")
            self.numbers = {k: v for k, v in self.numbers.items() if k not in stale} | {
                "rl/trained_tokens": 0.0,
                "rl/gradient_norm": norm,
            }
            return
        self.numbers = {
            **self.numbers,
            "rl/trained_tokens": sums[1],
            "rl/entropy": entropy / tokens,
            "rl/clipped": clipped / tokens,
            "rl/gradient_norm": norm,
        }
        algorithm = self.collector.algorithm
        if algorithm.kl:
            self.numbers["rl/kl"] = k3 / tokens
        if algorithm.distribution == "sampled" and algorithm.updates == 1:
            self.numbers |= {"rl/logprob_gap": gap / tokens, "rl/logprob_gap_max": widest}

    def headline(self) -> str:
        n = self.numbers
        seconds = n.get("seconds/rollout", 0) + n.get("seconds/reward", 0)
        entropy = f"{n['rl/entropy']:.2f}" if "rl/entropy" in n else "not known: no signal"
        return (
            f"reward {n['rl/reward']:.3f}  pass@1 {n['rl/pass@1']:.1%}  dead "
            f"{n['rl/dead_groups']:.0%}  cut {n['rl/truncated']:.0%}  length {n['rl/length']:.0f}  "
            f"entropy {entropy}  rollout {seconds:.1f} s  update {n['seconds/update']:.1f} s"
        )

    def where_the_batch_is(self, step: int) -> str:
        return f"the lines of step {step} in rollouts.jsonl are its answers"

    # --- to go on exactly -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        rows: list[list[Row]] = []
        if self.experience is not None and self.global_step % self.collector.algorithm.updates:
            rows = gathered(self.experience.rows)
        checkpoint["rl"] = {
            "asked": self.asked,
            "rows": [[asdict(row) for row in of_rank] for of_rank in rows],
            "numbers": self.numbers,
            "collected_at": self.collected_at,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved, collector = checkpoint["rl"], self.collector
        self.asked = saved["asked"]
        self.numbers = saved["numbers"]
        self.collected_at = saved["collected_at"]
        if saved["rows"]:
            of_ranks = [[Row(**row) for row in of_rank] for of_rank in saved["rows"]]
            if len(of_ranks) == collector.world_size:
                rows = of_ranks[collector.rank]
            else:  # on another number of processes
                rows = [row for of_rank in of_ranks for row in of_rank][
                    collector.rank :: collector.world_size
                ]
            self.experience = Experience([], rows, self.asked)


def _keep(rows: list[Row], name: str, values: Tensor) -> None:
    counts = [sum(row.mask) for row in rows]
    for row, own in zip(rows, values.split(counts), strict=True):
        setattr(row, name, own.tolist())


def _joined(rows: list[Row], name: str, device: torch.device) -> Tensor | None:
    values = [getattr(row, name) for row in rows]
    if any(value is None for value in values):
        return None
    return to_device([x for value in values for x in value], device)
