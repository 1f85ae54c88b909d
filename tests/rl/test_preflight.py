"""Go or no-go: a model that can learn goes; each planted fault is named by its own check."""

import pytest
import torch
from rollouts import Sums
from tiny_networks import TOKENIZER, V

from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.sampling import Sampling
from nanochat.optim import build
from nanochat.rl.algorithms import Algorithm
from nanochat.rl.collect import Collector
from nanochat.rl.preflight import Preflight, live_share
from nanochat.rl.rewards import Rewards
from nanochat.tokenizer.conversations import render
from nanochat.tokenizer.tokenizer import BPETokenizer

TASK = Sums(size=8)


@pytest.fixture(scope="module")
def learnt() -> GPT:
    """A network that has seen the conversations of the task until it is right about half of the
    time."""
    torch.manual_seed(0)
    gpt = GPT.build(GPTConfig(48, V, 2, 2, 2, 32))
    groups = {
        role: {"rule": "adamw", "lr": 0.01, "betas": [0.9, 0.95]}
        for role in (
            "head",
            "embedding",
            "value_embedding",
            "resid_scalar",
            "x0_scalar",
            "gate_scalar",
            "matrix",
        )
    }
    optimizer = build(gpt, groups)
    rows = [render(TOKENIZER, TASK[i]) for i in range(8)]
    for _ in range(200):
        ids = torch.tensor([row for row, _ in rows])
        targets = torch.tensor(
            [[t if m else -1 for t, m in zip(row[1:], mask[1:], strict=True)] for row, mask in rows]
        )
        loss = gpt.loss_sum(ids[:, :-1], targets) / 16
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.35:
            break
    return gpt


def preflight(tokenizer=TOKENIZER, *, reward=None, max_tokens: int = 10, task=TASK) -> Preflight:
    rewards = Rewards({"answer": {"_target_": "nanochat.rl.rewards.Answer"}})
    if reward is not None:
        rewards.of["answer"].function = reward
    sampling = Sampling(max_tokens=max_tokens)
    collector = Collector(
        tokenizer,
        task,
        rewards,
        Algorithm("x"),
        sampling,
        questions=4,
        samples=8,
        seed=1,
        max_rows=32,
    )
    return Preflight(collector, questions=8, micro_tokens=2000)


def test_a_model_that_can_learn_goes(learnt: GPT) -> None:
    finding = preflight().run(learnt)
    assert finding.stops == [] and [check.what for check in finding.checks] == [
        "template",
        "rewards",
        "signal",
        "truncation",
        "agreement",
    ]
    assert 0.1 < finding.numbers["pass@1"] < 0.95 and finding.numbers["live_groups"] > 0.3
    assert finding.numbers["truncated"] < 0.1 and finding.numbers["logprob_gap"] < 1e-5


def test_a_broken_template_is_named(learnt: GPT) -> None:
    """The marks of user and assistant exchanged, as a tokenizer of another model would have
    them."""
    broken = BPETokenizer([])
    a, b = "<|user_start|>", "<|assistant_start|>"
    broken.specials = {**broken.specials, a: broken.specials[b], b: broken.specials[a]}
    stops = preflight(broken).run(learnt).stops
    assert (
        stops[0].what == "template"
        and "<|user_start|> and <|assistant_start|> exchanged" in stops[0].advice
    )


def test_a_base_checkpoint_is_named() -> None:
    """Trained on the same texts without a mark."""
    torch.manual_seed(0)
    gpt = GPT.build(GPTConfig(48, V, 2, 2, 2, 32))
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=0.01)
    for _ in range(60):
        ids = torch.tensor(
            [
                [TOKENIZER.bos_id, *TOKENIZER.encode(f"{i}+1{i + 1 if i < 9 else 0}")]
                for i in range(8)
            ]
        )
        loss = gpt.loss_sum(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    stops = preflight().run(gpt).stops
    assert (
        stops[0].what == "template"
        and "a base checkpoint, or one not trained on such a task; +phase=sft first"
        in stops[0].advice
    )


def test_a_reward_that_is_always_1_is_named(learnt: GPT) -> None:
    stops = preflight(reward=lambda rollouts, task: [1.0] * len(rollouts)).run(learnt).stops
    assert [check.what for check in stops] == ["rewards", "signal"]
    assert (
        "the reward is the same for right and wrong answers: look at rewards.answer"
        in stops[0].advice
    )


def test_answers_that_are_all_cut_off_are_named(learnt: GPT) -> None:
    stops = {check.what: check for check in preflight(max_tokens=1).run(learnt).stops}
    assert "raise rollout.max_tokens (now 1)" in stops["truncation"].advice


def test_nothing_right_at_all_is_named(learnt: GPT) -> None:
    task = Sums(size=8)
    task.reference = lambda conversation: "77"  # type: ignore[method-assign]
    stops = {check.what: check for check in preflight(task=task).run(learnt).stops}
    assert (
        "no group of 8 has two rewards" in stops["signal"].found
        and "nothing can be learned" in stops["signal"].advice
    )


def test_the_predicted_share_of_live_groups() -> None:
    assert live_share([0, 8], 8, 16) == 0.0
    p = 4.5 / 9
    assert live_share([4, 0], 8, 2) == pytest.approx((1 - 2 * p * p) / 2)
