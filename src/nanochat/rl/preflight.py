"""Go or no-go checks before a run starts: can the start policy learn this task, with these rewards,
this template, these limits?

A run that learns nothing raises no error: all groups without signal, every answer truncated, a
reward that does not separate right from wrong, a template unknown to the model. Each of these is
checked separately and named.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from nanochat.evals.asking import RIGHT
from nanochat.evals.pass_at_k import unbiased
from nanochat.gpt import GPT
from nanochat.inference.text import Completion
from nanochat.rl.algorithms import has_signal
from nanochat.rl.collect import Collector, Row, drawn_logprobs, group_by_length, padded
from nanochat.rl.policy import logprobs
from nanochat.rl.rollout import Rollout, by_question, engine_for, has_room, sample_rollouts
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render, render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer

GO, CARE, STOP = "go", "care", "stop"
# guess: conversations whose answers are used to check the rewards and the template
KNOWN = 16
TEMPLATE = ("<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>")
# measured on six checkpoints, in nats per token: the template's marks help a chat model by 0.08 to
# 1.1 and a base model by -0.07 to 0.08; exchanging two of them changes the loss by up to a tenth in
# either direction on problems not trained on, and by 0.004 to 0.1 or 0.4 on problems trained on
MARKS_HELP, MARKS_HELP_LITTLE = 0.02, 0.1
EXCHANGED = (0.05, 0.25)  # an exchange must be better by that much, and by that share
# guess: share of known answers where the right one must earn more than a wrong one
TOLD_APART = 0.9
CUT_STOP, CUT_CARE = 0.9, 0.3  # guess: share of truncated answers
FEW_LIVE = 0.1  # guess: share of groups with signal below which most of a run is wasted
# guess: mean difference of log-probabilities of engine and trainer, in fp32 and in other dtypes
GAP_EXACT, GAP = (1e-4, 0.05)
SIZES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class CheckResult:
    what: str
    verdict: str  # go | care | stop
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Finding:
    """`checks` in order; `numbers` of the sample, to be compared with the run."""

    checks: list[CheckResult]
    numbers: dict[str, float]

    @property
    def stops(self) -> list[CheckResult]:
        return [check for check in self.checks if check.verdict == STOP]


class Preflight:
    """Asks `questions` questions of the training task with the collector's settings."""

    def __init__(self, collector: Collector, *, questions: int, micro_tokens: int) -> None:
        self.collector, self.questions, self.micro_tokens = collector, questions, micro_tokens

    def run(self, gpt: GPT) -> Finding:
        c = self.collector
        known = _spread(c.task, KNOWN)
        checks = [check_template(gpt, c.tokenizer, c.task, known), self.check_rewards(known)]
        engine = engine_for(gpt, c.tokenizer, c.sampling, c.max_rows)
        numbers = [
            n for n in _spread(c.task, self.questions) if has_room(gpt, c.tokenizer, c.task[n])
        ]
        if not numbers:
            raise ValueError(
                f"no question of {c.task.name} leaves room for an answer in the model's context of "
                f"{gpt.config.sequence_len:,}"
            )
        rollouts = sample_rollouts(
            engine,
            c.tokenizer,
            c.task,
            numbers,
            samples=c.samples,
            sampling=c.sampling,
            seeds=[f"{c.seed}/preflight/{n}" for n in numbers],
        )
        # the time-out of a reward is for one step
        of_a_step = max(1, c.questions // c.world_size) * c.samples
        for first in range(0, len(rollouts), of_a_step):
            c.rewards.give(rollouts[first : first + of_a_step], c.task)
        found, measured = self.check_rollouts(by_question(rollouts, c.samples))
        agreement, gap = self.check_agreement(gpt, rollouts)
        return Finding([*checks, *found, agreement], {**measured, "logprob_gap": gap})

    def check_rewards(self, known: Sequence[int]) -> CheckResult:
        """Answers known to be right must earn more than answers to other questions."""
        c = self.collector
        rights, wrongs = [], []
        for number in known:
            other = next((n for n in known if _answer(c.task, n) != _answer(c.task, number)), None)
            if other is not None:
                rights.append(known_answer(c.tokenizer, c.task, number, number))
                wrongs.append(known_answer(c.tokenizer, c.task, number, other))
        if not rights:
            return CheckResult(
                "rewards",
                CARE,
                "all sampled questions have one answer: nothing known to be wrong to try them on",
            )
        c.rewards.give(rights + wrongs, c.task)
        better = sum(
            right.reward > wrong.reward for right, wrong in zip(rights, wrongs, strict=True)
        )
        found = (
            f"right answers earn {_mean([r.reward for r in rights]):.2f}, wrong ones "
            f"{_mean([w.reward for w in wrongs]):.2f}; separated in {better} of {len(rights)}"
        )
        if better >= TOLD_APART * len(rights):
            return CheckResult("rewards", GO, found)
        same = all(
            right.reward == wrong.reward for right, wrong in zip(rights, wrongs, strict=True)
        )
        why = (
            "the reward is the same for right and wrong answers"
            if same
            else "the reward does not separate right from wrong"
        )
        return CheckResult(
            "rewards",
            STOP,
            found,
            f"{why}: look at rewards.{', rewards.'.join(c.rewards.of)} before anything is trained",
        )

    def check_rollouts(
        self, asked: Sequence[Sequence[Rollout]]
    ) -> tuple[list[CheckResult], dict[str, float]]:
        """The start policy's share of right answers, of groups with a signal, and of truncated
        answers."""
        n = self.collector.samples
        rights = [sum(r.rewards.get("answer", r.reward) > RIGHT for r in group) for group in asked]
        live = _mean([float(has_signal([r.reward for r in group])) for group in asked])
        cut = _mean([float(r.truncated) for group in asked for r in group])
        length = _mean([float(len(r.completion.ids)) for group in asked for r in group])
        first, any_of = _mean([r / n for r in rights]), _mean([unbiased(n, r, n) for r in rights])
        numbers = {
            "pass@1": first,
            f"pass@{n}": any_of,
            "live_groups": live,
            "truncated": cut,
            "length": length,
        }
        return [self._signal(asked, rights, numbers), self._truncation(cut, length)], numbers

    def _signal(
        self, asked: Sequence[Sequence[Rollout]], rights: list[int], numbers: dict[str, float]
    ) -> CheckResult:
        """Whether enough groups have answers with different rewards. `rights`: right answers of
        each group."""
        n, live, first = self.collector.samples, numbers["live_groups"], numbers["pass@1"]
        any_of = numbers[f"pass@{n}"]
        if live == 0 and first > RIGHT:
            return CheckResult(
                "signal",
                STOP,
                f"pass@1 {first:.1%}: every group is right",
                "there is nothing left to learn: choose a harder task",
            )
        if live == 0:
            return CheckResult(
                "signal",
                STOP,
                f"pass@{n} {any_of:.1%}, no group of {len(asked)} has two rewards",
                "nothing can be learned: train on the task first (+phase=sft), choose an easier "
                f"one, or more than rollout.samples={n}",
            )
        error = 1.96 * math.sqrt(max(live * (1 - live), 0.25 / len(asked)) / len(asked))
        others = ", ".join(
            f"{live_share(rights, n, size):.0%} of {size}" for size in SIZES if size != n
        )
        found = (
            f"pass@1 {first:.1%}, pass@{n} {any_of:.1%}; {live:.0%} ± {error:.0%} of groups "
            f"have a signal (would be: {others})"
        )
        if live >= FEW_LIVE:
            return CheckResult("signal", GO, found, "")
        advice = (
            "most of the run would be wasted: raise rollout.samples, or try algo=dapo, which asks "
            "again"
        )
        return CheckResult("signal", CARE, found, advice)

    def _truncation(self, cut: float, length: float) -> CheckResult:
        """Whether answers end by themselves: `cut` is the share that does not."""
        most = self.collector.sampling.max_tokens
        found = (
            f"{cut:.0%} of answers cut off at rollout.max_tokens={most}, {length:.0f} tokens on "
            "average"
        )
        if cut < CUT_CARE:
            return CheckResult("truncation", GO, found, "")
        advice = (
            f"answers do not end: raise rollout.max_tokens (now {most}), or train the model to end "
            "its turn (+phase=sft)"
        )
        return CheckResult("truncation", STOP if cut >= CUT_STOP else CARE, found, advice)

    def check_agreement(self, gpt: GPT, rollouts: Sequence[Rollout]) -> tuple[CheckResult, float]:
        """The trainer must compute the log-probabilities that the engine sampled with."""
        c, device = self.collector, gpt.device
        rows = []
        for rollout in rollouts[:: max(1, len(rollouts) // 128)]:
            ids, mask, drawn = rollout.tokens(train_stop=c.algorithm.train_stop)
            if any(mask):
                rows.append(Row(ids, mask, drawn, 0.0, 0.0, 0))
        if not rows:
            return CheckResult("agreement", CARE, "no token was sampled"), 0.0
        gaps = [
            (logprobs(gpt, *padded(part, device), c.sampling) - drawn_logprobs(part, device)).abs()
            for part in group_by_length(rows, self.micro_tokens)
        ]
        gap = torch.cat(gaps)
        exact = gpt.compute_dtype == torch.float32 and device.type == "cpu"  # CUDA has TF32
        allowed = (GAP_EXACT if exact else GAP) / min(1.0, c.sampling.temperature)
        mean, widest = float(gap.mean()), float(gap.max())
        found = (
            f"log-probabilities of engine and trainer differ by {mean:.1e} on average, "
            f"{widest:.1e} at most"
        )
        advice = (
            "the gradient would not be that of the policy that answered; report this with the "
            "settings"
        )
        return CheckResult(
            "agreement", GO if mean <= allowed else STOP, found, "" if mean <= allowed else advice
        ), mean


def check_template(gpt: GPT, tokenizer: Tokenizer, task: Task, known: Sequence[int]) -> CheckResult:
    """The chat template must be the model's: exchanging its marks, or leaving them out, must make
    known answers less likely."""
    conversations = [task[n] for n in known]
    for number, conversation in zip(known, conversations, strict=True):
        prompt, whole = render_prompt(tokenizer, conversation), render(tokenizer, conversation)[0]
        if (
            whole[: len(prompt)] != prompt
            or prompt[0] != tokenizer.bos_id
            or prompt[-1] != tokenizer.specials["<|assistant_start|>"]
        ):
            return CheckResult(
                "template",
                STOP,
                f"the prompt of question {number} is not the beginning of its conversation",
                "the chat template is broken",
            )
    ids = [tokenizer.specials[name] for name in TEMPLATE]
    losses = {
        "as it is": _loss(gpt, tokenizer, conversations, {}),
        "without its marks": _loss(gpt, tokenizer, conversations, None),
    }
    for a, b in combinations(range(len(ids)), 2):
        swapped = {ids[a]: ids[b], ids[b]: ids[a]}
        losses[f"with {TEMPLATE[a]} and {TEMPLATE[b]} exchanged"] = _loss(
            gpt, tokenizer, conversations, swapped
        )
    own, bare = losses.pop("as it is"), losses.pop("without its marks")
    best = min(losses, key=lambda name: losses[name])
    found = (
        f"known answers cost {own:.2f} nats per token with the chat template, {bare:.2f} without "
        "its marks"
    )
    if own - losses[best] > max(EXCHANGED[0], EXCHANGED[1] * own) and losses[best] < bare:
        advice = (
            f"{losses[best]:.2f} {best}: it was trained with another template, or the tokenizer is "
            "not its own"
        )
        return CheckResult("template", STOP, found, advice)
    if own > bare - MARKS_HELP:
        advice = (
            "its marks mean nothing to the model: a base checkpoint, or one not trained on such a "
            "task; +phase=sft first"
        )
        return CheckResult("template", STOP, found, advice)
    if own > bare - MARKS_HELP_LITTLE:
        return CheckResult(
            "template",
            CARE,
            found,
            "the chat template makes little difference: more of +phase=sft would help",
        )
    return CheckResult("template", GO, found)


@torch.no_grad()
def _loss(
    gpt: GPT,
    tokenizer: Tokenizer,
    conversations: Sequence[dict[str, Any]],
    marks: dict[int, int] | None,
) -> float:
    """Mean loss of the text of the answers, with marks exchanged by `marks`, or left
    out for None."""
    total, count = 0.0, 0
    outer = {tokenizer.specials[name] for name in TEMPLATE}
    for conversation in conversations:
        ids, mask = render(tokenizer, conversation)
        answer = len(render_prompt(tokenizer, conversation))
        counted = [
            int(i >= answer and bool(m) and token not in tokenizer.specials.values())
            for i, (token, m) in enumerate(zip(ids, mask, strict=True))
        ]
        if marks is None:
            kept = [i for i, token in enumerate(ids) if token not in outer]
            ids, counted = [ids[i] for i in kept], [counted[i] for i in kept]
        else:
            ids = [marks.get(token, token) for token in ids]
        ids, counted = ids[: gpt.config.sequence_len + 1], counted[: gpt.config.sequence_len + 1]
        device = gpt.device
        idx = torch.tensor([ids[:-1]], device=device)
        targets = torch.tensor(
            [[token if c else -1 for token, c in zip(ids[1:], counted[1:], strict=True)]],
            device=device,
        )
        total += float(gpt.losses(idx, targets).sum())
        count += sum(counted[1:])
    return total / max(count, 1)


def known_answer(tokenizer: Tokenizer, task: Task, number: int, other: int) -> Rollout:
    """The task's own answer to question `other`, as if it had been given to question `number`."""
    conversation, answered = task[number], task[other]
    prompt = render_prompt(tokenizer, answered)
    ids, mask = render(tokenizer, answered)
    said = ids[len(prompt) : -1]
    completion = Completion(said, mask[len(prompt) : -1], tokenizer.decode(said), "stop")
    return Rollout(number, 0, conversation, render_prompt(tokenizer, conversation), completion)


def live_share(rights: Sequence[int], n: int, size: int) -> float:
    """Share of groups of `size` with both right and wrong answers, where each question was answered
    n times, `rights` of them right.

    The rate of a question is estimated as (right + 1/2) / (n + 1) (Jeffreys), except for questions
    that are all right or all wrong, which stay so.
    """
    share = 0.0
    for right in rights:
        p = (right + 0.5) / (n + 1) if 0 < right < n else right / n
        share += 1 - p**size - (1 - p) ** size
    return share / max(len(rights), 1)


def _answer(task: Task, number: int) -> Any:
    conversation = task[number]
    return task.reference(conversation) or conversation["messages"][-1]["content"]


def _spread(task: Task, count: int) -> list[int]:
    """`count` question numbers, evenly spaced over the task."""
    count = min(count, len(task))
    return [i * len(task) // count for i in range(count)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
